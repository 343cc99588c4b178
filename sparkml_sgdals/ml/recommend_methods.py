"""What a model's user does with its rankings: recommend, find what is similar (driver)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkml_sgdals.arrays.given_ids import given_ids, is_scalar, listed, lists_ids
from sparkml_sgdals.ingest.bad_rows import column_names
from sparkml_sgdals.ingest.columns import (
    RatingColumns,
    has_column,
    id_column,
    id_type_name,
    quoted,
    select_ratings,
)
from sparkml_sgdals.ingest.frames import Table, as_table, is_spark
from sparkml_sgdals.learn.one_batch import check_folds_in
from sparkml_sgdals.ml.given_pairs import GivenPairs, IdColumn, Pairs, read_pairs
from sparkml_sgdals.predict.choice import Choice
from sparkml_sgdals.predict.new_users import recommend_new_users
from sparkml_sgdals.predict.ranking_in_place import recommend_in_place, similar_in_place
from sparkml_sgdals.predict.recommending import RankBy, Ranking, recommend, similar
from sparkml_sgdals.predict.seen import remembered_pairs
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.store.overlay import Overlay

__all__ = ["RankingMethods", "Seen", "TableOrIds"]

Seen = Pairs | bool | None
"""Pairs not to recommend: a table of them, or whether those that the model remembers."""
TableOrIds = Table
"""A table with a column of ids, or a list, array or column of them."""


class RankingMethods:
    """Methods of the model that order items for users, or users for items."""

    _state: ModelState
    _stored: Overlay | None
    _scoring_state: Callable[[], ModelState]
    _with_items: Callable[[str], ModelState]
    _id_types: tuple[str, str]
    _session: Callable[[], SparkSession]
    getUserCol: Callable[[], str]
    getItemCol: Callable[[], str]
    getClipPredictions: Callable[[], bool]
    getHandleInvalid: Callable[[], str]
    ratingColumns: Callable[[], RatingColumns]

    def recommendForAllUsers(
        self,
        numItems: int,
        excludeSeen: Seen = None,
        rankBy: RankBy = "prediction",
        candidates: Pairs | None = None,
    ) -> DataFrame:
        """Return the best items for every user, with the schema of ALSModel's method of this name.

        Parameters
        ----------
        numItems : int
            at most so many for each
        excludeSeen : Seen
            a table with the columns userCol and itemCol, or one that such a method gave: pairs not
            to recommend; a list or column of items: not for anybody; True: what the model
            remembers, which it does of events, and of ratings where rankingSize is set
        rankBy : RankBy
            "prediction", or its "upper" or "lower" bound one standard deviation of the mean away:
            "upper" explores what the model is unsure of
        candidates : Pairs | None
            a list, or a table of the column itemCol alone: items to choose from, for every user; a
            table with userCol and itemCol: each user's own. Those not known are not ranked

        Returns
        -------
        DataFrame of userCol and recommendations, an array of structs of itemCol and rating, best
        first, equal ones by id
        """
        return self._recommend("user", numItems, None, excludeSeen, rankBy, "", candidates)

    def recommendForAllItems(
        self,
        numUsers: int,
        excludeSeen: Seen = None,
        rankBy: RankBy = "prediction",
        candidates: Pairs | None = None,
    ) -> DataFrame:
        """Return the best users for every item; see `recommendForAllUsers`."""
        return self._recommend("item", numUsers, None, excludeSeen, rankBy, "", candidates)

    def recommendForUserSubset(
        self,
        dataset: TableOrIds,
        numItems: int,
        excludeSeen: Seen = None,
        rankBy: RankBy = "prediction",
        coldCol: str = "",
        candidates: Pairs | None = None,
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
            a table with the columns userCol and itemCol, or one that such a method gave: pairs not
            to recommend; a list or column of items: not for anybody; True: what the model
            remembers, which it does of events, and of ratings where rankingSize is set
        rankBy : RankBy
            "prediction", or its "upper" or "lower" bound one standard deviation of the mean away
        coldCol : str
            a further column that says whether the user was not known; empty for none
        candidates : Pairs | None
            a list, or a table of the column itemCol alone: items to choose from, for every user; a
            table with userCol and itemCol: each user's own. Those not known are not ranked
        """
        return self._recommend("user", numItems, dataset, excludeSeen, rankBy, coldCol, candidates)

    def recommendForItemSubset(
        self,
        dataset: TableOrIds,
        numUsers: int,
        excludeSeen: Seen = None,
        rankBy: RankBy = "prediction",
        coldCol: str = "",
        candidates: Pairs | None = None,
    ) -> DataFrame:
        """Return the best users for the items in `dataset`; see `recommendForUserSubset`."""
        return self._recommend("item", numUsers, dataset, excludeSeen, rankBy, coldCol, candidates)

    def recommendForRatings(
        self,
        dataset: Table,
        numItems: int,
        excludeSeen: bool = True,
        rankBy: RankBy = "prediction",
        candidates: Pairs | None = None,
    ) -> DataFrame:
        """Return the best items for people whom the model does not know, from their ratings.

        Each gets the list that a stream would give to a new user with these ratings, the items
        being left as they are. Nothing is stored, and what the model may know of a user of the same
        id is not used. For models of ratings of solver 'bayes'.

        Parameters
        ----------
        dataset : Table
            userCol, itemCol, ratingCol, and timestampCol and weightCol where they are set and among
            the columns; users by ids of the model's kind, as many as there are
        numItems : int
            at most so many for each
        excludeSeen : bool
            whether to leave out the items that a user rates here
        rankBy : RankBy
            "prediction", or its "upper" or "lower" bound one standard deviation of the mean away
        candidates : Pairs | None
            a list, or a table of the column itemCol alone: items to choose from, for everybody

        Returns
        -------
        DataFrame of userCol and recommendations, as `recommendForAllUsers`

        Raises
        ------
        ValueError
            a column is missing, a stream, a model of events or of another solver, or, once the
            result is used, rows that cannot be learned (handleInvalid)
        TypeError
            a column of a wrong type
        """
        if not isinstance(excludeSeen, bool):
            raise TypeError(
                "excludeSeen of recommendForRatings is True or False: whether to leave out what a "
                f"user rates here, got a {type(excludeSeen).__name__}. What nobody is to get is "
                "left out of candidates."
            )
        # what scores are made of no longer says that it is of events
        check_folds_in(self._state.settings)
        state = self._with_items("To rank for people whom it does not know")
        users, param, name, _ = self._side("user")
        items, _, item, item_type = self._side("item")
        columns = self.ratingColumns()
        dataset = as_table(
            dataset, "dataset", columns.in_order, "rank for the rows of a batch in foreachBatch"
        )
        schema = dataset.schema
        time, weight = (
            one if one and has_column(schema, one) else None
            for one in (columns.time, columns.weight)
        )
        columns = replace(columns, time=time, weight=weight, features=(None, None))
        ranking = Ranking.of(self._state, numItems, rankBy, self.getClipPredictions())
        among = self._choice("user", candidates, None)
        if among.among is not None:
            raise ValueError(
                "candidates of recommendForRatings are the same for everybody: give a list, or a "
                f"table with the column {item!r} and without {name!r}."
            )
        ranked = recommend_new_users(
            dataset.sparkSession,
            select_ratings(dataset, columns, (users.index.kind, items.index.kind)),
            state,
            ranking,
            among,
            leave_out=excludeSeen,
            names=column_names(columns) if self.getHandleInvalid() == "error" else None,
        )
        fields = f"array<struct<{quoted(item)}:{item_type},rating:float>>"
        return ranked.select(
            F.col("query").cast(id_type_name(schema, param, name)).alias(name),
            F.col("recommendations").cast(fields).alias("recommendations"),
        )

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
        given = listed(given)
        if lists_ids(given):
            return given_ids(given, table.index.kind, side).drop_null().unique()
        if given is not None and is_scalar(given):
            given = given.item() if isinstance(given, (np.generic, np.ndarray)) else given
            raise TypeError(
                f"{side}s are given as a table with the column {name!r} or as a list, got "
                f"{given!r}: write [{given!r}]"
                + (f", or recommendOne({given!r}, n) for one at once." if side == "user" else ".")
            )
        dataset = as_table(given, "dataset", [name], f"collect its {side}s into a table")
        ids = id_column(dataset.schema, param, name, table.index.kind).alias("id")
        found = dataset.select(ids).where(F.col("id").isNotNull()).distinct().toArrow()
        return found.column("id").combine_chunks()

    def _columns(self, side: str) -> tuple[IdColumn, IdColumn]:
        """Return what queries of this side are called in tables, and their candidates."""
        found = []
        for one in (side, "item" if side == "user" else "user"):
            table, param, name, _ = self._side(one)
            found.append(IdColumn(one, param, name, table.index.kind))
        return found[0], found[1]

    def _seen(self, given: Seen, side: str = "user") -> GivenPairs:
        """Return pairs not to recommend: queries are of this side, candidates of the other."""
        if given is not True:
            given = None if given is False else given
            return read_pairs(given, "excludeSeen", *self._columns(side))
        pairs = self._session().createDataFrame(remembered_pairs(self._state))
        other = "item" if side == "user" else "user"
        both = pairs.select(F.col(side).alias("query"), F.col(other).alias("candidate"))
        return GivenPairs(pairs=both)

    def _seen_pairs(self, given: Seen) -> DataFrame | None:
        """Return pairs of users and items not to recommend, query and candidate, to judge by."""
        seen = self._seen(given)
        if seen.ids is not None:
            raise ValueError(
                "Lists are judged without pairs that users have seen, and excludeSeen holds items "
                f"alone: give a table with the columns {self.getUserCol()!r} and "
                f"{self.getItemCol()!r}."
            )
        return seen.pairs

    def _pairs(self, table: DataFrame) -> DataFrame:
        """Return the pairs of a table: query, the user, and candidate, the item."""
        users, items = self._columns("user")
        return table.select(
            id_column(table.schema, users.param, users.name, users.kind).alias("query"),
            id_column(table.schema, items.param, items.name, items.kind).alias("candidate"),
        )

    def _choice(self, side: str, candidates: Pairs | None, seen: Seen) -> Choice:
        """Return which candidates queries of one side have."""
        among = read_pairs(candidates, "candidates", *self._columns(side))
        gone = self._seen(seen, side)
        return Choice(among.ids, gone.ids, among.pairs, gone.pairs)

    def _recommend(
        self,
        side: str,
        count: int,
        dataset: Any,
        seen: Seen,
        rank_by: str,
        cold: str,
        candidates: Pairs | None,
    ) -> DataFrame:
        queries, _, name, id_type = self._side(side)
        offered, _, other, other_type = self._side("item" if side == "user" else "user")
        state = self._scoring_state()
        ranking = Ranking.of(state, count, rank_by, self.getClipPredictions())
        if ranking.sign and self._state.settings.learns_events:
            raise ValueError(
                f"rankBy={rank_by!r} needs deviations of ratings, and this model was learned from "
                "events (implicitPrefs=True): rank by 'prediction'."
            )
        subset = None if dataset is None else self._subset(dataset, side)
        spark = dataset.sparkSession if is_spark(dataset) else self._session()
        choice, stored = self._choice(side, candidates, seen), self._stored
        if stored is None:
            ranked = recommend(spark, state, queries, offered, ranking, subset, choice)
        else:
            ranked = recommend_in_place(spark, stored, f"{side}s", ranking, subset, choice)
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
