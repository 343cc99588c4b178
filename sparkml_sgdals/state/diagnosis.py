"""May a model be served yet? What it has learned from, and whether it beats mean and biases."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from sparkml_sgdals.arrays.ratings import Ratings
from sparkml_sgdals.notebook import html_table, number, pictures
from sparkml_sgdals.state.model_state import ModelState

__all__ = ["ENOUGH", "Diagnosis", "RankingDiagnosis", "diagnose_state", "learned_from"]

ENOUGH: Final = 1_000
"""predictions below which no verdict is given"""


@dataclass(frozen=True)
class Diagnosis:
    """What a model knows and how well it predicts.

    Attributes
    ----------
    ratings, users, items : int
        what it has learned from
    thinUsers, thinItems : float
        share of ids with fewer than `minRatings` ratings
    evidence : str
        "held-out" or "prequential": which ratings were predicted
    predicted : int
        how many
    rmse, baselineRmse : float
        of the model and of mean and biases on them; NaN without any
    coldPredicted : int
        of them, ratings by users or of items that the model has not learned; held out alone
    coldRmse, coldPlainRmse : float | None
        of these, as predicted, and as without what features say; None without any
    beatsBaseline
        the verdict
    featuresHelp
        whether features predict ids better that the model has not learned
    """

    ratings: int
    users: int
    items: int
    minRatings: int
    thinUsers: float
    thinItems: float
    evidence: str
    predicted: int
    rmse: float
    baselineRmse: float
    coldPredicted: int = 0
    coldRmse: float | None = None
    coldPlainRmse: float | None = None

    @property
    def featuresHelp(self) -> bool:
        """Whether what features say of ids without ratings is better than nothing."""
        if self.coldRmse is None or self.coldPlainRmse is None:
            return False
        return self.coldRmse < self.coldPlainRmse

    @property
    def beatsBaseline(self) -> bool:
        """Whether the predictions are better than those of mean and biases alone."""
        return self.predicted >= ENOUGH and self.rmse < self.baselineRmse

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.predicted < ENOUGH:
            more = "more " if self.evidence == "held-out" and self.predicted else ""
            return (
                f"Not yet: only {self.predicted} ratings were predicted before they were learned, "
                f"{ENOUGH} are needed to judge. Give {more}held-out ratings to diagnose."
            )
        if self.rmse == self.baselineRmse:
            # both may be zero, where all ratings are equal
            return f"Not yet: its predictions are those of mean and biases ({self.evidence})."
        gain = 1.0 - self.rmse / self.baselineRmse
        if self.beatsBaseline:
            return f"Yes: its predictions beat mean and biases by {gain:.2%} ({self.evidence})."
        return (
            f"Not yet: its predictions are {-gain:.2%} worse than mean and biases "
            f"({self.evidence})."
        )

    def _cold(self) -> str:
        """Say how ids are predicted that the model has not learned."""
        assert self.coldRmse is not None
        assert self.coldPlainRmse is not None
        told = f"{self.coldRmse:.4f} on {self.coldPredicted:,} ratings of new users or items"
        if self.coldRmse == self.coldPlainRmse:
            return f"{told}, by mean and biases"
        gain = 1.0 - self.coldRmse / self.coldPlainRmse
        helps = f"{abs(gain):.2%} {'better' if gain > 0 else 'worse'}"
        return f"{told}, {helps} than the {self.coldPlainRmse:.4f} without their features"

    def plot(self) -> Any:
        """Draw both errors: a matplotlib Figure (extra `plot`).

        Raises
        ------
        ValueError
            nothing was predicted
        """
        errors = {"this model": self.rmse, "mean and biases": self.baselineRmse}
        return pictures().plot_errors(errors, f"{self.predicted:,} {self.evidence} ratings")

    def _repr_html_(self) -> str:
        few = f"{self.thinUsers:.0%} of users, {self.thinItems:.0%} of items"
        rows = [
            ("ratings", number(self.ratings)),
            ("users", number(self.users)),
            ("items", number(self.items)),
            (f"with fewer than {self.minRatings} ratings", few),
            ("RMSE", number(self.rmse)),
            ("RMSE of mean and biases", number(self.baselineRmse)),
            ("on", f"{self.predicted:,} {self.evidence} ratings"),
        ]
        if self.coldPredicted:
            rows.append(("RMSE of new ids", self._cold()))
        return html_table("Diagnosis", rows, f"Serve it? {self.verdict}")

    def __str__(self) -> str:
        """Return the diagnosis as lines of text."""
        return "\n".join(
            [
                f"learned from   {self.ratings:,} ratings, {self.users:,} users, "
                f"{self.items:,} items",
                f"thin           {self.thinUsers:.0%} of users and {self.thinItems:.0%} of items "
                f"have fewer than {self.minRatings} ratings",
                f"RMSE           {self.rmse:.4f} against {self.baselineRmse:.4f} of mean and "
                f"biases, on {self.predicted:,} {self.evidence} ratings",
                *([f"new ids        {self._cold()}"] if self.coldPredicted else []),
                f"serve it?      {self.verdict}",
            ]
        )


@dataclass(frozen=True, kw_only=True)
class RankingDiagnosis(Diagnosis):
    """What a model of events knows and how well it ranks.

    `predicted` are held-out pairs of users and items; all RMSE are NaN or None: there are no
    ratings.

    Attributes
    ----------
    k : int
        length of the lists
    judged : int
        users with anything held out, whom the means are over
    recall, ndcg, baselineRecall, baselineNdcg : float
        Recall@k and NDCG@k of all items that the user has not done, those that have joined by their
        features among them, and of the most popular ones; NaN without any
    coldLists : int
        lists by which features are judged: of items that the model has not learned, ranked among
        themselves, and of learned items for users that it has not learned
    coldRecall, coldNdcg, coldPlainRecall, coldPlainNdcg : float | None
        of these, by their features, and without: new items in any order, learned ones as for
        whoever is not known; None without any
    coldError : float | None
        standard error of `coldNdcg`
    """

    rmse: float = math.nan
    baselineRmse: float = math.nan
    k: int
    judged: int = 0
    recall: float = math.nan
    ndcg: float = math.nan
    baselineRecall: float = math.nan
    baselineNdcg: float = math.nan
    coldLists: int = 0
    coldRecall: float | None = None
    coldNdcg: float | None = None
    coldPlainRecall: float | None = None
    coldPlainNdcg: float | None = None
    coldError: float | None = None

    @property
    def featuresHelp(self) -> bool:
        """Whether features rank better than nothing does, by more than two standard errors."""
        if self.coldNdcg is None or self.coldPlainNdcg is None or self.coldError is None:
            return False
        return self.coldNdcg - self.coldPlainNdcg > 2.0 * self.coldError

    @property
    def beatsBaseline(self) -> bool:
        """Whether its lists are better than the most popular items."""
        return self.predicted >= ENOUGH and self.ndcg > self.baselineNdcg

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.predicted < ENOUGH:
            given = f"only {self.predicted} events were held out" if self.predicted else ""
            return (
                f"Not yet: {given or 'how well it ranks is not known'}, {ENOUGH:,} are needed to "
                f"judge. Give {'more ' if given else ''}held-out events to diagnose."
            )
        pair = f"NDCG@{self.k} {self.ndcg:.4f} for {self.baselineNdcg:.4f}, {self.evidence}"
        if self.beatsBaseline:
            return f"Yes: its lists are better than the most popular items ({pair})."
        return f"Not yet: its lists are no better than the most popular items ({pair})."

    def plot(self) -> Any:
        """Draw NDCG beside that of the most popular items: a matplotlib Figure (extra `plot`).

        Raises
        ------
        ValueError
            nothing was held out
        """
        bars = {"this model": self.ndcg, "most popular": self.baselineNdcg}
        title = f"{self.predicted:,} {self.evidence} events"
        return pictures().plot_errors(bars, title, f"NDCG@{self.k}")

    def _cold_lists(self) -> str:
        """Say how features rank."""
        assert self.coldNdcg is not None
        return (
            f"NDCG@{self.k} {self.coldNdcg:.4f} +- {self.coldError:.4f} by their features in "
            f"{self.coldLists:,} lists, {self.coldPlainNdcg:.4f} without"
        )

    def _rows(self) -> list[tuple[str, str]]:
        rows = [
            (
                "learned from",
                f"{self.ratings:,} events, {self.users:,} users, {self.items:,} items",
            ),
            (
                "thin",
                f"{self.thinUsers:.0%} of users and {self.thinItems:.0%} of items have fewer than "
                f"{self.minRatings} events",
            ),
        ]
        if self.predicted:
            for name, own, other in (
                ("NDCG", self.ndcg, self.baselineNdcg),
                ("Recall", self.recall, self.baselineRecall),
            ):
                rows.append((f"{name}@{self.k}", f"{own:.4f}, most popular items {other:.4f}"))
            rows.append(("on", f"{self.predicted:,} held-out events of {self.judged:,} users"))
        if self.coldNdcg is not None:
            rows.append(("new ids", self._cold_lists()))
        return rows

    def _repr_html_(self) -> str:
        return html_table("Diagnosis", self._rows(), f"Serve it? {self.verdict}")

    def __str__(self) -> str:
        """Return the diagnosis as lines of text."""
        rows = [*self._rows(), ("serve it?", self.verdict)]
        return "\n".join(f"{name:<15}{told}" for name, told in rows)


def learned_from(
    state: ModelState, min_ratings: int, thin_shares: tuple[float, float] | None = None
) -> dict[str, Any]:
    """Return those fields of a diagnosis that say what a model has learned from.

    Parameters
    ----------
    state : ModelState
        the model
    min_ratings : int
        ids with fewer count as thin
    thin_shares : tuple[float, float] | None
        how many users, and items, are thin, where only the rows of their ids are in memory
    """

    def thin(counts: np.ndarray) -> float:
        return float(np.mean(counts < min_ratings)) if counts.size else math.nan

    if thin_shares is None:
        thin_shares = thin(state.users.count), thin(state.items.count)
    return {
        "ratings": state.counters.ratings,
        "users": state.ids[0],
        "items": state.ids[1],
        "minRatings": min_ratings,
        "thinUsers": thin_shares[0],
        "thinItems": thin_shares[1],
    }


def diagnose_state(
    state: ModelState,
    held_out: Ratings | None,
    min_ratings: int,
    started: ModelState | None = None,
    thin_shares: tuple[float, float] | None = None,
) -> Diagnosis:
    """Judge a state on held-out ratings, or on those that it predicted before learning them.

    Parameters
    ----------
    state : ModelState
        the model
    held_out : Ratings | None
        ratings to predict; None: those that it predicted itself
    min_ratings : int
        ids with fewer count as thin
    started : ModelState | None
        the model with those ids of `held_out` besides that features say something of
    thin_shares : tuple[float, float] | None
        how many users, and items, are thin, where only the rows of their ids are in memory
    """
    counters = state.counters
    predicted, rmse = counters.prequential_ratings, counters.prequential_rmse()
    baseline = counters.baseline_rmse()
    cold, cold_rmse, cold_plain = 0, None, None
    if held_out is not None:
        truth = held_out.values.astype(np.float64)
        predicted = truth.size

        def rows(of: ModelState) -> tuple[np.ndarray, np.ndarray]:
            users = of.users.index.find(held_out.user_ids)[held_out.users]
            return users, of.items.index.find(held_out.item_ids)[held_out.items]

        def root_mean_square(predictions: np.ndarray, some: np.ndarray | slice) -> float:
            errors = (truth - state.clip(predictions))[some]
            return float(np.sqrt(np.mean(errors**2))) if errors.size else math.nan

        users, items = rows(state)
        plain = state.predict(users, items)[0]
        told = plain if started is None else started.predict(*rows(started))[0]
        new = (users < 0) | (items < 0)
        cold = int(np.count_nonzero(new))
        if cold:
            cold_rmse, cold_plain = root_mean_square(told, new), root_mean_square(plain, new)
        rmse = root_mean_square(told, slice(None))
        baseline = root_mean_square(state.predict_baseline(users, items), slice(None))

    return Diagnosis(
        **learned_from(state, min_ratings, thin_shares),
        evidence="prequential" if held_out is None else "held-out",
        predicted=predicted,
        rmse=rmse,
        baselineRmse=baseline,
        coldPredicted=cold,
        coldRmse=cold_rmse,
        coldPlainRmse=cold_plain,
    )
