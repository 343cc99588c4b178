"""What a fit did, for its user (driver)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparkml_sgdals.fit.plan import TrainingReport
from sparkml_sgdals.notebook import html_table, number, pictures
from sparkml_sgdals.state.model_state import ModelState

__all__ = ["TrainingSummary"]


@dataclass(frozen=True)
class TrainingSummary:
    """What a fit, or an update as large as one, did.

    Attributes
    ----------
    form : str
        "one task", "4 blocks", "mini-batches", or "nothing" where there was nothing to learn
    ratings, users, items : int
        how many the model has learned, and of how many ids
    totalIterations : int
        sweeps or passes done, fewer than maxIter where `tol` ended them
    rmse : list[float]
        training RMSE by sweep or pass, in units of the ratings; empty for 'minibatch'
    noiseVariance : float
        variance of a rating about its prediction, in units of the ratings squared; as set, not as
        learned, where there was no sweep
    seconds : dict[str, float]
        time by phase, in seconds
    """

    form: str
    ratings: int
    users: int
    items: int
    totalIterations: int
    rmse: list[float]
    noiseVariance: float
    seconds: dict[str, float]

    @classmethod
    def of(cls, state: ModelState, report: TrainingReport) -> TrainingSummary:
        """Return the summary of a state that has just been learned."""
        return cls(
            form=report.form,
            ratings=state.counters.ratings,
            users=state.ids[0],
            items=state.ids[1],
            totalIterations=report.passes,
            rmse=list(report.rmse),
            noiseVariance=state.noise * state.scale.spread**2,
            seconds=dict(report.seconds),
        )

    def plot(self) -> Any:
        """Draw the training RMSE by pass: a matplotlib Figure (extra `plot`).

        Raises
        ------
        ValueError
            none was taken
        """
        return pictures().plot_passes(self.rmse, f"{self.ratings:,} ratings, {self.form}")

    def _repr_html_(self) -> str:
        phases = [(f"seconds, {name}", f"{value:.2f}") for name, value in self.seconds.items()]
        rows = [
            ("ratings", number(self.ratings)),
            ("users", number(self.users)),
            ("items", number(self.items)),
            ("learned in", self.form),
            ("passes", self.totalIterations),
            ("training RMSE by pass", ", ".join(map(number, self.rmse)) or "not taken"),
            ("noise variance", number(self.noiseVariance)),
        ]
        return html_table("Training summary", rows + phases)

    def __str__(self) -> str:
        """Return a few lines to read."""
        sweeps = ", ".join(f"{value:.4f}" for value in self.rmse) or "not taken"
        phases = ", ".join(f"{name} {value:.2f} s" for name, value in self.seconds.items())
        return (
            f"{self.ratings} ratings of {self.users} users and {self.items} items, {self.form}\n"
            f"training RMSE by pass: {sweeps}\n"
            f"noise variance: {self.noiseVariance:.4f}\n"
            f"time: {phases}"
        )
