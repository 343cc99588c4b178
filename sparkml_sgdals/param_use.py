"""Which Params a solver uses, and those with other defaults where rows are events."""

from __future__ import annotations

from typing import Any, Final

from sparkml_sgdals.als_params import UNUSED_OF_ALS

__all__ = ["EVENT_DEFAULTS", "UNUSED", "UNUSED_UNDER_IMPLICIT_PREFS"]

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
_OF_EVENTS: Final = ("alpha", "numNegatives", "rankingSize", "rankingSample")
_OF_RATINGS: Final = (
    "maxIter", "tol", "noiseVariance", "userBiasRegParam", "itemBiasRegParam", "blockSize",
    "predictionStdCol", "clipPredictions", "maxResidentIds", "checkpointInterval",
)  # fmt: skip
UNUSED: Final[dict[str, tuple[str, ...]]] = {
    "bayes": (*_DESCENT, "blockSize", *_OF_EVENTS, *_NEVER),
    "sgd": (*_BAYES, "blockSize", "predictionStdCol", *_OF_EVENTS, *_NEVER),
    "minibatch": (*_BAYES, "predictionStdCol", "tol", "numThreads", *_OF_EVENTS, *_NEVER),
}
"""Params that a solver does not use."""
UNUSED_UNDER_IMPLICIT_PREFS: Final[dict[str, tuple[str, ...]]] = {
    "bayes": tuple(dict.fromkeys((*_DESCENT, *_OF_RATINGS, *_NEVER))),
    "isgd": tuple(dict.fromkeys((*_BAYES, *_OF_RATINGS, *_NEVER))),
}
"""The same where rows are events, for the solvers that learn them."""
EVENT_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "bayes": {"rank": 32, "factorPriorVariance": 0.5, "biasPriorVariance": 0.1, "numNegatives": 20},
    "isgd": {"stepSize": 0.05, "regParam": 0.01, "initStd": 0.1, "numNegatives": 0},
}
"""Values of Params that were not set, where rows are events."""
