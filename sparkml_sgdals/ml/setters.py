"""Setters of the Params, as pyspark.ml has them: each sets one Param and returns the stage."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from sparkml_sgdals.ml.params import LearningParams, ModelParams

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LearningSetters", "ModelSetters"]


class ModelSetters(ModelParams):
    """Setters of what using a model depends on."""

    def setUserCol(self, value: str) -> Self:
        """Set userCol."""
        return self._set(userCol=value)

    def setItemCol(self, value: str) -> Self:
        """Set itemCol."""
        return self._set(itemCol=value)

    def setRatingCol(self, value: str) -> Self:
        """Set ratingCol."""
        return self._set(ratingCol=value)

    def setTimestampCol(self, value: str) -> Self:
        """Set timestampCol."""
        return self._set(timestampCol=value)

    def setWeightCol(self, value: str) -> Self:
        """Set weightCol."""
        return self._set(weightCol=value)

    def setUserFeaturesCol(self, value: str) -> Self:
        """Set userFeaturesCol."""
        return self._set(userFeaturesCol=value)

    def setItemFeaturesCol(self, value: str) -> Self:
        """Set itemFeaturesCol."""
        return self._set(itemFeaturesCol=value)

    def setPredictionCol(self, value: str) -> Self:
        """Set predictionCol."""
        return self._set(predictionCol=value)

    def setPredictionStdCol(self, value: str) -> Self:
        """Set predictionStdCol."""
        return self._set(predictionStdCol=value)

    def setColdStartStrategy(self, value: str) -> Self:
        """Set coldStartStrategy."""
        return self._set(coldStartStrategy=value)

    def setClipPredictions(self, value: bool) -> Self:
        """Set clipPredictions."""
        return self._set(clipPredictions=value)

    def setHandleInvalid(self, value: str) -> Self:
        """Set handleInvalid."""
        return self._set(handleInvalid=value)

    def setRepeatedPairs(self, value: str) -> Self:
        """Set repeatedPairs."""
        return self._set(repeatedPairs=value)

    def setRatingRange(self, value: list[float]) -> Self:
        """Set ratingRange."""
        return self._set(ratingRange=value)

    def setNumThreads(self, value: int) -> Self:
        """Set numThreads."""
        return self._set(numThreads=value)

    def setNumBlocks(self, value: int) -> Self:
        """Set numBlocks."""
        return self._set(numBlocks=value)

    def setMaxRatingsPerTask(self, value: int) -> Self:
        """Set maxRatingsPerTask."""
        return self._set(maxRatingsPerTask=value)

    def setMaxResidentIds(self, value: int) -> Self:
        """Set maxResidentIds."""
        return self._set(maxResidentIds=value)

    def setShowProgress(self, value: bool) -> Self:
        """Set showProgress."""
        return self._set(showProgress=value)

    def setProgressPath(self, value: str) -> Self:
        """Set progressPath."""
        return self._set(progressPath=value)

    def setCheckpointInterval(self, value: int) -> Self:
        """Set checkpointInterval."""
        return self._set(checkpointInterval=value)

    def setBlockSize(self, value: int) -> Self:
        """Set blockSize."""
        return self._set(blockSize=value)


class LearningSetters(ModelSetters, LearningParams):
    """Setters of what learning depends on, besides those of the model."""

    def setSolver(self, value: str) -> Self:
        """Set solver."""
        return self._set(solver=value)

    def setRank(self, value: int) -> Self:
        """Set rank."""
        return self._set(rank=value)

    def setMaxIter(self, value: int) -> Self:
        """Set maxIter."""
        return self._set(maxIter=value)

    def setTol(self, value: float) -> Self:
        """Set tol."""
        return self._set(tol=value)

    def setSeed(self, value: int) -> Self:
        """Set seed."""
        return self._set(seed=value)

    def setRegParam(self, value: float) -> Self:
        """Set regParam."""
        return self._set(regParam=value)

    def setUserBiasRegParam(self, value: float) -> Self:
        """Set userBiasRegParam."""
        return self._set(userBiasRegParam=value)

    def setItemBiasRegParam(self, value: float) -> Self:
        """Set itemBiasRegParam."""
        return self._set(itemBiasRegParam=value)

    def setUserFactorRegParam(self, value: float) -> Self:
        """Set userFactorRegParam."""
        return self._set(userFactorRegParam=value)

    def setItemFactorRegParam(self, value: float) -> Self:
        """Set itemFactorRegParam."""
        return self._set(itemFactorRegParam=value)

    def setStepSize(self, value: float) -> Self:
        """Set stepSize."""
        return self._set(stepSize=value)

    def setBiasPriorVariance(self, value: float) -> Self:
        """Set biasPriorVariance."""
        return self._set(biasPriorVariance=value)

    def setFactorPriorVariance(self, value: float) -> Self:
        """Set factorPriorVariance."""
        return self._set(factorPriorVariance=value)

    def setNoiseVariance(self, value: float) -> Self:
        """Set noiseVariance."""
        return self._set(noiseVariance=value)

    def setInitStd(self, value: float) -> Self:
        """Set initStd."""
        return self._set(initStd=value)

    def setDrift(self, value: float) -> Self:
        """Set drift."""
        return self._set(drift=value)

    def setNumNegatives(self, value: int) -> Self:
        """Set numNegatives."""
        return self._set(numNegatives=value)

    def setRankingSize(self, value: int) -> Self:
        """Set rankingSize."""
        return self._set(rankingSize=value)

    def setRankingSample(self, value: int) -> Self:
        """Set rankingSample."""
        return self._set(rankingSample=value)

    def setImplicitPrior(self, value: bool) -> Self:
        """Set implicitPrior."""
        return self._set(implicitPrior=value)

    def setParallelism(self, value: int) -> Self:
        """Set parallelism."""
        return self._set(parallelism=value)

    def setImplicitPrefs(self, value: bool) -> Self:
        """Set implicitPrefs."""
        return self._set(implicitPrefs=value)

    def setNonnegative(self, value: bool) -> Self:
        """Set nonnegative."""
        return self._set(nonnegative=value)

    def setUnobservedWeight(self, value: float) -> Self:
        """Set unobservedWeight."""
        return self._set(unobservedWeight=value)

    def setNumPartners(self, value: int) -> Self:
        """Set numPartners."""
        return self._set(numPartners=value)

    def setRepeatItems(self, value: bool) -> Self:
        """Set repeatItems."""
        return self._set(repeatItems=value)

    def setForgetUsersAfter(self, value: int | str | timedelta) -> Self:
        """Set forgetUsersAfter."""
        return self._set(forgetUsersAfter=value)

    def setAlpha(self, value: float) -> Self:
        """Set alpha."""
        return self._set(alpha=value)

    def setNumUserBlocks(self, value: int) -> Self:
        """Set numUserBlocks."""
        return self._set(numUserBlocks=value)

    def setNumItemBlocks(self, value: int) -> Self:
        """Set numItemBlocks."""
        return self._set(numItemBlocks=value)

    def setIntermediateStorageLevel(self, value: str) -> Self:
        """Set intermediateStorageLevel."""
        return self._set(intermediateStorageLevel=value)

    def setFinalStorageLevel(self, value: str) -> Self:
        """Set finalStorageLevel."""
        return self._set(finalStorageLevel=value)
