"""What the arithmetic has to know of the Params: plain numbers, frozen and JSON-able."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

__all__ = ["CHOSEN", "Settings", "Solver"]

Solver = Literal["bayes", "sgd", "minibatch", "isgd"]

CHOSEN: Final = -1.0
"""in the place of a lambda that is chosen from the table"""

_CENTRE: Final = 2.0 / 3.0
"""where the prior of a feature lies that is not negative, in units of its deviation"""
_LATER: Final[dict[str, Any]] = {
    "positive": False,
    "alpha": 1.0,
    "num_negatives": 0,
    "ranking_size": 0,
    "ranking_sample": 0,
    "table_rank": 0,
    "unobserved_weight": 0.1,
    "num_partners": 0,
    "repeat_items": False,
    "featured": False,
    "forget_after": 0,
    "forget_after_micros": 0,
    "nonnegative": False,
}
"""what stored settings that lack it were learned with, by the names they have there"""
_STORED_AS: Final = {"learns_events": "positive"}
"""names in files, where they are not those of fields"""


@dataclass(frozen=True)
class Settings:
    """Settings of learning, the same on driver and executors and in a model path.

    Without defaults: those are the Params'.
    """

    solver: Solver
    rank: int
    max_iter: int
    tol: float
    seed: int
    step_size: float
    regs: tuple[float, float, float, float]
    """lambda of user bias, item bias, user factor, item factor; CHOSEN where a table of events
    has to say"""
    block_size: int
    bias_prior: float
    factor_prior: float
    noise: float
    init_std: float
    drift: float
    implicit_prior: bool
    learns_events: bool
    """whether rows are events (positive-only feedback), not ratings"""
    alpha: float
    num_negatives: int
    ranking_size: int
    """N of Recall@N and MRR@N of a stream; 0 for none"""
    ranking_sample: int
    """items that the item of an event or rating is ranked among; 0 for all"""
    table_rank: int
    """features by which a table of events is fitted as a whole; 0 where models are not, as those
    that streams begin"""
    unobserved_weight: float
    """weight of a pair without an event, where a table is fitted"""
    num_partners: int
    """items at most that are remembered of each as done about when it is; 0 for none"""
    repeat_items: bool | None
    """whether an item that a user has done may come again; None where the events say so"""
    featured: bool
    """whether features of users or items say where their prior means lie"""
    forget_after: int
    """events without one of its own after which a user is forgotten; 0 for never"""
    forget_after_micros: int
    """the same as a time, in microseconds; one of the two is 0"""
    nonnegative: bool
    """whether no feature falls below 0; biases may"""

    @property
    def centre(self) -> float:
        """What features are held less of: where their prior lies above 0, beside biases."""
        if not self.nonnegative or self.learns_events:
            return 0.0
        return _CENTRE * math.sqrt(self.factor_prior)

    @property
    def lowest(self) -> float:
        """What no feature falls below, as it is held."""
        return 0.0 - self.centre if self.nonnegative else -math.inf

    @property
    def fits_events(self) -> bool:
        """Whether tables of events are fitted as a whole, beside what the filter learns."""
        return self.table_rank > 0

    @property
    def pairs_items(self) -> bool:
        """Whether it is learned which items stand together."""
        return self.num_partners > 0 and self.learns_events and self.solver == "bayes"

    @property
    def draws_prior(self) -> bool:
        """Whether the prior means of ids are drawn from influences of those they come with."""
        return self.solver == "bayes" and self.implicit_prior and not self.learns_events

    @property
    def ranks_ratings(self) -> bool:
        """Whether rated items are ranked, for which the model remembers who has rated what."""
        return bool(self.ranking_size) and not self.learns_events

    def unranked(self) -> Settings:
        """Return the same settings without ranking, which learning and serving do not depend on."""
        return replace(self, ranking_size=0, ranking_sample=0)

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON types, the inverse of `from_json`."""
        values = asdict(self) | {"regs": list(self.regs)}
        for name in ("featured", "forget_after", "forget_after_micros", "nonnegative"):
            if not values[name]:
                # as in files of before there were any
                del values[name]
        return {_STORED_AS.get(name, name): value for name, value in values.items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Settings:
        """Return settings from what `to_json` gave; unknown or missing names raise TypeError."""
        known: dict[str, Any] = _LATER | values | {"regs": tuple(values["regs"])}
        fields = {stored: name for name, stored in _STORED_AS.items()}
        return cls(**{fields.get(name, name): value for name, value in known.items()})
