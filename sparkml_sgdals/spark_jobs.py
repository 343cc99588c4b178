"""What several packages ask of a Spark session: threads, tags of jobs, payloads collected."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pyarrow as pa
from pyspark import SparkContext, TaskContext
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.utils import is_remote

from sparkml_sgdals.errors import DivergenceError, StorageError

__all__ = [
    "BROADCAST_IDS",
    "active_session",
    "collect_payloads",
    "cores",
    "explained",
    "gathered",
    "local_threads",
    "note_cores",
    "phase",
    "session_name",
    "start_session",
    "task_limit",
    "task_threads",
]

BROADCAST_IDS: Final = 500_000
"""Factors of up to that many ids, some 100 MB at rank 16, are broadcast instead of shuffled."""
_TASKS_A_CORE: Final = 4
_MOST_TASKS: Final = 1000
_LEAST_TASKS: Final = 32
"""Tasks that are left where cores were counted, as more may come while a job runs."""
_TOLD: Final = (
    "SPARK_REMOTE", "SPARK_CONNECT_MODE_ENABLED", "SPARK_CONF_DIR", "SPARK_HOME",
    "PYSPARK_GATEWAY_PORT", "PYSPARK_SUBMIT_ARGS",
)  # fmt: skip
"""Set where somebody has said how Spark is to be started."""
_QUIET: Final = {"spark.ui.showConsoleProgress": "false", "spark.log.level": "ERROR"}
_SHUFFLED: Final = "spark.sql.shuffle.partitions"
_counted: dict[str, int] = {}
"""Cores of sessions whose conf does not tell."""


def active_session() -> SparkSession:
    """Return the session at hand, a new one where there is none.

    A new one of a program that says nothing of Spark is for someone who never asked for it: its
    bars and warnings would stand between the lines of a notebook.
    """
    found: SparkSession | None = SparkSession.getActiveSession()
    if found is not None:
        return found
    builder = SparkSession.builder
    if not any(name in os.environ for name in _TOLD):
        for name, value in _QUIET.items():
            builder = builder.config(name, value)
    return start_session(builder)


def start_session(builder: Any) -> SparkSession:
    """Return a builder's session; a new one on local cores shuffles into a partition a core.

    Spark's 200 are for a cluster: a Python task costs some 0.05 s however few rows it has. What
    the conf says stays, and so does a session that somebody else has started.
    """
    started: bool = SparkContext._active_spark_context is None
    session: SparkSession = builder.getOrCreate()
    # what nobody has set is not among all that are
    if started and not is_remote() and _SHUFFLED not in session.conf.getAll:
        threads = local_threads(session)
        if threads:
            session.conf.set(_SHUFFLED, threads)
    return session


def local_threads(spark: SparkSession) -> int:
    """Threads of a task under local[N], 0 where the master is no local one."""
    master = spark.conf.get("spark.master", "") or ""
    if master == "local":
        return 1
    match = re.match(r"local\[(\d+|\*)", master)
    if match is None:
        return 0
    return (os.cpu_count() or 1) if match[1] == "*" else int(match[1])


def task_threads(asked: int) -> int:
    """Threads of the task that asks: as told, else, for 0, the CPUs that Spark gave it."""
    context = TaskContext.get()
    return asked or (context.cpus() if context else 1)


def gathered(frame: DataFrame) -> DataFrame:
    """Return the same rows in no more partitions than cores can use, moved between none.

    A Python task costs Spark some 0.05 s however few rows it has, and a shuffle, a union or a
    folder of small files leaves hundreds of partitions.
    """
    return frame.coalesce(task_limit(frame.sparkSession))


def task_limit(spark: SparkSession) -> int:
    """Return how many tasks of a job cores can use.

    Under local[N] 4 N, so that one that is larger than the others does not keep a core waiting
    for long; on a cluster 4 a core where its conf tells how many there are, or they were counted,
    else a thousand.
    """
    told = _told_cores(spark)
    if told:
        return _TASKS_A_CORE * told
    found = _counted.get(session_name(spark), 0)
    return max(_TASKS_A_CORE * found, _LEAST_TASKS) if found else _MOST_TASKS


def cores(spark: SparkSession) -> int:
    """Return how many cores a session has for its tasks, 0 where that is not known."""
    return _told_cores(spark) or _counted.get(session_name(spark), 0)


def note_cores(spark: SparkSession, number: int) -> None:
    """Say how many cores a session has, as counted; what grows on demand is not known by it."""
    if (spark.conf.get("spark.dynamicAllocation.enabled", "") or "").lower() != "true":
        _counted[session_name(spark)] = number


def session_name(spark: SparkSession) -> str:
    """Return what stays the same for sessions that share their workers."""
    return spark.conf.get("spark.app.id", None) or str(id(spark))


def _told_cores(spark: SparkSession) -> int:
    local = local_threads(spark)
    if local:
        return local
    asked = [
        spark.conf.get(name, "") or ""
        for name in (
            "spark.default.parallelism",
            "spark.executor.instances",
            "spark.executor.cores",
        )
    ]
    parallelism, instances, each = (int(text) if text.isdigit() else 0 for text in asked)
    return parallelism or instances * max(each, 1)


@contextmanager
def phase(spark: SparkSession, name: str) -> Iterator[None]:
    """Tag the jobs of a phase of a fit, for Spark's pages and for `spark.interruptTag`."""
    tag = f"sparkml_sgdals: {name}"
    spark.addTag(tag)
    try:
        yield
    finally:
        spark.removeTag(tag)


def explained(failure: Exception) -> Exception:
    """Return what a task reported of divergence or storage, unwrapped; else the failure."""
    found = re.search(r"(DivergenceError|StorageError): ([^\n]+)", str(failure))
    if found is None:
        return failure
    return {"DivergenceError": DivergenceError, "StorageError": StorageError}[found[1]](
        found[2].strip()
    )


def collect_payloads(frame: DataFrame) -> pa.Table:
    """Collect a small frame of binary payloads.

    Raises DivergenceError or StorageError where a task raised it, else what Spark raises.
    """
    try:
        return frame.toArrow()
    except Exception as failure:
        raise explained(failure) from failure
