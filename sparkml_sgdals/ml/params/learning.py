"""Params of the estimator and the model: declared, checked, read (driver).

Names and meanings are those of pyspark.ml where it has them. Ranges are checked when a value is
set, so that a bad grid fails before anything runs.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, Final, TypeVar

from pyspark.ml.param import Param, TypeConverters
from pyspark.ml.param.shared import (
    HasBlockSize,
    HasCheckpointInterval,
    HasMaxIter,
    HasParallelism,
    HasPredictionCol,
    HasRegParam,
    HasSeed,
    HasStepSize,
    HasTol,
)

from sparkml_sgdals.ml.params.als import ALSParams
from sparkml_sgdals.ml.params.converters import (
    at_least,
    interval,
    non_negative,
    one_of,
    param,
    place,
    positive,
    text,
)
from sparkml_sgdals.ml.params.rows import RowParams
from sparkml_sgdals.ml.params.solvers import (
    EVENT_DEFAULTS,
    MOST_FILTERED,
    refuse_unfit,
    unused_params,
)
from sparkml_sgdals.state.settings import Settings, Solver

__all__ = ["DEFAULT_SEED", "LearningParams", "ModelParams", "default_settings"]

DEFAULT_SEED: Final = 20_140_707
"""Fixed, as pyspark's own default seed differs from process to process."""

SOLVERS: Final = ("bayes", "sgd", "minibatch", "isgd")
T = TypeVar("T")

COLD_START: Final = ("bias", "nan", "drop")


class ModelParams(HasPredictionCol, RowParams, HasCheckpointInterval, HasBlockSize):
    """Params that using a model and adding ratings to it depend on."""

    predictionStdCol: Param[str] = param(
        "predictionStdCol",
        "column for the standard deviation of a prediction, noise included; empty for none. "
        "Needs solver 'bayes'.",
        text,
    )
    coldStartStrategy: Param[str] = param(
        "coldStartStrategy",
        "prediction where a user or item is not known: 'bias' (whatever part of "
        "mean + user bias + item bias is known), 'nan', or 'drop' the row.",
        one_of("coldStartStrategy", COLD_START),
    )
    clipPredictions: Param[bool] = param(
        "clipPredictions",
        "whether predictions are clipped to the range of ratings seen.",
        TypeConverters.toBoolean,
    )
    numThreads: Param[int] = param(
        "numThreads",
        "threads of a training task; 0 = N under local[N], else the task's cores.",
        at_least("numThreads", 0),
    )
    numBlocks: Param[int] = param(
        "numBlocks",
        "blocks of users and of items that a fit is cut into; 1 = one task, 0 = chosen from the "
        "number of ratings.",
        at_least("numBlocks", 0),
    )
    maxRatingsPerTask: Param[int] = param(
        "maxRatingsPerTask",
        "ratings, about 66 bytes each at the peak, that one task may hold; more go in blocks.",
        at_least("maxRatingsPerTask", 1),
    )
    maxResidentIds: Param[int] = param(
        "maxResidentIds",
        "users and items, about 300 bytes each at rank 16, that a stream keeps in memory, or a "
        "model that was loaded from sorted runs; of a larger one the rows that are needed are read "
        "from files under the model path; 0 = all of them.",
        at_least("maxResidentIds", 0),
    )
    showProgress: Param[bool] = param(
        "showProgress",
        "whether a fit shows a bar in the terminal or notebook; needs tqdm.",
        TypeConverters.toBoolean,
    )
    progressPath: Param[str] = param(
        "progressPath",
        "folder, shared by driver and executors, where tasks of a fit write how far they are; "
        "empty: a temporary one while showProgress shows it under local[N], else none.",
        place,
    )
    checkpointInterval: Param[int] = param(
        "checkpointInterval",
        "steps of a fit in blocks after which its lineage is cut; -1 = never.",
        interval("checkpointInterval"),
    )
    blockSize: Param[int] = param(
        "blockSize", "ratings of one mini-batch of 'minibatch'.", at_least("blockSize", 1)
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(
            predictionCol="prediction",
            predictionStdCol="",
            coldStartStrategy="bias",
            clipPredictions=True,
            numThreads=0,
            numBlocks=0,
            maxRatingsPerTask=50_000_000,
            maxResidentIds=5_000_000,
            showProgress=False,
            progressPath="",
            checkpointInterval=10,
            blockSize=10_000,
        )

    def getPredictionStdCol(self) -> str:
        """Value of predictionStdCol, "" for none."""
        return self.getOrDefault(self.predictionStdCol)

    def getColdStartStrategy(self) -> str:
        """Value of coldStartStrategy."""
        return self.getOrDefault(self.coldStartStrategy)

    def getClipPredictions(self) -> bool:
        """Value of clipPredictions."""
        return self.getOrDefault(self.clipPredictions)

    def getNumThreads(self) -> int:
        """Value of numThreads."""
        return self.getOrDefault(self.numThreads)

    def getNumBlocks(self) -> int:
        """Value of numBlocks."""
        return self.getOrDefault(self.numBlocks)

    def getMaxRatingsPerTask(self) -> int:
        """Value of maxRatingsPerTask."""
        return self.getOrDefault(self.maxRatingsPerTask)

    def getMaxResidentIds(self) -> int:
        """Value of maxResidentIds, 0 for no limit."""
        return self.getOrDefault(self.maxResidentIds)

    def getShowProgress(self) -> bool:
        """Value of showProgress."""
        return self.getOrDefault(self.showProgress)

    def getProgressPath(self) -> str:
        """Value of progressPath, "" for none."""
        return self.getOrDefault(self.progressPath)


class LearningParams(
    ModelParams,
    HasMaxIter,
    HasRegParam,
    HasStepSize,
    HasSeed,
    HasTol,
    HasParallelism,
    ALSParams,
):
    """Params that learning depends on, besides those of the model.

    Under implicitPrefs some have other defaults, which their getters give: docs/positive-only.md.
    """

    solver: Param[Solver] = param(
        "solver",
        "'bayes' (variances instead of a learning rate), 'sgd' (one rating after another), "
        "'minibatch' (summed gradients, a Spark join a mini-batch), or, under implicitPrefs, "
        "'bayes' or 'isgd'.",
        one_of("solver", SOLVERS),
    )
    rank: Param[int] = param("rank", "number of features.", at_least("rank", 1))
    maxIter: Param[int] = param(
        "maxIter",
        "sweeps of 'bayes' after its filter pass (0 = filter only), at most, see tol; passes of "
        "'sgd' and 'minibatch'.",
        at_least("maxIter", 0),
    )
    tol: Param[float] = param(
        "tol",
        "stop when a sweep changes the expected square error of a training rating by less than "
        "this share; of 'sgd', only where it is set, the training RMSE; 0 = never.",
        non_negative("tol"),
    )
    regParam: Param[float] = param(
        "regParam",
        "every lambda of 'sgd' and 'minibatch' at once; 'bayes' shrinks ratings by its variances.",
        non_negative("regParam"),
    )
    userBiasRegParam: Param[float] = param(
        "userBiasRegParam",
        "lambda of user biases, for regParam.",
        non_negative("userBiasRegParam"),
    )
    itemBiasRegParam: Param[float] = param(
        "itemBiasRegParam",
        "lambda of item biases, for regParam.",
        non_negative("itemBiasRegParam"),
    )
    userFactorRegParam: Param[float] = param(
        "userFactorRegParam",
        "lambda of user features, for regParam.",
        non_negative("userFactorRegParam"),
    )
    itemFactorRegParam: Param[float] = param(
        "itemFactorRegParam",
        "lambda of item features, for regParam.",
        non_negative("itemFactorRegParam"),
    )
    stepSize: Param[float] = param(
        "stepSize", "step size of 'sgd' and 'minibatch'.", positive("stepSize")
    )
    biasPriorVariance: Param[float] = param(
        "biasPriorVariance",
        "prior variance of a bias, in units of the spread of ratings squared.",
        positive("biasPriorVariance"),
    )
    factorPriorVariance: Param[float] = param(
        "factorPriorVariance",
        "prior variance of a feature, in units of the spread of ratings.",
        positive("factorPriorVariance"),
    )
    noiseVariance: Param[float] = param(
        "noiseVariance",
        "variance of a rating about its prediction while filtering, in units of the spread of "
        "ratings squared.",
        positive("noiseVariance"),
    )
    initStd: Param[float] = param(
        "initStd", "standard deviation of a new id's features.", non_negative("initStd")
    )
    drift: Param[float] = param(
        "drift",
        "variance added to every coordinate that a rating touches, so that tastes may move.",
        non_negative("drift"),
    )
    implicitPrior: Param[bool] = param(
        "implicitPrior",
        "whether the prior mean of a user is learned from the items that it rated, and of an item "
        "from its users.",
        TypeConverters.toBoolean,
    )
    numNegatives: Param[int] = param(
        "numNegatives",
        "under implicitPrefs: items an event that its user is taken not to have done.",
        at_least("numNegatives", 0),
    )
    rankingSize: Param[int] = param(
        "rankingSize",
        "N of the Recall@N and MRR@N of a stream; 0 = not ranked: the default, under "
        "implicitPrefs 10. For ratings the model then keeps what each user has rated.",
        at_least("rankingSize", 0),
    )
    rankingSample: Param[int] = param(
        "rankingSample",
        "items drawn that the item of an event or rating is ranked among; 0 = all.",
        at_least("rankingSample", 0),
    )
    parallelism: Param[int] = param(
        "parallelism",
        "models learned at the same time; a single model does not use it.",
        at_least("parallelism", 1),
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(
            solver="bayes",
            rank=16,
            maxIter=10,
            tol=0.005,
            regParam=0.1,
            stepSize=0.01,
            biasPriorVariance=0.2,
            factorPriorVariance=0.1,
            noiseVariance=0.5,
            initStd=0.05,
            drift=0.0,
            implicitPrior=True,
            numNegatives=20,
            rankingSize=0,
            rankingSample=0,
            parallelism=1,
            seed=DEFAULT_SEED,
        )

    def getMaxIter(self) -> int:
        """Value of maxIter."""
        return self._value(self.maxIter)

    def getTol(self) -> float:
        """Value of tol."""
        return self._value(self.tol)

    def getSolver(self) -> Solver:
        """Value of solver."""
        return self.getOrDefault(self.solver)

    def getRank(self) -> int:
        """Value of rank."""
        return self._value(self.rank)

    def getUserBiasRegParam(self) -> float:
        """Lambda of user biases, regParam where it is not set."""
        return self._lambda(self.userBiasRegParam)

    def getItemBiasRegParam(self) -> float:
        """Lambda of item biases, regParam where it is not set."""
        return self._lambda(self.itemBiasRegParam)

    def getUserFactorRegParam(self) -> float:
        """Lambda of user features, regParam where it is not set."""
        return self._lambda(self.userFactorRegParam)

    def getItemFactorRegParam(self) -> float:
        """Lambda of item features, regParam where it is not set."""
        return self._lambda(self.itemFactorRegParam)

    def getBiasPriorVariance(self) -> float:
        """Value of biasPriorVariance."""
        return self._value(self.biasPriorVariance)

    def getFactorPriorVariance(self) -> float:
        """Value of factorPriorVariance."""
        return self._value(self.factorPriorVariance)

    def getNoiseVariance(self) -> float:
        """Value of noiseVariance."""
        return self.getOrDefault(self.noiseVariance)

    def getInitStd(self) -> float:
        """Value of initStd."""
        return self._value(self.initStd)

    def getStepSize(self) -> float:
        """Value of stepSize."""
        return self._value(self.stepSize)

    def getRegParam(self) -> float:
        """Value of regParam."""
        return self._value(self.regParam)

    def getNumNegatives(self) -> int:
        """Value of numNegatives."""
        return self._value(self.numNegatives)

    def getRankingSize(self) -> int:
        """Value of rankingSize."""
        return self._value(self.rankingSize)

    def getRankingSample(self) -> int:
        """Value of rankingSample."""
        return self.getOrDefault(self.rankingSample)

    def getDrift(self) -> float:
        """Value of drift."""
        return self.getOrDefault(self.drift)

    def getImplicitPrior(self) -> bool:
        """Value of implicitPrior."""
        return self.getOrDefault(self.implicitPrior)

    def settings(self, table: bool = False) -> Settings:
        """Return what the arithmetic needs of the Params; what has no effect is 0, alpha 1.

        Under `table`, a bool, a table is learned: one of events is fitted as a whole.
        """
        events, size = self.getImplicitPrefs(), self.getRankingSize()
        forget_after, forget_after_micros = self.forgettingEvents() if events else (0, 0)
        filters = events and self.getSolver() == "bayes"
        # what a stream of events does not use stands as for ratings
        value = self.getOrDefault if filters and not table else self._value
        biases, factors = (
            [value(one if self.isSet(one) else self.regParam) for one in pair]
            for pair in (
                (self.userBiasRegParam, self.itemBiasRegParam),
                (self.userFactorRegParam, self.itemFactorRegParam),
            )
        )
        return Settings(
            solver=self.getSolver(),
            rank=min(self.getRank(), MOST_FILTERED) if filters else self.getRank(),
            max_iter=value(self.maxIter),
            tol=value(self.tol) if self.getSolver() == "bayes" or self.isSet("tol") else 0.0,
            seed=self.getSeed(),
            step_size=self.getStepSize(),
            regs=(biases[0], biases[1], factors[0], factors[1]),
            block_size=self.getBlockSize(),
            bias_prior=self.getBiasPriorVariance(),
            factor_prior=self.getFactorPriorVariance(),
            noise=self.getNoiseVariance(),
            init_std=self.getInitStd(),
            drift=self.getDrift(),
            implicit_prior=self.getImplicitPrior(),
            learns_events=events,
            alpha=self.getAlpha() if events else 1.0,
            num_negatives=self.getNumNegatives() if events else 0,
            ranking_size=size,
            ranking_sample=self.getRankingSample() if size or events else 0,
            table_rank=self.getRank() if filters and table else 0,
            unobserved_weight=self.getUnobservedWeight(),
            num_partners=self.getNumPartners() if filters else 0,
            repeat_items=self.getRepeatItems() if events else False,
            featured=False,
            forget_after=forget_after,
            forget_after_micros=forget_after_micros,
            nonnegative=self.getNonnegative(),
        )

    def warnOfUnused(self) -> None:
        """Warn of Params that were set by hand and that the solver does not use.

        Raises ValueError where the solver does not learn what rows are said to be.
        """
        solver, events = self.getSolver(), self.getImplicitPrefs()
        refuse_unfit(solver, events, self.getNumNegatives())
        unused = unused_params(solver, events, self.getRankingSize())
        ignored = [name for name in unused if self.isSet(name)]
        if ignored:
            warnings.warn(
                f"solver {solver!r} does not use {', '.join(ignored)}: "
                "the values that were set have no effect.",
                UserWarning,
                stacklevel=4,
            )

    def _lambda(self, param: Param[float]) -> float:
        return self._value(param if self.isSet(param) else self.regParam)

    def _value(self, param: Param[T]) -> T:
        events = EVENT_DEFAULTS.get(self.getSolver()) if self.getImplicitPrefs() else None
        if events and param.name in events and not self.isSet(param):
            value: T = events[param.name]
            return value
        return self.getOrDefault(param)


def default_settings(**fields: Any) -> Settings:
    """Return settings from the Params' defaults, but for these fields; needs no Spark session.

    The defaults are those of the solver, and of ratings or events, that `fields` name.
    """
    names = {"solver": "solver", "learns_events": "implicitPrefs"}
    chosen = {param: fields[name] for name, param in names.items() if name in fields}
    return replace(LearningParams()._set(**chosen).settings(), **fields)
