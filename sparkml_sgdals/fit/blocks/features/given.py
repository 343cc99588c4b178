"""What is known of users and items beside their ratings, as blocks are told it (driver).

Of a fresh fit no vector passes through the driver: tasks bring them to the blocks of their ids,
and the driver is told of the columns. Where a table is added to a model, which the driver holds,
they go with its rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from sparkml_sgdals.arrays.hashing import block_of, id_keys
from sparkml_sgdals.arrays.ipc import arrays_from_buffer, to_buffer
from sparkml_sgdals.fit.blocks.features.block import FeatureTotals, SideColumns
from sparkml_sgdals.fit.blocks.features.routing import (
    GatherVectors,
    Look,
    MeasureVectors,
    PutTogether,
    RouteVectors,
    look_of,
)
from sparkml_sgdals.fit.blocks.files import BlockFiles
from sparkml_sgdals.fit.blocks.inbox import Inbox
from sparkml_sgdals.fit.blocks.messages import (
    MESSAGE_DDL,
    SIDES,
    Job,
    Message,
    SideName,
    placed,
)
from sparkml_sgdals.ingest.features import tell_of_bad
from sparkml_sgdals.ingest.side_vectors import SideVectors, TableVectors, refuse_no_vectors
from sparkml_sgdals.learn.features.columns import MOST_IN_PAIRS
from sparkml_sgdals.learn.whole_table import Features
from sparkml_sgdals.spark_jobs import collect_payloads, gathered, phase
from sparkml_sgdals.state.feature_weights import MOST_COLUMNS
from sparkml_sgdals.state.model_state import ModelState

__all__ = [
    "NO_MORE",
    "GivenFeatures",
    "learned_columns",
    "looks_of",
    "seeds",
    "spread",
]

Sides = dict[SideName, SideVectors]


@dataclass(frozen=True)
class GivenFeatures:
    """What is known of users and items beside their ratings.

    Attributes
    ----------
    messages : list[Message]
        what blocks are told in the beginning
    columns : dict[SideName, tuple[SideColumns, tuple[str, ...]]]
        columns of the sides whose weights are learned, and names of places in a vector
    given : DataFrame | None
        the vectors as persisted messages, where they do not lie in files
    """

    messages: list[Message]
    columns: dict[SideName, tuple[SideColumns, tuple[str, ...]]]
    given: DataFrame | None = None

    @property
    def moves(self) -> tuple[bool, bool]:
        """Whether weights of users, and of items, are learned."""
        return "users" in self.columns, "items" in self.columns

    @classmethod
    def to_model(cls, features: Features, job: Job) -> GivenFeatures:
        """Return what to tell of vectors where a table is added to a model."""
        messages: list[Message] = []
        for side, rows in zip(SIDES, features, strict=True):
            if rows is None or not len(rows):
                continue
            of_ids = block_of(id_keys(rows.ids), job.num_blocks)
            for block in range(job.num_blocks):
                own = rows.take(np.flatnonzero(of_ids == block))
                messages.append((block, side, block, "vectors", to_buffer(own.to_table())))
        return cls(messages, {})

    def put_weights(self, state: ModelState, rows: pa.Table) -> None:
        """Give a state the weights that the messages of the last step tell, in place."""
        weights = list(state.features)
        told = Inbox(0, rows)
        for place, side in enumerate(SIDES):
            if side not in self.columns:
                continue
            columns, names = self.columns[side]
            (learned,) = told.all(side, "weights").values()
            found = columns.weights(FeatureTotals.from_arrays(arrays_from_buffer(learned)), names)
            reached = [
                arrays_from_buffer(payload)["furthest"]
                for payload in told.all(side, "furthest").values()
            ]
            weights[place] = replace(found, furthest=np.max(reached, axis=0))
        state.features = weights[0], weights[1]


NO_MORE: Final = GivenFeatures([], {})


def spread(
    vectors: TableVectors, job: Job, files: BlockFiles | None,
    keep: Callable[[DataFrame], DataFrame],
) -> GivenFeatures:  # fmt: skip
    """Bring vectors to the blocks of their ids, and return what columns they have: two jobs.

    Parameters
    ----------
    vectors : TableVectors
        of a fresh fit
    job : Job
        the fit's
    files : BlockFiles | None
        where blocks have files; None: what moves are rows
    keep : Callable[[DataFrame], DataFrame]
        persists a frame for the rest of the fit

    Raises
    ------
    ValueError
        a vector is none, there are none, or more columns have values than are learned in blocks
    """
    sides: Sides = {
        side: own for side, own in zip(SIDES, vectors.sides, strict=True) if own is not None
    }
    if not sides:
        return NO_MORE
    spark = next(iter(sides.values())).frame.sparkSession
    seeded = spark.createDataFrame(seeds(job, list(sides)), MESSAGE_DDL)
    pieces = seeded
    for side, own in sides.items():
        routed = gathered(own.by_rows()).mapInArrow(RouteVectors(job, side, files), MESSAGE_DDL)
        pieces = pieces.unionByName(routed)
    given = placed(pieces, job).mapInArrow(GatherVectors(job, files), MESSAGE_DDL)
    if files is None:
        given = keep(given)
    with phase(spark, "read features"):
        counted = Inbox(0, collect_payloads(given.where(F.col("kind") == "counted")))
        if files is not None:
            files.drop_tables()
        looks = looks_of(sides, counted)
        at_blocks = placed(seeded, job) if files is not None else given.where("kind = 'given'")
        measured = at_blocks.mapInArrow(MeasureVectors(job, files, looks), MESSAGE_DDL)
        together = measured.repartition(1).mapInArrow(PutTogether(job, files, looks), MESSAGE_DDL)
        told = Inbox(0, collect_payloads(together))
    found = learned_columns(sides, looks, told, job)
    return replace(found, given=None if files is not None else given)


def seeds(job: Job, sides: list[SideName]) -> pa.Table:
    """Return a message for each block of the sides that have features."""
    nothing = pa.py_buffer(b"")
    messages: list[Message] = [
        (block, side, block, "seed", nothing) for side in sides for block in range(job.num_blocks)
    ]
    return pa.Table.from_batches([job.batch(message) for message in messages])


def looks_of(sides: Sides, counted: Inbox) -> dict[SideName, Look]:
    """Return how to look at the vectors of each side; warns of ids that have several."""
    looks: dict[SideName, Look] = {}
    for side, own in sides.items():
        blocks = [_json(payload) for payload in counted.all(side, "counted").values()]
        looks[side] = look_of(blocks)
        differ = sum(block["differ"] for block in blocks)
        own.warn_of_different(differ, [one for block in blocks for one in block["first"]])
    return looks


def learned_columns(
    sides: Sides, looks: dict[SideName, Look], told: Inbox, job: Job
) -> GivenFeatures:
    """Return what blocks are told of columns, and the driver keeps; raises as `spread`."""
    messages: list[Message] = []
    found: dict[SideName, tuple[SideColumns, tuple[str, ...]]] = {}
    for side, own in sides.items():
        size = looks[side].size
        (numbers,) = map(arrays_from_buffer, told.all(side, "measured").values())
        (none,) = map(_json, told.all(side, "none").values())
        tell_of_bad(none["count"], none["first"], size, own.told, own.refuse)
        if not numbers["ids"][0]:
            refuse_no_vectors(own.side)
        if numbers["used"][0] > MOST_IN_PAIRS:
            raise ValueError(
                f"{numbers['used'][0]} columns of features have values, and a fit in blocks learns "
                f"of at most {MOST_IN_PAIRS}: lower numFeatures of HashingTF, or raise "
                f"maxRatingsPerTask and call fit, as one task learns of {MOST_COLUMNS}."
            )
        (columns,) = told.all(side, "columns").values()
        messages += [(block, side, block, "columns", columns) for block in range(job.num_blocks)]
        names = own.names
        if names:
            names = (*names[:size], *map(str, range(len(names), size)))
        found[side] = SideColumns.from_arrays(numbers), names
    return GivenFeatures(messages, found)


def _json(payload: pa.Buffer) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(payload.to_pybytes())
    return told
