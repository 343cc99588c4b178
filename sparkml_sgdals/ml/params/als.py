"""Params of Spark's ALS that learning here does not know: code that sets them runs unchanged.

One that has no effect is named in a warning.
"""

from __future__ import annotations

from typing import Any, Final

from pyspark.ml.param import Param, Params

from sparkml_sgdals.ml.params.converters import (
    at_least,
    count_or_time,
    flag,
    microseconds,
    non_negative,
    one_of,
    param,
    positive,
)

__all__ = ["UNUSED_OF_ALS", "ALSParams"]

UNUSED_OF_ALS: Final = (
    "numUserBlocks",
    "numItemBlocks",
    "intermediateStorageLevel",
    "finalStorageLevel",
)
"""Params that no solver uses."""

_STORAGE_LEVELS: Final = (
    "DISK_ONLY",
    "DISK_ONLY_2",
    "DISK_ONLY_3",
    "MEMORY_ONLY",
    "MEMORY_ONLY_2",
    "MEMORY_ONLY_SER",
    "MEMORY_ONLY_SER_2",
    "MEMORY_AND_DISK",
    "MEMORY_AND_DISK_2",
    "MEMORY_AND_DISK_SER",
    "MEMORY_AND_DISK_SER_2",
    "OFF_HEAP",
)


class ALSParams(Params):
    """Params of ALS, most without an effect here, with ALS's own defaults and ranges."""

    implicitPrefs: Param[bool] = param(
        "implicitPrefs",
        "whether rows are events (positive-only feedback), not ratings; for 'bayes' and 'isgd'.",
        flag,
    )
    nonnegative: Param[bool] = param(
        "nonnegative", "whether features must not be negative; biases may be.", flag
    )
    alpha: Param[float] = param(
        "alpha",
        "under implicitPrefs an event of rating r counts (1 + alpha r) / (1 + alpha) times.",
        non_negative("alpha"),
    )
    unobservedWeight: Param[float] = param(
        "unobservedWeight",
        "under implicitPrefs, where a table is fitted: weight of every pair of a user and an item, "
        "that of an event of rating 1 being 1.",
        positive("unobservedWeight"),
    )
    numPartners: Param[int] = param(
        "numPartners",
        "under implicitPrefs: items at most that are remembered of each item as done soon before "
        "or after it; 0 = none, what stands together is not learned.",
        at_least("numPartners", 0),
    )
    repeatItems: Param[bool] = param(
        "repeatItems",
        "under implicitPrefs: whether an item that a user has done may come again; learned from "
        "the events where it is not set.",
        flag,
    )
    forgetUsersAfter: Param[int | str] = param(
        "forgetUsersAfter",
        'under implicitPrefs: events of others, or a time by timestampCol such as "30 days", after '
        "which a user that has done nothing is forgotten, as sessions that have ended; 0 = never.",
        count_or_time("forgetUsersAfter"),
    )
    numUserBlocks: Param[int] = param(
        "numUserBlocks",
        "as in ALS: blocks of users; no effect, see numBlocks.",
        at_least("numUserBlocks", 1),
    )
    numItemBlocks: Param[int] = param(
        "numItemBlocks",
        "as in ALS: blocks of items; no effect, see numBlocks.",
        at_least("numItemBlocks", 1),
    )
    intermediateStorageLevel: Param[str] = param(
        "intermediateStorageLevel",
        "as in ALS: where Spark keeps intermediate data; no effect.",
        one_of("intermediateStorageLevel", _STORAGE_LEVELS),
    )
    finalStorageLevel: Param[str] = param(
        "finalStorageLevel",
        "as in ALS: where Spark keeps factors; no effect, the driver has them.",
        one_of("finalStorageLevel", ("NONE", *_STORAGE_LEVELS)),
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(
            implicitPrefs=False,
            nonnegative=False,
            alpha=1.0,
            unobservedWeight=0.1,
            numPartners=32,
            forgetUsersAfter=0,
            numUserBlocks=10,
            numItemBlocks=10,
            intermediateStorageLevel="MEMORY_AND_DISK",
            finalStorageLevel="MEMORY_AND_DISK",
        )

    def getImplicitPrefs(self) -> bool:
        """Value of implicitPrefs."""
        return self.getOrDefault(self.implicitPrefs)

    def getNonnegative(self) -> bool:
        """Value of nonnegative."""
        return self.getOrDefault(self.nonnegative)

    def getAlpha(self) -> float:
        """Value of alpha."""
        return self.getOrDefault(self.alpha)

    def getUnobservedWeight(self) -> float:
        """Value of unobservedWeight."""
        return self.getOrDefault(self.unobservedWeight)

    def getNumPartners(self) -> int:
        """Value of numPartners."""
        return self.getOrDefault(self.numPartners)

    def getRepeatItems(self) -> bool | None:
        """Value of repeatItems; None where the events are to say."""
        return self.getOrDefault(self.repeatItems) if self.isSet(self.repeatItems) else None

    def getForgetUsersAfter(self) -> int | str:
        """Value of forgetUsersAfter: a number of events, or a time as text."""
        return self.getOrDefault(self.forgetUsersAfter)

    def forgettingEvents(self) -> tuple[int, int]:
        """Return forgetUsersAfter in events and in microseconds, 0 for what it is not."""
        after = self.getForgetUsersAfter()
        return (after, 0) if isinstance(after, int) else (0, microseconds(after) or 0)

    def getNumUserBlocks(self) -> int:
        """Value of numUserBlocks."""
        return self.getOrDefault(self.numUserBlocks)

    def getNumItemBlocks(self) -> int:
        """Value of numItemBlocks."""
        return self.getOrDefault(self.numItemBlocks)

    def getIntermediateStorageLevel(self) -> str:
        """Value of intermediateStorageLevel."""
        return self.getOrDefault(self.intermediateStorageLevel)

    def getFinalStorageLevel(self) -> str:
        """Value of finalStorageLevel."""
        return self.getOrDefault(self.finalStorageLevel)
