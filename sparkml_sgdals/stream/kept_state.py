"""What Spark keeps from batch to batch for a stream, such as ids of events (driver or its like)."""

from __future__ import annotations

import logging
from dataclasses import replace

from pyspark.sql import DataFrame, SparkSession

from sparkml_sgdals.store.lease import check_holder
from sparkml_sgdals.store.version_store import VersionStore
from sparkml_sgdals.stream.residents import Resident

__all__ = ["run_again", "versions_retained"]

logger = logging.getLogger(__name__)


def versions_retained(session: SparkSession) -> int:
    """Return for how many batches Spark can go back to what it kept."""
    return int(session.conf.get("spark.sql.streaming.minBatchesToRetain") or 1)


def run_again(batch: DataFrame, batch_id: int, resident: Resident, path: str) -> None:
    """Let Spark write what it keeps of a batch, where it runs one again that is committed.

    Spark does not take the batch for done before that. What it writes may have other bytes, as
    rows come in any order, so the commit is told of them.

    Parameters
    ----------
    batch : DataFrame
        the batch, of which nothing is learned
    batch_id : int
        its number
    resident : Resident
        holds the newest commit
    path : str
        the model path
    """
    store = VersionStore(path)
    commit = resident.commit
    if not store.names(f"{commit.checkpoint}/state"):
        return
    logger.info("batch %d of %s runs again for what Spark keeps of it", batch_id, path)
    batch.write.format("noop").mode("overwrite").save()
    told = commit.offsets
    if batch_id == commit.batch and told is not None and "state" in told:
        state = resident.kept.after(store, commit.checkpoint, batch_id, told["state"])
        commit = replace(commit, offsets=told | {"state": state})
        check_holder(store, resident.token)
        store.put_commit(commit)
        resident.commit = commit
