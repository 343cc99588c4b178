"""Can Spark's Python workers run this package, and see this process's files? Asked before a job."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import uuid
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from pyspark.sql.utils import is_remote

from sparkml_sgdals.spark_jobs import local_threads, note_cores, session_name

__all__ = ["need_workers", "workers_see", "workers_see_folder"]

logger = logging.getLogger(__name__)

_PACKAGE: Final = "sparkml_sgdals"
_NEEDED: Final = (_PACKAGE, "numpy", "pandas", "pyarrow", "numba")
_CANNOT_START: Final = re.compile(
    r'Cannot run program "(?P<program>[^"]+)"'
    r"|(?P<versions>Python versions? (?:in|on)[^\n]*?different[^\n]*|PYTHON_VERSION_MISMATCH[^\n]*)"
    r"|No module named '?(?P<module>[\w.]+)"
    r"|Error from python worker:\s+(?P<told>[^\n]+)"
)
_asked: set[str] = set()
_ROWS: Final = 1 << 16
_FIRST: Final = f"monotonically_increasing_id() & {(1 << 33) - 1} = 0"
"""Condition that the first row of a task meets alone."""


def need_workers(spark: SparkSession) -> None:
    """See that Python workers can import what tasks run; call before a job with a Python step.

    Where the master is a local one and nobody chose a Python for the workers, it is this process's
    own from here on. One job a session, of a row a core of a cluster, which does not fail where
    they lack something: a task that fails for it is tried four times and fills the log with traces.

    Raises
    ------
    RuntimeError
        they cannot: which Python, what it lacks, and what to do
    """
    session = session_name(spark)
    if session in _asked:
        return
    if local_threads(spark) and not is_remote():
        _use_own_python()
    try:
        answers = [json.loads(text) for text in _ask_all(spark, _question(_NEEDED), "string")]
    except Exception as failure:
        fault = _CANNOT_START.search(str(failure))
        if fault is None:
            # whatever it is, the caller's own job will say it better
            logger.debug("the workers' Python is not known: %s", failure)
            return
        raise RuntimeError(_cannot_start(fault, spark)) from None
    version = import_module(_PACKAGE).__version__
    for told in answers:
        if told["missing"]:
            raise RuntimeError(_lacking(told, spark))
        if told["version"] != version:
            raise RuntimeError(
                f"Spark's Python workers have {_PACKAGE} {told['version']} in {told['python']}, "
                f"and this process has {version}: install the same release there, or "
                f"{_choose(bool(local_threads(spark)))}"
            )
    _asked.add(session)
    if not local_threads(spark):
        note_cores(spark, len(answers))


def workers_see(spark: SparkSession, path: str) -> bool:
    """Whether all of Spark's workers find a file of this machine's; with a local master they do.

    Parameters
    ----------
    spark : SparkSession
        whose workers are asked
    path : str
        without a scheme
    """
    return bool(local_threads(spark)) or all(_ask_all(spark, _looks_for(path), "boolean"))


def workers_see_folder(spark: SparkSession, folder: str) -> bool:
    """Whether all of Spark's workers see what this process writes into a local folder.

    Parameters
    ----------
    spark : SparkSession
        whose workers are asked
    folder : str
        without a scheme; it is made where it is not there

    Raises
    ------
    OSError
        this process cannot write there
    """
    if local_threads(spark):
        return True
    os.makedirs(folder, exist_ok=True)
    probe = os.path.join(folder, f".sparkml_sgdals-{uuid.uuid4().hex}")
    with open(probe, "wb"):
        pass
    try:
        return workers_see(spark, probe)
    finally:
        os.unlink(probe)


def _use_own_python() -> None:
    """Let workers on this machine run this process's Python, unless the user named one.

    PySpark takes `python3` from the PATH otherwise, which is another one wherever a virtual
    environment is not activated.
    """
    if "PYSPARK_PYTHON" in os.environ:
        return
    from pyspark import SparkContext

    # a classic session's own field, read whenever a Python function is handed to Spark
    context: Any = SparkContext._active_spark_context
    if context is not None and getattr(context, "pythonExec", None) == "python3":
        context.pythonExec = sys.executable


def _ask_all(spark: SparkSession, question: Callable[[Any], Any], ddl: str) -> list[Any]:
    """Return one answer with a local master, else one of each core that there is now."""
    # a plain function: an Arrow one would fail, with traces, where there is no pyarrow
    asked = F.udf(question, ddl, useArrow=False)
    local = local_threads(spark)
    each = spark.range(1, numPartitions=1) if local else spark.range(_ROWS).where(_FIRST)
    return [row["told"] for row in each.select(asked("id").alias("told")).collect()]


def _question(names: tuple[str, ...]) -> Callable[[Any], str]:
    # made here, so that it travels by value: a worker without the package can run it
    def answer(_: Any) -> str:
        import importlib
        import importlib.util
        import json
        import sys

        found = [(name, importlib.util.find_spec(name)) for name in names]
        # a folder of that name, without a module of its own, is no package
        missing = [name for name, spec in found if spec is None or spec.origin is None]
        told = {"python": sys.executable, "missing": missing, "version": None}
        if not missing:
            told["version"] = importlib.import_module(names[0]).__version__
        return json.dumps(told)

    return answer


def _looks_for(path: str) -> Callable[[Any], bool]:
    def answer(_: Any) -> bool:
        import os

        return os.path.exists(path)

    return answer


def _lacking(told: dict[str, Any], spark: SparkSession) -> str:
    python, missing = told["python"], told["missing"]
    here = bool(local_threads(spark))
    lacks = f"Spark's Python workers run {python}, which has no {', '.join(missing)}: "
    if here and os.path.abspath(python) == os.path.abspath(sys.executable):
        spec = find_spec(_PACKAGE)
        folder = os.path.dirname(os.path.dirname(str(spec.origin if spec else "")))
        return (
            f"{lacks}install the package there ({sys.executable} -m pip install {folder}), or set "
            f"PYTHONPATH={folder}, before the Spark session starts."
        )
    if not here and missing == [_PACKAGE]:
        return (
            f"{lacks}ship it, spark.addArtifacts('{_PACKAGE}.zip', pyfile=True), or install it on "
            "every executor: docs/how-to/cluster.md."
        )
    return lacks + _choose(here)


def _cannot_start(fault: re.Match[str], spark: SparkSession) -> str:
    here = bool(local_threads(spark))
    if fault["program"]:
        what = f"cannot be started: there is no program {fault['program']!r} where they run"
    elif fault["module"]:
        what = f"cannot be started: their Python has no {fault['module']}"
    elif fault["told"]:
        what = f"cannot be started: {fault['told'].strip()!r} is all that they say"
    else:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        what = f"run another Python than this process's {version}"
    return f"Spark's Python workers {what}: {_choose(here)}"


def _choose(here: bool) -> str:
    if here:
        return (
            f"set the environment variable PYSPARK_PYTHON={sys.executable} before the Spark "
            "session starts."
        )
    return (
        "install sparkml_sgdals on every executor, or set the environment variable PYSPARK_PYTHON "
        "(spark.pyspark.python of spark-submit) to a Python there that has it, before the Spark "
        "session starts: docs/how-to/cluster.md."
    )
