"""What a model's user judges it with: its predictions, and its rankings on a table (driver)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.arrays.screening import screen
from sparkml_sgdals.ingest.bad_rows import refuse_invalid
from sparkml_sgdals.ingest.collecting import COLLECT_LIMIT
from sparkml_sgdals.ingest.columns import RatingColumns, column_type, id_column, select_ratings
from sparkml_sgdals.ingest.features import (
    FeatureRows,
    Vectors,
    features_of_table,
    vectors_of,
    with_vectors,
)
from sparkml_sgdals.ingest.frames import Table, as_table
from sparkml_sgdals.ml.recommend_methods import RankingMethods, Seen
from sparkml_sgdals.notebook import html_table, number
from sparkml_sgdals.predict.choice import Choice
from sparkml_sgdals.predict.diagnosing import diagnose_rankings
from sparkml_sgdals.predict.in_place import counts_below
from sparkml_sgdals.predict.judging import (
    JudgedLists,
    held_out_pairs,
    judge_lists,
    ranking_columns,
)
from sparkml_sgdals.predict.ranking_in_place import recommend_in_place
from sparkml_sgdals.predict.recommending import Ranking, recommend
from sparkml_sgdals.state.diagnosis import Diagnosis, RankingDiagnosis, diagnose_state
from sparkml_sgdals.state.feature_values import start_featured
from sparkml_sgdals.state.model_state import ModelState

__all__ = ["RANKING_METRICS", "EvaluationMethods", "RankingEvaluation"]

RANKING_METRICS: Final = ("ndcg", "recall", "mrr", "map", "hitRate", "precision")
"""Fields of `RankingEvaluation` that are means over users."""


@dataclass(frozen=True, repr=False)
class RankingEvaluation:
    """How well a model ranks, on a table: docs/metrics.md has the formula of each metric.

    Attributes
    ----------
    k : int
        length of the lists
    users : int
        users judged: those with anything held out; all means are over them
    recall, ndcg, mrr, map, hitRate, precision : float
        Recall@k, NDCG@k, MRR@k, MAP@k, Hit rate@k and Precision@k; NaN without users
    coverage : float
        share of the items that the model knows that anyone is recommended
    gini : float
        how unevenly recommendations spread over the items that the model knows: 0 evenly, 1 all are
        of one item
    novelty : float
        mean self-information of what is recommended, in bits: high where few have done it; NaN
        where no excludeSeen was given
    heldOut : int
        pairs that count as held out
    items : int
        items that the model knows: all are ranked
    coldUsers : int
        of the users judged, those that the model does not know
    usersLeftOut : int
        users of the test with nothing that counts as held out
    unknownHeldOut : int
        of the pairs held out, those of items that the model does not know; all are missed
    standardErrors : dict[str, float]
        of the means over users, by name
    """

    k: int
    users: int
    recall: float
    ndcg: float
    mrr: float
    map: float
    hitRate: float
    precision: float
    coverage: float
    gini: float
    novelty: float
    heldOut: int
    items: int
    coldUsers: int
    usersLeftOut: int
    unknownHeldOut: int
    standardErrors: dict[str, float]

    @classmethod
    def of(cls, judged: JudgedLists, k: int, items: int, users_left_out: int) -> RankingEvaluation:
        """Return the evaluation of lists that have just been judged."""
        public = {"hit_rate": "hitRate"}
        return cls(
            k=k,
            users=judged.users,
            **{public.get(name, name): value for name, value in judged.means.items()},
            coverage=judged.coverage,
            gini=judged.gini,
            novelty=judged.novelty,
            heldOut=judged.held_out,
            items=items,
            coldUsers=judged.cold_users,
            usersLeftOut=users_left_out,
            unknownHeldOut=judged.unknown_held_out,
            standardErrors={public.get(name, name): v for name, v in judged.errors.items()},
        )

    def toPandas(self) -> pd.DataFrame:
        """Return one row, a column a field, and for each mean one of its standard error.

        Rows of several models stand below each other by pandas.concat.
        """
        row = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "standardErrors"}
        row |= {f"{name}StandardError": self.standardErrors[name] for name in RANKING_METRICS}
        return pd.DataFrame([row])

    def _repr_html_(self) -> str:
        means = [
            (f"{name}@{self.k}", f"{getattr(self, name):.4f} ± {self.standardErrors[name]:.4f}")
            for name in RANKING_METRICS
        ]
        of_lists = [(name, number(getattr(self, name))) for name in ("coverage", "gini", "novelty")]
        users = f"{self.users:,}, of whom {self.coldUsers:,} not known"
        pairs = f"{self.heldOut:,}, of which {self.unknownHeldOut:,} of items not known"
        about = [("users", users), ("pairs held out", pairs), ("ranked among", f"{self.items:,}")]
        return html_table(f"Ranking of the best {self.k}", [*means, *of_lists, *about])

    def __repr__(self) -> str:
        """Return a few lines to read."""
        means = [
            f"{name}@{self.k} {getattr(self, name):.4f} +- {self.standardErrors[name]:.4f}"
            for name in RANKING_METRICS
        ]
        left_out = f", {self.usersLeftOut} left out" if self.usersLeftOut else ""
        return (
            f"{self.users} users ({self.coldUsers} not known{left_out}), {self.heldOut} pairs held "
            f"out ({self.unknownHeldOut} of items not known), ranked among {self.items} items\n"
            f"{', '.join(means[:3])}\n{', '.join(means[3:])}\n"
            f"coverage {self.coverage:.4f}, gini {self.gini:.4f}, novelty {self.novelty:.2f} bits"
        )


class EvaluationMethods(RankingMethods):
    """Methods of the model that judge it."""

    ratingColumns: Callable[[], RatingColumns]
    getRatingCol: Callable[[], str]
    getHandleInvalid: Callable[[], str]
    _kinds: Callable[[], tuple[Any, Any]]
    _features_among: Callable[[list[str]], tuple[str | None, str | None]]

    def diagnose(self, validation: Table | None = None, minRatings: int = 5) -> Diagnosis:
        """Say what the model has learned from and whether it beats its baseline.

        That of ratings is mean and biases, by RMSE; that of events the most popular items, by lists
        of ten of all items that the user has not done.

        Parameters
        ----------
        validation : Table | None
            held-out ratings or events, of which at most a million are used; by default those
            ratings that the model predicted before it learned them (later half of the filter pass
            of a fit, every micro-batch and update after it), and no events. Users and items that
            the model has not learned are judged apart too, by the columns of features that
            userFeaturesCol and itemFeaturesCol name
        minRatings : int
            ids with fewer ratings or events count as thin

        Returns
        -------
        Diagnosis, of a model of events a RankingDiagnosis
        """
        state, stored = self._state, self._stored
        if state.settings.learns_events:
            return self._diagnose_events(validation, minRatings)
        held_out, started = None, None
        if validation is not None:
            names = self.getUserCol(), self.getItemCol(), self.getRatingCol()
            table, vectors, columns, refuse = self._held_out(validation, RatingColumns(*names))
            held_out = encode_ratings(table)
            if stored is not None:
                state = stored.rows_of(held_out.user_ids, held_out.item_ids)
            started = _with_new(state, features_of_table(state, vectors, columns, refuse))
        thin = None if stored is None else counts_below(self._session(), stored, minRatings)
        return diagnose_state(state, held_out, minRatings, started, thin)

    def _diagnose_events(self, validation: Table | None, min_ratings: int) -> RankingDiagnosis:
        state = self._state
        if validation is None:
            return diagnose_rankings(self._session(), state, None, min_ratings)
        columns = replace(self.ratingColumns(), time=None, weight=None, rating_needed=False)
        table, vectors, columns, refuse = self._held_out(validation, columns)
        started = _with_new(state, features_of_table(state, vectors, columns, refuse))
        done = table.filter(pa.compute.greater(table.column("rating"), 0.0))
        held = done.select(["user", "item"]).rename_columns(["query", "candidate"])
        return diagnose_rankings(self._session(), state, held, min_ratings, started)

    def _held_out(
        self, validation: Table, columns: RatingColumns
    ) -> tuple[pa.Table, Vectors, RatingColumns, bool]:
        """Collect good rows of a table and their vectors; by which columns, and what is refused."""
        frame = as_table(validation, "validation", columns.in_order, "diagnose judges on a table")
        kinds, refuse = self._kinds(), self.getHandleInvalid() == "error"
        columns = replace(columns, features=self._features_among(frame.columns))
        given, also = with_vectors(frame, columns)
        rows = select_ratings(given, columns, kinds, also=also).limit(COLLECT_LIMIT)
        table, _, problems = screen(rows.toArrow())
        if refuse:
            refuse_invalid(problems, columns, frame, kinds)
        table, vectors = vectors_of(table, columns)
        return table, vectors, columns, refuse

    def evaluateRanking(
        self,
        test: Table,
        k: int = 10,
        excludeSeen: Seen = None,
        threshold: float | None = None,
    ) -> RankingEvaluation:
        """Judge what the model recommends to the users of a table by what they did in it.

        Each user gets the best `k` of all items that the model knows, as from
        `recommendForUserSubset`; nothing is sampled. A user that the model does not know is judged
        like the others, by what such a user is recommended. An item that it does not know is
        missed.

        Parameters
        ----------
        test : Table
            a table of ratings or events; a pair that it repeats counts once. Under implicitPrefs
            rows with a rating of 0 or less, where there is a ratingCol, do not count
        k : int
            length of the lists
        excludeSeen : Seen
            a table with the columns userCol and itemCol, as a rule what the model was fitted to:
            pairs not to recommend, which do not count in `test` either. Novelty is by its users
        threshold : float | None
            only rows of `test` with at least this rating count; None: all do

        Raises
        ------
        ValueError
            a missing column, a stream, or `k` below 1
        TypeError
            a column or `k` of a wrong type
        """
        if not isinstance(k, (int, np.integer)):
            raise TypeError(f"k must be an integer, the length of the lists, got {k!r}.")
        test = self._judged_on(test)
        state = self._scoring_state()
        ranking = Ranking.of(state, k, "prediction", self.getClipPredictions())
        seen = self._seen_pairs(excludeSeen)
        pairs = held_out_pairs(self._relevant(test, threshold), seen)
        users, items = state.users, state.items

        def recommended(ids: pa.Array) -> DataFrame:
            choice = Choice(seen=seen)
            if self._stored is not None:
                spark = test.sparkSession
                return recommend_in_place(spark, self._stored, "users", ranking, ids, choice)
            return recommend(test.sparkSession, state, users, items, ranking, ids, choice)

        judged = judge_lists(pairs, recommended, seen, self._item_ids(), k)
        tested = self._pairs(test).agg(F.count_distinct("query").alias("users")).toArrow()
        left_out = tested.column("users")[0].as_py() - judged.users
        return RankingEvaluation.of(judged, k, state.ids[1], left_out)

    def rankingColumns(
        self,
        recommendations: Table,
        test: Table,
        excludeSeen: Seen = None,
        threshold: float | None = None,
    ) -> DataFrame:
        """Return recommendations beside what users did, as Spark's RankingEvaluator takes them.

        Parameters
        ----------
        recommendations : Table
            what recommendForAllUsers or recommendForUserSubset returned
        test : Table
            a table of ratings or events, as `evaluateRanking` takes it
        excludeSeen : Seen
            pairs that do not count in `test`, as `evaluateRanking` takes them
        threshold : float | None
            only rows of `test` with at least this rating count; None: all do

        Returns
        -------
        DataFrame of userCol, prediction and label, both array<double>, a row for each user with
        anything held out, with an empty prediction where there are no recommendations. Items are
        their ids; where these are strings, or too large for a double, they are numbers that agree
        within a row: places of the list, and numbers behind it for what is not in it

        Raises
        ------
        ValueError
            a missing column
        TypeError
            a column of a wrong type
        """
        users, param, name, id_type = self._side("user")
        items, _, item, _ = self._side("item")
        ddl = "bigint" if items.index.kind == "int" else "string"
        recommendations = as_table(
            recommendations, "recommendations", [name, "recommendations"], "give a table of lists"
        )
        column_type(recommendations.schema, "recommendations", "recommendations")
        lists = recommendations.select(
            id_column(recommendations.schema, param, name, users.index.kind).alias("query"),
            F.col("recommendations").getField(item).cast(f"array<{ddl}>").alias("found"),
        )
        seen = self._seen_pairs(excludeSeen)
        pairs = held_out_pairs(self._relevant(self._judged_on(test), threshold), seen)
        both = ranking_columns(pairs, lists, self._item_ids())
        return both.select(F.col("query").cast(id_type).alias(name), "prediction", "label")

    def _item_ids(self) -> pa.Array:
        """Return the ids of all items."""
        what = f"To judge rankings among {self._state.ids[1]} items"
        return self._with_items(what).items.index.ids()

    def _judged_on(self, test: Any) -> DataFrame:
        names = self.ratingColumns().in_order
        return as_table(test, "test", names, "rankings are judged on a table")

    def _relevant(self, test: DataFrame, threshold: float | None) -> DataFrame:
        """Return pairs of the rows that count: those that users liked, or did."""
        events = self._state.settings.learns_events
        if threshold is None and not events:
            return self._pairs(test)
        columns = replace(self.ratingColumns(), rating_needed=threshold is not None)
        named = replace(columns, time=None, weight=None)
        kinds = self._side("user")[0].index.kind, self._side("item")[0].index.kind
        rows = select_ratings(test, named, kinds)
        rating = F.col("rating")
        if events:
            rows = rows.where((rating > 0) & ~F.isnan(rating))
        if threshold is not None:
            # as float32, or a rating of 3.3 would be less than 3.3
            least = F.lit(float(threshold)).cast("float")
            rows = rows.where((rating >= least) & ~F.isnan(rating))
        return rows.select(F.col("user").alias("query"), F.col("item").alias("candidate"))


def _with_new(state: ModelState, known: FeatureRows) -> ModelState | None:
    """Return a model that knows ids by their features too; None where there are none."""
    if not any(known):
        return None
    started = state.copy()
    tables = (started.users, started.items)
    for table, rows, weights in zip(tables, known, state.features, strict=True):
        if rows is not None:
            start_featured(table, rows.ids, rows, weights)
    return started
