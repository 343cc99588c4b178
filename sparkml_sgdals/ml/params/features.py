"""Params of features: what is known of users and items beside their ratings."""

from __future__ import annotations

from typing import Any

from pyspark.ml.param import Param, Params

from sparkml_sgdals.ml.params.converters import param, text

__all__ = ["FeatureParams"]


class FeatureParams(Params):
    """Params of the columns that hold features."""

    userFeaturesCol: Param[str] = param(
        "userFeaturesCol",
        "column of features of the user, a vector or an array of numbers, the same in all rows of "
        "a user (else the newest counts), null where nothing is known; empty for none. Needs "
        "solver 'bayes' and ratings.",
        text,
    )
    itemFeaturesCol: Param[str] = param(
        "itemFeaturesCol",
        "column of features of the item, as userFeaturesCol; empty for none.",
        text,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(userFeaturesCol="", itemFeaturesCol="")

    def getUserFeaturesCol(self) -> str:
        """Value of userFeaturesCol, "" for none."""
        return self.getOrDefault(self.userFeaturesCol)

    def getItemFeaturesCol(self) -> str:
        """Value of itemFeaturesCol, "" for none."""
        return self.getOrDefault(self.itemFeaturesCol)
