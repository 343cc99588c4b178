"""What a model's user does with its rankings: recommend, find what is similar (driver)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkml_sgdals.arrays.given_ids import given_ids
from sparkml_sgdals.ingest.columns import id_column, quoted
from sparkml_sgdals.ingest.frames import Table, as_table, is_spark, lists_ids
from sparkml_sgdals.predict.ranking_in_place import recommend_in_place, similar_in_place
from sparkml_sgdals.predict.recommending import RankBy, Ranking, recommend, similar
from sparkml_sgdals.predict.seen import remembered_pairs
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.store.overlay import Overlay

__all__ = ["RankingMethods", "Seen", "TableOrIds"]

Seen = Table | bool | None
"""Pairs not to recommend: a table of them, or whether those that the model remembers."""
TableOrIds = Table
"""A table with a column of ids, or a list, array or column of them."""


class RankingMethods:
    """Methods of the model that order items for users, or users for items."""

    _state: ModelState
    _stored: Overlay | None
    _scoring_state: Callable[[], ModelState]
    _id_types: tuple[str, str]
    _session: Callable[[], SparkSession]
    getUserCol: Callable[[], str]
    getItemCol: Callable[[], str]
    getClipPredictions: Callable[[], bool]

    def recommendForAllUsers(
        self, numItems: int, excludeSeen: Seen = None, rankBy: RankBy = "prediction"
    ) -> DataFrame:
        """Return the best items for every user, with the schema of ALSModel's method of this name.

        Parameters
        ----------
        numItems : int
            at most so many for each
        excludeSeen : Seen
            a table with the columns userCol and itemCol: pairs not to recommend; True: those that
            the model remembers, which it does of events, and of ratings where rankingSize is set
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
        self, numUsers: int, excludeSeen: Seen = None, rankBy: RankBy = "prediction"
    ) -> DataFrame:
        """Return the best users for every item; see `recommendForAllUsers`."""
        return self._recommend("item", numUsers, None, excludeSeen, rankBy, "")

    def recommendForUserSubset(
        self,
        dataset: TableOrIds,
        numItems: int,
        excludeSeen: Seen = None,
        rankBy: RankBy = "prediction",
        coldCol: str = "",
    ) -> DataFrame:
        """Return the best items for the users in `dataset`, as `recommendForAllUsers` does.

        Parameters
        ----------
        dataset : TableOrIds
            a table with the column userCol, or a list of ids; a user in it that is not known gets
            items by their biases
        numItems : int
            at most so many for each
        excludeSeen : Seen
            a table with the columns userCol and itemCol: pairs not to recommend; True: those that
            the model remembers, which it does of events, and of ratings where rankingSize is set
        rankBy : RankBy
            "prediction", or its "upper" or "lower" bound one standard deviation of the mean away
        coldCol : str
            a further column that says whether the user was not known; empty for none
        """
        return self._recommend("user", numItems, dataset, excludeSeen, rankBy, coldCol)

    def recommendForItemSubset(
        self,
        dataset: TableOrIds,
        numUsers: int,
        excludeSeen: Seen = None,
        rankBy: RankBy = "prediction",
        coldCol: str = "",
    ) -> DataFrame:
        """Return the best users for the items in `dataset`; see `recommendForUserSubset`."""
        return self._recommend("item", numUsers, dataset, excludeSeen, rankBy, coldCol)

    def similarItems(self, dataset: TableOrIds, numItems: int) -> DataFrame:
        """Return the items most like those in `dataset` by the cosine of their features.

        Parameters
        ----------
        dataset : TableOrIds
            a table with the column itemCol, or a list of ids
        numItems : int
            at most so many for each

        Returns
        -------
        DataFrame of itemCol and similar, an array of structs of itemCol and similarity (float,
        -1 to 1), best first, without the item itself; items that are not known are left out
        """
        return self._similar("item", dataset, numItems)

    def similarUsers(self, dataset: TableOrIds, numUsers: int) -> DataFrame:
        """Return the users most like those in `dataset`; see `similarItems`."""
        return self._similar("user", dataset, numUsers)

    def _side(self, side: str) -> tuple[FactorTable, str, str, str]:
        """Factors, Param, column and type of ids of one side."""
        state, types = self._scoring_state(), self._id_types
        users, items = state.users, state.items
        if side == "user":
            return users, "userCol", self.getUserCol(), users.index.type_name(types[0])
        return items, "itemCol", self.getItemCol(), items.index.type_name(types[1])

    def _subset(self, given: Any, side: str) -> Any:
        """Return the distinct ids of a table, or of a list of ids."""
        table, param, name, _ = self._side(side)
        if lists_ids(given):
            return given_ids(given, table.index.kind, side).drop_null().unique()
        if isinstance(given, (int, str, np.generic)):
            raise TypeError(
                f"{side}s are given as a table with the column {name!r} or as a list, got "
                f"{given!r}: write [{given!r}]"
                + (f", or recommendOne({given!r}, n) for one at once." if side == "user" else ".")
            )
        dataset = as_table(given, "dataset", [name], f"collect its {side}s into a table")
        ids = id_column(dataset.schema, param, name, table.index.kind).alias("id")
        found = dataset.select(ids).where(F.col("id").isNotNull()).distinct().toArrow()
        return found.column("id").combine_chunks()

    def _seen(self, given: Seen, side: str = "user") -> DataFrame | None:
        """Return pairs not to recommend: query, of one side, and candidate, of the other."""
        if given is None or given is False:
            return None
        if given is True:
            pairs = self._session().createDataFrame(remembered_pairs(self._state))
        else:
            names = [self.getUserCol(), self.getItemCol()]
            table = as_table(given, "excludeSeen", names, "excludeSeen is a table of pairs")
            pairs = self._pairs(table).toDF("user", "item")
        other = "item" if side == "user" else "user"
        return pairs.select(F.col(side).alias("query"), F.col(other).alias("candidate"))

    def _pairs(self, table: DataFrame) -> DataFrame:
        """Return the pairs of a table: query, the user, and candidate, the item."""
        users, user_param, user, _ = self._side("user")
        items, item_param, item, _ = self._side("item")
        return table.select(
            id_column(table.schema, user_param, user, users.index.kind).alias("query"),
            id_column(table.schema, item_param, item, items.index.kind).alias("candidate"),
        )

    def _recommend(
        self,
        side: str,
        count: int,
        dataset: Any,
        seen: Seen,
        rank_by: str,
        cold: str,
    ) -> DataFrame:
        queries, _, name, id_type = self._side(side)
        candidates, _, other, other_type = self._side("item" if side == "user" else "user")
        state = self._scoring_state()
        ranking = Ranking.of(state, count, rank_by, self.getClipPredictions())
        if ranking.sign and self._state.settings.learns_events:
            raise ValueError(
                f"rankBy={rank_by!r} needs deviations of ratings, and this model was learned from "
                "events (implicitPrefs=True): rank by 'prediction'."
            )
        subset = None if dataset is None else self._subset(dataset, side)
        spark = dataset.sparkSession if is_spark(dataset) else self._session()
        pairs, stored = self._seen(seen, side), self._stored
        if stored is None:
            ranked = recommend(spark, state, queries, candidates, ranking, subset, pairs)
        else:
            ranked = recommend_in_place(spark, stored, f"{side}s", ranking, subset, pairs)
        fields = f"array<struct<{quoted(other)}:{other_type},rating:float>>"
        columns = [
            F.col("query").cast(id_type).alias(name),
            F.col("recommendations").cast(fields).alias("recommendations"),
        ]
        return ranked.select(*columns, *([F.col("cold").alias(cold)] if cold else []))

    def _similar(self, side: str, dataset: Any, count: int) -> DataFrame:
        table, _, name, id_type = self._side(side)
        spark = dataset.sparkSession if is_spark(dataset) else self._session()
        subset, stored = self._subset(dataset, side), self._stored
        if stored is None:
            ranked = similar(spark, table, count, subset)
        else:
            ranked = similar_in_place(spark, stored, f"{side}s", count, subset)
        fields = f"array<struct<{quoted(name)}:{id_type},similarity:float>>"
        return ranked.select(
            F.col("query").cast(id_type).alias(name),
            F.col("recommendations").cast(fields).alias("similar"),
        )
