"""Params of how rows are read: where the ratings are, and which of them cannot be learned."""

from __future__ import annotations

from typing import Any, Final

from pyspark.ml.param import Param
from pyspark.ml.param.shared import HasHandleInvalid, HasWeightCol

from sparkml_sgdals.ingest.columns import RatingColumns
from sparkml_sgdals.ml.params.converters import bounds, one_of, param, text
from sparkml_sgdals.ml.params.features import FeatureParams

__all__ = ["RowParams"]

_REPEATED: Final = ("count", "newest")
_INVALID: Final = ("error", "skip", "keep")


class RowParams(HasHandleInvalid, HasWeightCol, FeatureParams):
    """Params of the rows of tables and streams."""

    userCol: Param[str] = param("userCol", "column of user ids: integers or strings.", text)
    itemCol: Param[str] = param("itemCol", "column of item ids: integers or strings.", text)
    ratingCol: Param[str] = param("ratingCol", "column of ratings: numbers.", text)
    timestampCol: Param[str] = param(
        "timestampCol",
        "column of the time of a rating, which gives the order of learning; empty for none.",
        text,
    )
    weightCol: Param[str] = param(
        "weightCol", "column of weights: w counts as w observations; empty for none.", text
    )
    handleInvalid: Param[str] = param(
        "handleInvalid",
        "ratings that cannot be learned (null id, null or infinite rating, negative weight): "
        "'error' (default of fit and update), 'skip' (default of streams: set aside and counted), "
        "or 'keep' (as skip, but a missing time counts as the earliest and a bad weight as 1).",
        one_of("handleInvalid", _INVALID),
    )
    repeatedPairs: Param[str] = param(
        "repeatedPairs",
        "what a pair of user and item that comes again means: 'count' (one more observation) or "
        "'newest' (of a table, and of each batch, the rating of the greatest timestampCol counts "
        "alone; what earlier batches said stays learned).",
        one_of("repeatedPairs", _REPEATED),
    )
    ratingRange: Param[list[float]] = param(
        "ratingRange",
        "lowest and highest rating: others cannot be learned, see handleInvalid. Where it is not "
        "set, streams and updates set aside what lies more than ten widths outside the ratings "
        "that they have learned, and a fit warns of it.",
        bounds("ratingRange"),
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(
            userCol="user",
            itemCol="item",
            ratingCol="rating",
            timestampCol="",
            weightCol="",
            handleInvalid="error",
            repeatedPairs="count",
        )

    def getUserCol(self) -> str:
        """Value of userCol."""
        return self.getOrDefault(self.userCol)

    def getItemCol(self) -> str:
        """Value of itemCol."""
        return self.getOrDefault(self.itemCol)

    def getRatingCol(self) -> str:
        """Value of ratingCol."""
        return self.getOrDefault(self.ratingCol)

    def getTimestampCol(self) -> str:
        """Value of timestampCol, "" for none."""
        return self.getOrDefault(self.timestampCol)

    def getRepeatedPairs(self) -> str:
        """Value of repeatedPairs."""
        return self.getOrDefault(self.repeatedPairs)

    def getRatingRange(self) -> tuple[float, float] | None:
        """Value of ratingRange, None where it is not set."""
        low_high = self.getOrDefault(self.ratingRange) if self.isSet(self.ratingRange) else None
        return None if low_high is None else (low_high[0], low_high[1])

    def ratingColumns(self) -> RatingColumns:
        """Return the columns that ratings are learned from."""
        return RatingColumns(
            user=self.getUserCol(),
            item=self.getItemCol(),
            rating=self.getRatingCol(),
            time=self.getTimestampCol() or None,
            weight=self.getWeightCol() or None,
            features=(self.getUserFeaturesCol() or None, self.getItemFeaturesCol() or None),
        )
