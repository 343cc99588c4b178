"""Judge a model of events by its lists, and apart what features say of new ids (driver)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute
from pyspark.sql import DataFrame, SparkSession

from sparkml_sgdals.metrics import chance_of_lists
from sparkml_sgdals.predict.choice import Choice
from sparkml_sgdals.predict.judging import judge_lists
from sparkml_sgdals.predict.recommending import Ranking, recommend
from sparkml_sgdals.predict.seen import remembered_pairs
from sparkml_sgdals.state.diagnosis import RankingDiagnosis, learned_from
from sparkml_sgdals.state.event_scores import serving_state
from sparkml_sgdals.state.model_state import ModelState

__all__ = ["LISTED", "diagnose_rankings"]

LISTED: Final = 10
"""places of the lists that a diagnosis judges"""
_KEYS: Final = ["query", "candidate"]


def diagnose_rankings(
    spark: SparkSession,
    state: ModelState,
    held: pa.Table | None,
    min_ratings: int,
    started: ModelState | None = None,
) -> RankingDiagnosis:
    """Judge a model of events on held-out events.

    Parameters
    ----------
    spark : SparkSession
        ranks
    state : ModelState
        the model
    held : pa.Table | None
        users and items, columns query and candidate, in any order, perhaps repeated; None: nothing
        is judged
    min_ratings : int
        ids with fewer events count as thin
    started : ModelState | None
        the model with those ids of `held` besides that features say something of
    """
    facts = learned_from(state, min_ratings) | {"evidence": "held-out", "k": LISTED}
    if held is None:
        return RankingDiagnosis(**facts, predicted=0)
    users = held.column("query").combine_chunks().unique()
    done = remembered_pairs(state, users).rename_columns(_KEYS)
    pairs = held.select(_KEYS).group_by(_KEYS).aggregate([])
    pairs = pairs.join(done, _KEYS, join_type="left anti").combine_chunks()
    judge = _Judge(spark, done)
    known = serving_state(state)
    told = known if started is None else serving_state(started)
    ours = judge(told, pairs)
    popular = judge(_by_popularity(state, known), pairs)
    found: dict[str, Any] = {
        "recall": ours.recall,
        "ndcg": ours.ndcg,
        "baselineRecall": popular.recall,
        "baselineNdcg": popular.ndcg,
    }
    new = [
        table.index.find(pairs.column(name).combine_chunks()) < 0
        for table, name in ((state.users, "query"), (state.items, "candidate"))
    ]
    if started is not None:
        found |= _by_features(judge, known, told, pairs, new)
    return RankingDiagnosis(
        **facts, predicted=pairs.num_rows, judged=ours.users,
        coldPredicted=int(np.count_nonzero(new[0] | new[1])), **found,
    )  # fmt: skip


@dataclass(frozen=True)
class _Lists:
    """Lists of some users: how many, the means, and the standard error of the second."""

    users: int
    recall: float
    ndcg: float
    error: float


@dataclass(frozen=True)
class _Judge:
    """Ranks by Spark, and judges, without what users have done."""

    spark: SparkSession
    done: pa.Table

    def __call__(self, served: ModelState, pairs: pa.Table, only: pa.Array | None = None) -> _Lists:
        """Judge the lists of all items of a served model, or of some."""
        seen = self.spark.createDataFrame(self.done) if self.done.num_rows else None
        ranking = Ranking.of(served, LISTED, "prediction", clip=False)

        def recommended(ids: pa.Array) -> DataFrame:
            choice = Choice(only=only, seen=seen)
            return recommend(self.spark, served, served.users, served.items, ranking, ids, choice)

        held = self.spark.createDataFrame(pairs)
        judged = judge_lists(held, recommended, seen, served.items.index.ids(), LISTED, apart=True)
        means = judged.means
        return _Lists(judged.users, means["recall"], means["ndcg"], judged.errors["ndcg"])


def _by_popularity(state: ModelState, known: ModelState) -> ModelState:
    """Return a served model that knows nobody, and of items how often they came."""
    served = ModelState.empty(known.settings, state.users.index.kind, state.items.index.kind)
    served.scale = known.scale
    rows, _ = served.items.ensure(state.items.index.ids())
    served.items.mean[rows], served.items.taste[rows] = 0.0, 0.0
    served.items.mean[rows, 0] = state.items.count
    return served


def _by_features(
    judge: _Judge, known: ModelState, told: ModelState, pairs: pa.Table, new: Sequence[Any]
) -> dict[str, Any]:
    """Judge what features say: of new items among themselves, and to new users of learned items.

    Parameters
    ----------
    judge : _Judge
        ranks and judges
    known, told : ModelState
        as served: the model, and the model that knows new ids by their features besides
    pairs : pa.Table
        what is held out
    new : Sequence[Any]
        bool, shape (pairs,): whether the user, and the item, is not known
    """

    def heard(side: str, name: str) -> Any:
        return getattr(told, side).index.find(pairs.column(name).combine_chunks()) >= 0

    def some(wanted: Any) -> pa.Table:
        return pairs.filter(pa.array(wanted))

    both = []
    items = some(new[1] & heard("items", "candidate") & heard("users", "query"))
    if items.num_rows:
        # all that are held out, by whomever
        among = some(new[1] & heard("items", "candidate"))
        among = among.column("candidate").combine_chunks().unique()
        counts = items.group_by("query").aggregate([("candidate", "count")])
        held = counts.column("candidate_count").to_numpy()
        recall, ndcg = (float(each.mean()) for each in chance_of_lists(held, len(among), LISTED))
        both.append((judge(told, items, among), _Lists(held.size, recall, ndcg, 0.0)))
    users = some(new[0] & heard("users", "query") & ~new[1])
    if users.num_rows:
        among = known.items.index.ids()
        both.append((judge(told, users, among), judge(known, users, among)))
    lists = sum(ours.users for ours, _ in both)
    if not lists:
        return {}

    def mean(values: Callable[[tuple[_Lists, _Lists]], float]) -> float:
        return sum(values(pair) * pair[0].users for pair in both) / lists

    variance = sum((ours.error * ours.users / lists) ** 2 for ours, _ in both)
    return {
        "coldLists": lists,
        "coldRecall": mean(lambda pair: pair[0].recall),
        "coldNdcg": mean(lambda pair: pair[0].ndcg),
        "coldPlainRecall": mean(lambda pair: pair[1].recall),
        "coldPlainNdcg": mean(lambda pair: pair[1].ndcg),
        "coldError": float(np.sqrt(variance)),
    }
