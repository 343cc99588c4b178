"""What a model's user does with its rankings: recommend, find what is similar (driver)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkml_sgdals.ingest.columns import id_column
from sparkml_sgdals.predict.recommending import RankBy, Ranking, recommend, similar
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.model_state import ModelState

__all__ = ["RankingMethods"]


class RankingMethods:
    """Methods of the model that order items for users, or users for items."""

    _scoring_state: Callable[[], ModelState]
    _id_types: tuple[str, str]
    _session: Callable[[], SparkSession]
    getUserCol: Callable[[], str]
    getItemCol: Callable[[], str]
    getClipPredictions: Callable[[], bool]

    def recommendForAllUsers(
        self, numItems: int, excludeSeen: DataFrame | None = None, rankBy: RankBy = "prediction"
    ) -> DataFrame:
        """Return the best items for every user, with the schema of ALSModel's method of this name.

        Parameters
        ----------
        numItems : int
            at most so many for each
        excludeSeen : DataFrame | None
            a table with the columns userCol and itemCol: pairs not to recommend
        rankBy : RankBy
            "prediction", or its "upper" or "lower" bound one standard deviation of the mean away:
            "upper" explores what the model is unsure of

        Returns
        -------
        DataFrame of userCol and recommendations, an array of structs of itemCol and rating, best
        first, equal ones by id
        """
        return self._recommend("user", numItems, None, excludeSeen, rankBy, "")

    def recommendForAllItems(
        self, numUsers: int, excludeSeen: DataFrame | None = None, rankBy: RankBy = "prediction"
    ) -> DataFrame:
        """Return the best users for every item; see `recommendForAllUsers`."""
        return self._recommend("item", numUsers, None, excludeSeen, rankBy, "")

    def recommendForUserSubset(
        self,
        dataset: DataFrame,
        numItems: int,
        excludeSeen: DataFrame | None = None,
        rankBy: RankBy = "prediction",
        coldCol: str = "",
    ) -> DataFrame:
        """Return the best items for the users in `dataset`, as `recommendForAllUsers` does.

        Parameters
        ----------
        dataset : DataFrame
            a table with the column userCol; a user in it that is not known gets items by their
            biases
        numItems : int
            at most so many for each
        excludeSeen : DataFrame | None
            a table with the columns userCol and itemCol: pairs not to recommend
        rankBy : RankBy
            "prediction", or its "upper" or "lower" bound one standard deviation of the mean away
        coldCol : str
            a further column that says whether the user was not known; empty for none
        """
        return self._recommend("user", numItems, dataset, excludeSeen, rankBy, coldCol)

    def recommendForItemSubset(
        self,
        dataset: DataFrame,
        numUsers: int,
        excludeSeen: DataFrame | None = None,
        rankBy: RankBy = "prediction",
        coldCol: str = "",
    ) -> DataFrame:
        """Return the best users for the items in `dataset`; see `recommendForUserSubset`."""
        return self._recommend("item", numUsers, dataset, excludeSeen, rankBy, coldCol)

    def similarItems(self, dataset: DataFrame, numItems: int) -> DataFrame:
        """Return the items most like those in `dataset` by the cosine of their features.

        Returns
        -------
        DataFrame of itemCol and similar, an array of structs of itemCol and similarity (float,
        -1 to 1), best first, without the item itself; items that are not known are left out
        """
        return self._similar("item", dataset, numItems)

    def similarUsers(self, dataset: DataFrame, numUsers: int) -> DataFrame:
        """Return the users most like those in `dataset`; see `similarItems`."""
        return self._similar("user", dataset, numUsers)

    def _side(self, side: str) -> tuple[FactorTable, str, str, str]:
        """Factors, Param, column and type of ids of one side."""
        state, types = self._scoring_state(), self._id_types
        users, items = state.users, state.items
        if side == "user":
            return users, "userCol", self.getUserCol(), users.index.type_name(types[0])
        return items, "itemCol", self.getItemCol(), items.index.type_name(types[1])

    def _subset(self, dataset: DataFrame, side: str) -> Any:
        table, param, name, _ = self._side(side)
        ids = id_column(dataset.schema, param, name, table.index.kind).alias("id")
        found = dataset.select(ids).where(F.col("id").isNotNull()).distinct().toArrow()
        return found.column("id").combine_chunks()

    def _recommend(
        self,
        side: str,
        count: int,
        dataset: DataFrame | None,
        seen: DataFrame | None,
        rank_by: str,
        cold: str,
    ) -> DataFrame:
        queries, param, name, id_type = self._side(side)
        candidates, other_param, other, other_type = self._side(
            "item" if side == "user" else "user"
        )
        state = self._scoring_state()
        ranking = Ranking.of(state, count, rank_by, self.getClipPredictions())
        if seen is not None:
            schema = seen.schema
            seen = seen.select(
                id_column(schema, param, name, queries.index.kind).alias("query"),
                id_column(schema, other_param, other, candidates.index.kind).alias("candidate"),
            )
        subset = None if dataset is None else self._subset(dataset, side)
        spark = self._session() if dataset is None else dataset.sparkSession
        ranked = recommend(spark, state, queries, candidates, ranking, subset, seen)
        fields = f"array<struct<`{other}`:{other_type},rating:float>>"
        columns = [
            F.col("query").cast(id_type).alias(name),
            F.col("recommendations").cast(fields).alias("recommendations"),
        ]
        return ranked.select(*columns, *([F.col("cold").alias(cold)] if cold else []))

    def _similar(self, side: str, dataset: DataFrame, count: int) -> DataFrame:
        table, _, name, id_type = self._side(side)
        ranked = similar(dataset.sparkSession, table, count, self._subset(dataset, side))
        fields = f"array<struct<`{name}`:{id_type},similarity:float>>"
        return ranked.select(
            F.col("query").cast(id_type).alias(name),
            F.col("recommendations").cast(fields).alias("similar"),
        )
