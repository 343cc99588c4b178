"""Which Params a solver uses or refuses, and those with other defaults where rows are events."""

from __future__ import annotations

from typing import Any, Final

from sparkml_sgdals.ml.params.als import UNUSED_OF_ALS
from sparkml_sgdals.state.settings import CHOSEN

__all__ = ["EVENT_DEFAULTS", "MOST_FILTERED", "refuse_unfit", "unused_params"]

MOST_FILTERED: Final = 32
"""Features of the filter of events at most: more gain nothing there."""

_DESCENT: Final = (
    "regParam",
    "userBiasRegParam",
    "itemBiasRegParam",
    "userFactorRegParam",
    "itemFactorRegParam",
    "stepSize",
)
_BAYES: Final = (
    "biasPriorVariance",
    "factorPriorVariance",
    "noiseVariance",
    "drift",
    "implicitPrior",
)
_NEVER: Final = ("parallelism", *UNUSED_OF_ALS)
_OF_EVENTS: Final = (
    "alpha", "numNegatives", "unobservedWeight", "numPartners", "repeatItems", "forgetUsersAfter",
)  # fmt: skip
_OF_RATINGS: Final = (
    "noiseVariance", "userBiasRegParam", "itemBiasRegParam", "blockSize",
    "predictionStdCol", "clipPredictions", "maxResidentIds", "ratingRange",
    "repeatedPairs",
)  # fmt: skip
_UNUSED: Final[dict[str, tuple[str, ...]]] = {
    "bayes": (*_DESCENT, "blockSize", *_OF_EVENTS, *_NEVER),
    "sgd": (*_BAYES, "blockSize", "predictionStdCol", *_OF_EVENTS, *_NEVER),
    "minibatch": (*_BAYES, "predictionStdCol", "tol", "numThreads", *_OF_EVENTS, *_NEVER),
}
"""Params that a solver does not use."""
_UNUSED_UNDER_IMPLICIT_PREFS: Final[dict[str, tuple[str, ...]]] = {
    "bayes": ("stepSize", *_OF_RATINGS, *_NEVER),
    "isgd": (
        "maxIter",
        "tol",
        "unobservedWeight",
        "numPartners",
        "checkpointInterval",
        *dict.fromkeys((*_BAYES, *_OF_RATINGS, *_NEVER)),
    ),
}
"""The same where rows are events, for the solvers that learn them."""
EVENT_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "bayes": {
        "rank": 128, "maxIter": 16, "tol": 0.0003, "regParam": CHOSEN, "factorPriorVariance": 0.5,
        "biasPriorVariance": 0.1, "numNegatives": 20, "rankingSize": 10,
    },
    "isgd": {
        "stepSize": 0.05, "regParam": 0.01, "initStd": 0.1, "numNegatives": 0, "rankingSize": 10,
    },
}  # fmt: skip
"""Values of Params that were not set, where rows are events."""


def unused_params(solver: str, events: bool, ranking_size: int) -> tuple[str, ...]:
    """Params without an effect under a solver, on events or on ratings."""
    unused = (_UNUSED_UNDER_IMPLICIT_PREFS if events else _UNUSED)[solver]
    return unused if ranking_size else (*unused, "rankingSample")


def refuse_unfit(solver: str, events: bool, negatives: int) -> None:
    """Raise ValueError where a solver does not learn what rows are said to be."""
    if events and solver not in _UNUSED_UNDER_IMPLICIT_PREFS:
        raise ValueError(
            f"solver {solver!r} learns ratings, and implicitPrefs=True asks for events: set "
            "solver to 'bayes' or 'isgd'."
        )
    if solver == "isgd" and not events:
        raise ValueError(
            "solver 'isgd' learns events, not ratings: set implicitPrefs=True, or solver to "
            "'bayes' or 'sgd'."
        )
    if events and solver == "bayes" and not negatives:
        raise ValueError(
            "numNegatives must be at least 1 under solver 'bayes', got 0: without negatives "
            "there is nothing to tell tastes apart by."
        )
