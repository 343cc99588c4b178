"""What the arithmetic has to know of the Params: plain numbers, frozen and JSON-able."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

__all__ = ["Settings", "Solver"]

Solver = Literal["bayes", "sgd", "minibatch", "isgd"]


@dataclass(frozen=True)
class Settings:
    """Settings of learning, the same on driver and executors and in a model path."""

    solver: Solver = "bayes"
    rank: int = 16
    max_iter: int = 5
    tol: float = 0.0
    seed: int = 42
    step_size: float = 0.01
    regs: tuple[float, float, float, float] = (0.1, 0.1, 0.1, 0.1)
    """lambda of user bias, item bias, user factor, item factor"""
    block_size: int = 10_000
    bias_prior: float = 0.2
    factor_prior: float = 0.1
    noise: float = 0.5
    init_std: float = 0.05
    drift: float = 0.0
    implicit_prior: bool = True
    positive: bool = False
    """whether rows are events (positive-only feedback), not ratings"""
    alpha: float = 1.0
    num_negatives: int = 0
    ranking_size: int = 0
    """N of Recall@N and MRR@N of a stream; 0 for none"""
    ranking_sample: int = 0
    """items that the item of an event or rating is ranked among; 0 for all"""

    @property
    def implicit(self) -> bool:
        """Whether prior means are learned from which ids come together."""
        return self.solver == "bayes" and self.implicit_prior and not self.positive

    @property
    def ranks_ratings(self) -> bool:
        """Whether rated items are ranked, for which the model remembers who has rated what."""
        return bool(self.ranking_size) and not self.positive

    def unranked(self) -> Settings:
        """The same without ranking, which learning and serving do not depend on."""
        return replace(self, ranking_size=0, ranking_sample=0)

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types, the inverse of `from_json`."""
        return asdict(self) | {"regs": list(self.regs)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Settings:
        """Settings from what `to_json` gave; unknown names raise TypeError.

        Without `implicit_prior` they are of a release that had none.
        """
        known = {"implicit_prior": False} | values
        return cls(**(known | {"regs": tuple(values["regs"])}))
