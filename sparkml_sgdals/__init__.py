"""Biased matrix factorisation for Spark that learns from a table and goes on from a stream."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparkml_sgdals.errors import DivergenceError, LeaseError, StorageError
    from sparkml_sgdals.ingest.messages import parseRatings
    from sparkml_sgdals.ml.estimator import StreamingBiasedALS
    from sparkml_sgdals.ml.evaluate_methods import RankingEvaluation
    from sparkml_sgdals.ml.model import StreamingBiasedALSModel
    from sparkml_sgdals.ml.summary import TrainingSummary
    from sparkml_sgdals.predictor import Predictor
    from sparkml_sgdals.race.grid_search import RaceJob, StreamingGridSearch
    from sparkml_sgdals.race.ranking_split import (
        RankingValidationSplit,
        RankingValidationSplitModel,
    )
    from sparkml_sgdals.state.diagnosis import Diagnosis, RankingDiagnosis
    from sparkml_sgdals.store.maintenance import Rollback
    from sparkml_sgdals.stream.job import StreamJob
    from sparkml_sgdals.vectors import VectorChanges, VectorFeed

__all__ = [
    "Diagnosis",
    "DivergenceError",
    "LeaseError",
    "Predictor",
    "RaceJob",
    "RankingDiagnosis",
    "RankingEvaluation",
    "RankingValidationSplit",
    "RankingValidationSplitModel",
    "Rollback",
    "StorageError",
    "StreamJob",
    "StreamingBiasedALS",
    "StreamingBiasedALSModel",
    "StreamingGridSearch",
    "TrainingSummary",
    "VectorChanges",
    "VectorFeed",
    "parseRatings",
]
__version__ = "0.1.0"

_HOME = {
    "Diagnosis": "state.diagnosis",
    "DivergenceError": "errors",
    "LeaseError": "errors",
    "Predictor": "predictor",
    "RaceJob": "race.grid_search",
    "RankingDiagnosis": "state.diagnosis",
    "RankingEvaluation": "ml.evaluate_methods",
    "RankingValidationSplit": "race.ranking_split",
    "RankingValidationSplitModel": "race.ranking_split",
    "Rollback": "store.maintenance",
    "StorageError": "errors",
    "StreamJob": "stream.job",
    "StreamingBiasedALS": "ml.estimator",
    "StreamingBiasedALSModel": "ml.model",
    "StreamingGridSearch": "race.grid_search",
    "TrainingSummary": "ml.summary",
    "VectorChanges": "vectors",
    "VectorFeed": "vectors",
    "parseRatings": "ingest.messages",
}


# Tasks import the modules that they run and nothing else: a worker's start is part of every job.
def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"sparkml_sgdals.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
