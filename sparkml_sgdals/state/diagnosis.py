"""May a model be served yet? What it has learned from, and whether it beats mean and biases."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from sparkml_sgdals.arrays.ratings import Ratings
from sparkml_sgdals.notebook import html_table, number, pictures
from sparkml_sgdals.state.model_state import ModelState

__all__ = ["ENOUGH", "Diagnosis", "diagnose_state"]

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
    beatsBaseline
        the verdict
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

    @property
    def beatsBaseline(self) -> bool:
        """Whether the predictions are better than those of mean and biases alone."""
        return self.predicted >= ENOUGH and self.rmse < self.baselineRmse

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.predicted < ENOUGH:
            return (
                f"Not yet: only {self.predicted} ratings were predicted before they were learned, "
                f"{ENOUGH} are needed to judge. Give held-out ratings to diagnose."
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
                f"serve it?      {self.verdict}",
            ]
        )


def diagnose_state(
    state: ModelState, held_out: Ratings | None, min_ratings: int,
    thin_shares: tuple[float, float] | None = None,
) -> Diagnosis:  # fmt: skip
    """Judge a state on held-out ratings, or on those that it predicted before learning them.

    Where only the rows of their ids are in memory, `thin_shares` says how many users, and items,
    have fewer than `min_ratings` ratings.
    """
    counters = state.counters
    predicted, rmse = counters.prequential_ratings, counters.prequential_rmse()
    baseline = counters.baseline_rmse()
    if held_out is not None:
        users = state.users.index.find(held_out.user_ids)[held_out.users]
        items = state.items.index.find(held_out.item_ids)[held_out.items]
        truth = held_out.values.astype(np.float64)
        predicted = truth.size

        def root_mean_square(predictions: np.ndarray) -> float:
            if not predicted:
                return math.nan
            return float(np.sqrt(np.mean((truth - state.clip(predictions)) ** 2)))

        rmse = root_mean_square(state.predict(users, items)[0])
        baseline = root_mean_square(state.predict_baseline(users, items))

    def thin(counts: np.ndarray) -> float:
        return float(np.mean(counts < min_ratings)) if counts.size else math.nan

    if thin_shares is None:
        thin_shares = thin(state.users.count), thin(state.items.count)
    return Diagnosis(
        ratings=counters.ratings,
        users=state.ids[0],
        items=state.ids[1],
        minRatings=min_ratings,
        thinUsers=thin_shares[0],
        thinItems=thin_shares[1],
        evidence="prequential" if held_out is None else "held-out",
        predicted=predicted,
        rmse=rmse,
        baselineRmse=baseline,
    )
