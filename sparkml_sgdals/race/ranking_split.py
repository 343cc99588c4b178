"""RankingValidationSplit: the candidate of a grid that ranks best on what was held out (driver)."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from multiprocessing.pool import ThreadPool
from typing import TYPE_CHECKING, Any

import numpy as np
from pyspark import inheritable_thread_target, keyword_only
from pyspark.ml import Estimator, Model
from pyspark.ml.param import Param, TypeConverters
from pyspark.ml.param.shared import HasCollectSubModels, HasParallelism, HasSeed
from pyspark.ml.util import (
    DefaultParamsReader,
    DefaultParamsWriter,
    MLReadable,
    MLReader,
    MLWritable,
    MLWriter,
)
from pyspark.sql import DataFrame

from sparkml_sgdals.ingest.frames import as_table
from sparkml_sgdals.ml.estimator import StreamingBiasedALS
from sparkml_sgdals.ml.evaluate_methods import RANKING_METRICS, RankingEvaluation
from sparkml_sgdals.ml.model import StreamingBiasedALSModel
from sparkml_sgdals.ml.params.converters import at_least, one_of, param
from sparkml_sgdals.ml.persistence import EstimatorWriter
from sparkml_sgdals.race.splitting import SPLITS, Split, split_table
from sparkml_sgdals.store.objects import Location

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["RankingValidationSplit", "RankingValidationSplitModel"]

ParamMap = dict[Param[Any], Any]

_NOT_JSON = ("estimator", "estimatorParamMaps")


def _ratio(value: Any) -> float:
    number = TypeConverters.toFloat(value)
    if not 0.0 < number < 1.0:
        raise ValueError(f"trainRatio must be above 0 and below 1, got {value!r}.")
    return number


class _SplitParams(HasSeed, HasParallelism, HasCollectSubModels):
    """Params of the search and of what it found."""

    estimator: Param[StreamingBiasedALS] = param(
        "estimator", "estimator that learns, a StreamingBiasedALS.", TypeConverters.identity
    )
    estimatorParamMaps: Param[list[ParamMap]] = param(
        "estimatorParamMaps", "the grid, a map a candidate.", TypeConverters.toList
    )
    metricName: Param[str] = param(
        "metricName",
        f"what to choose by, the largest: {', '.join(RANKING_METRICS)}.",
        one_of("metricName", RANKING_METRICS),
    )
    k: Param[int] = param("k", "length of the lists that are judged.", at_least("k", 1))
    threshold: Param[float] = param(
        "threshold",
        "least rating of a row that counts when lists are judged; not set: all rows count.",
        TypeConverters.toFloat,
    )
    split: Param[str] = param(
        "split",
        "what is held out: 'random', 'time' (the last rows) or 'last' (the last row a user).",
        one_of("split", SPLITS),
    )
    trainRatio: Param[float] = param(
        "trainRatio", "share of the table that candidates learn; not for split 'last'.", _ratio
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(
            metricName="ndcg",
            k=10,
            split="random",
            trainRatio=0.75,
            seed=20_140_707,
            parallelism=1,
            collectSubModels=False,
        )

    def getEstimator(self) -> StreamingBiasedALS:
        """Value of estimator."""
        return self.getOrDefault(self.estimator)

    def getEstimatorParamMaps(self) -> list[ParamMap]:
        """Value of estimatorParamMaps."""
        return self.getOrDefault(self.estimatorParamMaps)

    def getMetricName(self) -> str:
        """Value of metricName."""
        return self.getOrDefault(self.metricName)

    def getK(self) -> int:
        """Value of k."""
        return self.getOrDefault(self.k)

    def getThreshold(self) -> float | None:
        """Value of threshold, None where it is not set."""
        return self.getOrDefault(self.threshold) if self.isSet(self.threshold) else None

    def getSplit(self) -> Split:
        """Value of split."""
        found: Any = self.getOrDefault(self.split)
        return found  # type: ignore[no-any-return]

    def getTrainRatio(self) -> float:
        """Value of trainRatio."""
        return self.getOrDefault(self.trainRatio)


class RankingValidationSplit(
    Estimator["RankingValidationSplitModel"],
    _SplitParams,
    MLReadable["RankingValidationSplit"],
    MLWritable,
):
    """Hyperparameters by ranking, as Spark's TrainValidationSplit chooses them by an evaluator.

    A part of the table is held out once. Candidates learn the rest, packed once for all, and each
    is judged by `evaluateRanking` on what was held out, without what was learned. The best one is
    then fitted to the whole table.

    Parameters
    ----------
    estimator : StreamingBiasedALS
        learns ratings or events
    estimatorParamMaps : Sequence[dict[Param[Any], Any]]
        a grid, as ParamGridBuilder makes it; maps may set what is learned by, not the columns of
        users, items and ratings
    metricName : str, default "ndcg"
        what to choose by, the largest: ndcg, recall, mrr, map, hitRate or precision
    k : int, default 10
        length of the lists that are judged
    threshold : float | None, default None
        only held-out rows with at least this rating count; None: all do
    split : str, default "random"
        what is held out: 'random' (pairs by a hash of ids and seed), 'time' (what comes last by the
        estimator's timestampCol) or 'last' (each user's last row, where it has two or more)
    trainRatio : float, default 0.75
        share of the table that candidates learn; of no use to 'last'
    parallelism : int, default 1
        candidates judged at the same time
    collectSubModels : bool, default False
        whether the candidates' models are kept, as subModels
    seed : int | None, default 20_140_707
        of split 'random'

    Examples
    --------
    >>> grid = ParamGridBuilder().addGrid(als.rank, [16, 32]).build()
    >>> search = RankingValidationSplit(estimator=als, estimatorParamMaps=grid, k=20)
    >>> found = search.fit(events)
    >>> found.bestModel, found.validationMetrics
    """

    _input_kwargs: dict[str, Any]

    @keyword_only
    def __init__(
        self,
        *,
        estimator: StreamingBiasedALS | None = None,
        estimatorParamMaps: Sequence[ParamMap] | None = None,
        metricName: str = "ndcg",
        k: int = 10,
        threshold: float | None = None,
        split: str = "random",
        trainRatio: float = 0.75,
        parallelism: int = 1,
        collectSubModels: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        given = self._input_kwargs
        self._set(**{name: value for name, value in given.items() if value is not None})

    @keyword_only
    def setParams(self, **kwargs: Any) -> RankingValidationSplit:
        """Set Params by name, as in the constructor."""
        return self._set(**{name: value for name, value in kwargs.items() if value is not None})

    def setEstimator(self, value: StreamingBiasedALS) -> Self:
        """Set estimator."""
        return self._set(estimator=value)

    def setEstimatorParamMaps(self, value: Sequence[ParamMap]) -> Self:
        """Set estimatorParamMaps."""
        return self._set(estimatorParamMaps=value)

    def setMetricName(self, value: str) -> Self:
        """Set metricName."""
        return self._set(metricName=value)

    def setK(self, value: int) -> Self:
        """Set k."""
        return self._set(k=value)

    def setThreshold(self, value: float) -> Self:
        """Set threshold."""
        return self._set(threshold=value)

    def setSplit(self, value: str) -> Self:
        """Set split."""
        return self._set(split=value)

    def setTrainRatio(self, value: float) -> Self:
        """Set trainRatio."""
        return self._set(trainRatio=value)

    def setSeed(self, value: int) -> Self:
        """Set seed."""
        return self._set(seed=value)

    def setParallelism(self, value: int) -> Self:
        """Set parallelism."""
        return self._set(parallelism=value)

    def setCollectSubModels(self, value: bool) -> Self:
        """Set collectSubModels."""
        return self._set(collectSubModels=value)

    def copy(self, extra: ParamMap | None = None) -> RankingValidationSplit:
        """Return a copy, of its estimator too; extra Params go to both."""
        twin: RankingValidationSplit = super().copy(extra)
        if self.isSet(self.estimator):
            twin.setEstimator(self.getEstimator().copy(extra))
        return twin

    def write(self) -> MLWriter:
        """Return a writer: search.write().overwrite().save(path)."""
        return _SplitWriter(self)

    @classmethod
    def read(cls) -> MLReader[RankingValidationSplit]:
        """Return a reader of what `write` wrote."""
        return _SplitReader(cls)

    def _fit(self, dataset: Any) -> RankingValidationSplitModel:
        estimator, maps = self._candidates()
        dataset = as_table(
            dataset,
            "dataset",
            estimator.ratingColumns().in_order,
            "race candidates by StreamingGridSearch",
        )
        kinds, _ = estimator._ids_of(dataset)
        parts = split_table(
            dataset,
            estimator.ratingColumns(),
            kinds,
            self.getSplit(),
            self.getTrainRatio(),
            self.getSeed(),
        )
        with ExitStack() as stack:
            train, held = (part.persist() for part in parts)
            stack.callback(train.unpersist)
            stack.callback(held.unpersist)
            models = estimator.fitMultiple(train, maps)
            keep = self.getCollectSubModels()

            def judge(_: int) -> tuple[int, RankingEvaluation, StreamingBiasedALSModel | None]:
                index, model = next(models)
                evaluation = model.evaluateRanking(held, self.getK(), train, self.getThreshold())
                return index, evaluation, model if keep else None

            run = inheritable_thread_target(dataset.sparkSession)(judge)
            pool = stack.enter_context(ThreadPool(min(self.getParallelism(), len(maps))))
            found = sorted(pool.imap_unordered(run, range(len(maps))), key=lambda one: one[0])
        evaluations = [evaluation for _, evaluation, _ in found]
        metrics = [float(getattr(evaluation, self.getMetricName())) for evaluation in evaluations]
        if all(map(math.isnan, metrics)):
            raise ValueError(
                f"Nothing was held out to judge by, with split {self.getSplit()!r}, trainRatio "
                f"{self.getTrainRatio()} and threshold {self.getThreshold()}: lower one of these, "
                "or take a larger table."
            )
        best = estimator.fit(dataset, maps[int(np.nanargmax(metrics))])
        sub_models = [model for _, _, model in found if model is not None]
        return self._copyValues(
            RankingValidationSplitModel(best, metrics, evaluations, sub_models if keep else None)
        )

    def _candidates(self) -> tuple[StreamingBiasedALS, list[ParamMap]]:
        if not self.isSet(self.estimator):
            raise ValueError("estimator is not set: give the one that learns.")
        estimator = self.getEstimator()
        if not isinstance(estimator, StreamingBiasedALS):
            raise TypeError(
                f"estimator must be a StreamingBiasedALS, got a {type(estimator).__name__}."
            )
        maps = self.getEstimatorParamMaps() if self.isSet(self.estimatorParamMaps) else []
        if not maps:
            raise ValueError("estimatorParamMaps is empty: give one map a candidate.")
        fixed = {"userCol", "itemCol", "ratingCol"}
        moved = sorted({key.name for params in maps for key in params} & fixed)
        if moved:
            raise ValueError(
                f"estimatorParamMaps sets {', '.join(moved)}, and candidates are judged on the "
                "same rows: set the columns on the estimator."
            )
        return estimator, maps


class RankingValidationSplitModel(
    Model, _SplitParams, MLReadable["RankingValidationSplitModel"], MLWritable
):
    """What a RankingValidationSplit found; `transform` is that of the best model.

    Attributes
    ----------
    bestModel : StreamingBiasedALSModel
        fitted to the whole table with the Params that ranked best
    validationMetrics : list[float]
        the metric of each candidate, in the order of estimatorParamMaps
    evaluations : list[RankingEvaluation]
        all that was judged of each candidate
    subModels : list[StreamingBiasedALSModel] | None
        the candidates' models, where collectSubModels was set
    """

    def __init__(
        self,
        bestModel: StreamingBiasedALSModel,
        validationMetrics: Sequence[float] = (),
        evaluations: Sequence[RankingEvaluation] = (),
        subModels: Sequence[StreamingBiasedALSModel] | None = None,
    ) -> None:
        super().__init__()
        self.bestModel = bestModel
        self.validationMetrics = list(validationMetrics)
        self.evaluations = list(evaluations)
        self.subModels = None if subModels is None else list(subModels)

    def _transform(self, dataset: DataFrame) -> DataFrame:
        return self.bestModel.transform(dataset)

    def copy(self, extra: ParamMap | None = None) -> RankingValidationSplitModel:
        """Return a copy, of the best model too; extra Params go to both."""
        subs = None if self.subModels is None else [model.copy() for model in self.subModels]
        twin = RankingValidationSplitModel(
            self.bestModel.copy(extra), self.validationMetrics, self.evaluations, subs
        )
        return self._copyValues(twin, extra)

    def write(self) -> MLWriter:
        """Return a writer: found.write().overwrite().save(path)."""
        return _SplitWriter(self)

    @classmethod
    def read(cls) -> MLReader[RankingValidationSplitModel]:
        """Return a reader of what `write` wrote."""
        return _SplitReader(cls)


class _SplitWriter(EstimatorWriter):
    """Writes Spark's own metadata, the estimator and, of what was found, the models."""

    def saveImpl(self, path: str) -> None:
        stage: Any = self.instance
        names = []
        for params in stage.getEstimatorParamMaps():
            foreign = [key for key in params if key.parent != stage.getEstimator().uid]
            if foreign:
                raise ValueError(
                    f"{foreign[0]} in estimatorParamMaps is no Param of the estimator, so it "
                    "cannot be saved."
                )
            names.append({key.name: value for key, value in params.items()})
        extra: dict[str, Any] = {"candidates": names}
        models: dict[str, StreamingBiasedALSModel] = {}
        if isinstance(stage, RankingValidationSplitModel):
            subs = stage.subModels
            models = {"bestModel": stage.bestModel}
            models |= {f"subModels/{n}": model for n, model in enumerate(subs or ())}
            extra |= {
                "validationMetrics": stage.validationMetrics,
                "evaluations": [asdict(evaluation) for evaluation in stage.evaluations],
                "subModels": None if subs is None else len(subs),
            }
        given = {key.name: v for key, v in stage._paramMap.items() if key.name not in _NOT_JSON}
        DefaultParamsWriter.saveMetadata(stage, path, self.sparkSession, extra, given)
        stage.getEstimator().write().save(f"{path}/estimator")
        for name, model in models.items():
            model.write().save(f"{path}/{name}")


class _SplitReader(MLReader[Any]):
    """Reads what `_SplitWriter` wrote."""

    def __init__(self, stage_class: Any) -> None:
        super().__init__()
        self.stage_class = stage_class

    def load(self, path: Location) -> Any:
        path = os.fspath(path)
        metadata = DefaultParamsReader.loadMetadata(
            path, self.sparkSession, f"{self.stage_class.__module__}.{self.stage_class.__name__}"
        )
        if issubclass(self.stage_class, Model):
            load, subs = StreamingBiasedALSModel.load, metadata["subModels"]
            stage: Any = self.stage_class(
                load(f"{path}/bestModel"),
                metadata["validationMetrics"],
                [RankingEvaluation(**fields) for fields in metadata["evaluations"]],
                None if subs is None else [load(f"{path}/subModels/{n}") for n in range(subs)],
            )
        else:
            stage = self.stage_class()
        stage._resetUid(metadata["uid"])
        DefaultParamsReader.getAndSetParams(stage, metadata)
        estimator = StreamingBiasedALS.load(f"{path}/estimator")
        maps = [
            {estimator.getParam(name): value for name, value in names.items()}
            for names in metadata["candidates"]
        ]
        stage._set(estimator=estimator, estimatorParamMaps=maps)
        return stage


# the names that saved stages carry stay, wherever the classes may move
RankingValidationSplit.__module__ = "sparkml_sgdals"
RankingValidationSplitModel.__module__ = "sparkml_sgdals"
