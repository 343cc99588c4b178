"""The estimator: Params in, a model out (driver; arithmetic is elsewhere)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from pyspark import keyword_only
from pyspark.ml import Estimator
from pyspark.ml.base import _FitMultipleIterator
from pyspark.ml.param import Param
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable, MLWriter
from pyspark.sql import DataFrame

from sparkml_sgdals.arrays.screening import NO_LIMITS
from sparkml_sgdals.fit.fitting import learn_table
from sparkml_sgdals.fit.grid_fit import GridFit, GridPoint
from sparkml_sgdals.fit.plan import FitOptions, TrainingReport
from sparkml_sgdals.fit.to_path import fit_to_path
from sparkml_sgdals.ingest.columns import id_kind, id_type_name
from sparkml_sgdals.ingest.frames import Table, as_stream, as_table
from sparkml_sgdals.ingest.parquet import pack_parquet, see_files
from sparkml_sgdals.learn.far_values import limits_for
from sparkml_sgdals.ml.feature_methods import FeatureTables
from sparkml_sgdals.ml.fit_options import fit_options
from sparkml_sgdals.ml.model import StreamingBiasedALSModel
from sparkml_sgdals.ml.persistence import EstimatorReader, EstimatorWriter
from sparkml_sgdals.ml.setters import LearningSetters
from sparkml_sgdals.ml.summary import TrainingSummary
from sparkml_sgdals.spark_jobs import active_session
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store.objects import Location, full_path, spark_path
from sparkml_sgdals.stream.job import StreamJob
from sparkml_sgdals.stream.options import StreamOptions, Trigger
from sparkml_sgdals.stream.report import OnBatch
from sparkml_sgdals.stream.start import NOTHING, StreamStart, start_stream

__all__ = ["StreamingBiasedALS"]


class StreamingBiasedALS(
    Estimator[StreamingBiasedALSModel],
    FeatureTables,
    LearningSetters,
    DefaultParamsReadable["StreamingBiasedALS"],
    DefaultParamsWritable,
):
    """Biased matrix factorisation that learns from a table and goes on from a stream.

    prediction = mean + user bias + item bias + user features . item features, learned by
    variational Bayes (solver 'bayes', nothing to tune), by stochastic gradient descent ('sgd') or
    by mini-batches of summed gradients ('minibatch'): docs/algorithm.md. With implicitPrefs=True
    rows are events, without ratings, and some Params have other defaults: docs/positive-only.md.

    Parameters
    ----------
    userCol : str, default "user"
        column of user ids: integers or strings
    itemCol : str, default "item"
        column of item ids: integers or strings
    ratingCol : str, default "rating"
        column of ratings: numbers
    timestampCol : str, default ""
        column of the time of a rating, which gives the order of learning; empty for none
    weightCol : str, default ""
        column of weights: w counts as w observations; empty for none
    userFeaturesCol : str, default ""
        column of features of the user, a vector or an array of numbers, the same in all rows of a
        user (else the newest counts), null where nothing is known; empty for none. Needs solver
        'bayes' and ratings
    itemFeaturesCol : str, default ""
        column of features of the item, as userFeaturesCol; empty for none
    predictionCol : str, default "prediction"
        prediction column name
    predictionStdCol : str, default ""
        column for the standard deviation of a prediction, noise included; empty for none. Needs
        solver 'bayes'
    solver : str, default "bayes"
        'bayes' (variances instead of a learning rate), 'sgd' (one rating after another),
        'minibatch' (summed gradients, a Spark join a mini-batch), or, under implicitPrefs, 'bayes'
        or 'isgd'
    rank : int, default 16
        number of features; at least 1; default under implicitPrefs 128; what learns a stream of
        events has at most 32 of them
    maxIter : int, default 10
        sweeps of 'bayes' after its filter pass (0 = filter only), at most, see tol; passes of 'sgd'
        and 'minibatch'; default under implicitPrefs 16, sweeps over a table
    tol : float, default 0.005
        stop when a sweep changes the expected square error of a training rating by less than this
        share; of 'sgd', only where it is set, the training RMSE; 0 = never; default under
        implicitPrefs 0.0003, of the loss
    seed : int | None, default 20_140_707
        random seed
    coldStartStrategy : str, default "bias"
        prediction where a user or item is not known: 'bias' (whatever part of mean + user bias +
        item bias is known), 'nan', or 'drop' the row
    clipPredictions : bool, default True
        whether predictions are clipped to the range of ratings seen
    handleInvalid : str, default "error"
        ratings that cannot be learned (null id, null or infinite rating, negative weight): 'error'
        (default of fit and update), 'skip' (default of streams: set aside and counted), or 'keep'
        (as skip, but a missing time counts as the earliest and a bad weight as 1)
    repeatedPairs : str, default "count"
        what a pair of user and item that comes again means: 'count' (one more observation) or
        'newest' (of a table, and of each batch, the rating of the greatest timestampCol counts
        alone; what earlier batches said stays learned)
    ratingRange : Sequence[float] | None, default None
        lowest and highest rating: others cannot be learned, see handleInvalid. Where it is not set,
        streams and updates set aside what lies more than ten widths outside the ratings that they
        have learned, and a fit warns of it
    regParam : float, default 0.1
        every lambda of 'sgd' and 'minibatch' at once; 'bayes' shrinks ratings by its variances; at
        least 0; default under implicitPrefs -1.0, which is: chosen from the table, on events held
        out; with 'isgd' under implicitPrefs 0.01
    userBiasRegParam : float | None, default None
        lambda of user biases, for regParam; None: as regParam; at least 0
    itemBiasRegParam : float | None, default None
        lambda of item biases, for regParam; None: as regParam; at least 0
    userFactorRegParam : float | None, default None
        lambda of user features, for regParam; None: as regParam; at least 0
    itemFactorRegParam : float | None, default None
        lambda of item features, for regParam; None: as regParam; at least 0
    stepSize : float, default 0.01
        step size of 'sgd' and 'minibatch'; above 0; with 'isgd' default under implicitPrefs 0.05
    blockSize : int, default 10_000
        ratings of one mini-batch of 'minibatch'; at least 1
    biasPriorVariance : float, default 0.2
        prior variance of a bias, in units of the spread of ratings squared; above 0; default under
        implicitPrefs 0.1
    factorPriorVariance : float, default 0.1
        prior variance of a feature, in units of the spread of ratings; above 0; default under
        implicitPrefs 0.5
    noiseVariance : float, default 0.5
        variance of a rating about its prediction while filtering, in units of the spread of ratings
        squared; above 0
    initStd : float, default 0.05
        standard deviation of a new id's features, but in a table of events; at least 0; with 'isgd'
        default under implicitPrefs 0.1
    drift : float, default 0.0
        variance added to every coordinate that a rating touches, so that tastes may move; at
        least 0
    implicitPrior : bool, default True
        whether the prior mean of a user is learned from the items that it rated, and of an item
        from its users
    numNegatives : int | None, default 20
        under implicitPrefs: items an event that its user is taken not to have done; at least 0;
        with 'isgd' under implicitPrefs 0 by default
    rankingSize : int | None, default 0
        N of the Recall@N and MRR@N of a stream; 0 = not ranked: the default, under
        implicitPrefs 10. For ratings the model then keeps what each user has rated
    rankingSample : int, default 0
        items drawn that the item of an event or rating is ranked among; 0 = all
    numThreads : int, default 0
        threads of a training task; 0 = N under local[N], else the task's cores
    numBlocks : int, default 0
        blocks of users and of items that a fit is cut into; 1 = one task, 0 = chosen from the
        number of ratings
    maxRatingsPerTask : int, default 50_000_000
        ratings, about 66 bytes each at the peak, that one task may hold; more go in blocks; at
        least 1
    maxResidentIds : int, default 5_000_000
        users and items, about 300 bytes each at rank 16, that a stream keeps in memory, or a model
        that was loaded from sorted runs; of a larger one the rows that are needed are read from
        files under the model path; 0 = all of them
    checkpointInterval : int, default 10
        steps of a fit in blocks after which its lineage is cut; -1 = never; at least 1, or -1
    parallelism : int, default 1
        models learned at the same time; a single model does not use it; at least 1
    showProgress : bool, default False
        whether a fit shows a bar in the terminal or notebook; needs tqdm
    progressPath : str, default ""
        folder, shared by driver and executors, where tasks of a fit write how far they are; empty:
        a temporary one while showProgress shows it under local[N], else none
    implicitPrefs : bool, default False
        whether rows are events (positive-only feedback), not ratings; for 'bayes' and 'isgd'
    nonnegative : bool, default False
        whether features must not be negative; biases may be
    alpha : float, default 1.0
        under implicitPrefs an event of rating r counts (1 + alpha r) / (1 + alpha) times; at
        least 0
    unobservedWeight : float, default 0.1
        under implicitPrefs, where a table is fitted: weight of every pair of a user and an item,
        that of an event of rating 1 being 1; above 0
    numPartners : int, default 32
        under implicitPrefs: items at most that are remembered of each item as done soon before or
        after it; 0 = none, what stands together is not learned; at least 0
    repeatItems : bool | None, default None
        under implicitPrefs: whether an item that a user has done may come again; learned from the
        events where it is not set
    forgetUsersAfter : int | str | timedelta, default 0
        under implicitPrefs: events of others, or a time by timestampCol such as "30 days", after
        which a user that has done nothing is forgotten, as sessions that have ended; 0 = never
    numUserBlocks : int, default 10
        as in ALS: blocks of users; no effect, see numBlocks; at least 1
    numItemBlocks : int, default 10
        as in ALS: blocks of items; no effect, see numBlocks; at least 1
    intermediateStorageLevel : str, default "MEMORY_AND_DISK"
        as in ALS: where Spark keeps intermediate data; no effect
    finalStorageLevel : str, default "MEMORY_AND_DISK"
        as in ALS: where Spark keeps factors; no effect, the driver has them

    Examples
    --------
    >>> als = StreamingBiasedALS(userCol="userId", itemCol="movieId", timestampCol="timestamp")
    >>> model = als.fit(ratings)
    >>> model.transform(pairs)
    >>> job = model.updateStream(stream, "/models/films", trigger={"availableNow": True})
    """

    _input_kwargs: dict[str, Any]

    @keyword_only
    def __init__(
        self,
        *,
        userCol: str = "user",
        itemCol: str = "item",
        ratingCol: str = "rating",
        timestampCol: str = "",
        weightCol: str = "",
        userFeaturesCol: str = "",
        itemFeaturesCol: str = "",
        predictionCol: str = "prediction",
        predictionStdCol: str = "",
        solver: str = "bayes",
        rank: int = 16,
        maxIter: int = 10,
        tol: float = 0.005,
        seed: int | None = None,
        coldStartStrategy: str = "bias",
        clipPredictions: bool = True,
        handleInvalid: str = "error",
        repeatedPairs: str = "count",
        ratingRange: Sequence[float] | None = None,
        regParam: float = 0.1,
        userBiasRegParam: float | None = None,
        itemBiasRegParam: float | None = None,
        userFactorRegParam: float | None = None,
        itemFactorRegParam: float | None = None,
        stepSize: float = 0.01,
        blockSize: int = 10_000,
        biasPriorVariance: float = 0.2,
        factorPriorVariance: float = 0.1,
        noiseVariance: float = 0.5,
        initStd: float = 0.05,
        drift: float = 0.0,
        implicitPrior: bool = True,
        numNegatives: int | None = None,
        rankingSize: int | None = None,
        rankingSample: int = 0,
        numThreads: int = 0,
        numBlocks: int = 0,
        maxRatingsPerTask: int = 50_000_000,
        maxResidentIds: int = 5_000_000,
        checkpointInterval: int = 10,
        parallelism: int = 1,
        showProgress: bool = False,
        progressPath: str = "",
        implicitPrefs: bool = False,
        nonnegative: bool = False,
        alpha: float = 1.0,
        unobservedWeight: float = 0.1,
        numPartners: int = 32,
        repeatItems: bool | None = None,
        forgetUsersAfter: int | str | timedelta = 0,
        numUserBlocks: int = 10,
        numItemBlocks: int = 10,
        intermediateStorageLevel: str = "MEMORY_AND_DISK",
        finalStorageLevel: str = "MEMORY_AND_DISK",
    ) -> None:
        super().__init__()
        given = self._input_kwargs
        self._set(**{name: value for name, value in given.items() if value is not None})

    @keyword_only
    def setParams(self, **kwargs: Any) -> StreamingBiasedALS:
        """Set Params by name, as in the constructor."""
        return self._set(**{name: value for name, value in kwargs.items() if value is not None})

    def write(self) -> MLWriter:
        """Return a writer: als.write().overwrite().save(path)."""
        self._warn_of_tables()
        return EstimatorWriter(self)

    @classmethod
    def read(cls) -> EstimatorReader[StreamingBiasedALS]:
        """Return a reader of saved estimators."""
        return EstimatorReader(cls)

    def _fit(self, dataset: Any) -> StreamingBiasedALSModel:
        dataset = self._table(dataset)
        self.warnOfUnused()
        kinds, id_types = self._ids_of(dataset)
        settings, options = self._plan(kinds)
        state, report, *_ = learn_table(dataset, settings, options)
        return self._model(state, id_types, report)

    def fitParquet(self, path: Location) -> StreamingBiasedALSModel:
        """`fit(spark.read.parquet(path))`, to the same bits and faster: tasks read the columns.

        Parameters
        ----------
        path : Location
            folder or file, local or a URI that pyarrow.fs reads, the same on driver and executors

        Notes
        -----
        Integer and string ids and numbers are read so; where a column has to be converted, or
        stands in the names of folders, or the path is a pattern ("*.parquet"), this is `fit`.

        Raises
        ------
        StorageError
            the files are on this machine's disk, and executors do not see them
        """
        self.warnOfUnused()
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(
                f"path is one folder, file or pattern, got {path!r}: of several, "
                "fit(spark.read.parquet(*paths))."
            )
        spark = active_session()
        see_files(spark, full_path(path))
        dataset = spark.read.parquet(spark_path(path))
        kinds, id_types = self._ids_of(dataset)
        settings, options = self._plan(kinds)
        keep = options.handle_invalid == "keep"
        limits = NO_LIMITS
        if options.rating_range is not None:
            limits = limits_for(ModelState.empty(settings, *kinds), options.rating_range)
        cells = None
        if not options.newest:
            cells = pack_parquet(dataset, full_path(path), options.columns, kinds, keep, limits)
        state, report, *_ = learn_table(dataset, settings, options, cells=cells)
        return self._model(state, id_types, report)

    def fitPath(self, dataset: Table, modelPath: Location) -> StreamingBiasedALSModel:
        """Fit a table to a new model path: tasks write the factors, which the driver never holds.

        The table is learned in blocks, whatever its size. The path holds version 0 or, where the
        fit is broken off, nothing. `updateStream` and `resumeStream` go on from there.

        Parameters
        ----------
        dataset : Table
            a table with the columns of ratings
        modelPath : Location
            folder or URI that holds nothing yet, which driver and executors share

        Returns
        -------
        the model as `load` gives it

        Raises
        ------
        ValueError
            as `fit`; the path holds something; events, rankingSize, other solvers
        TypeError
            a column of a wrong type
        LeaseError
            another process writes to the path
        StorageError
            driver and executors do not see the same path, or it cannot be written
        """
        dataset = self._table(dataset)
        self.warnOfUnused()
        kinds, id_types = self._ids_of(dataset)
        settings, options = self._plan(kinds)
        empty = self._model(ModelState.empty(settings, *kinds), id_types, None)
        path = full_path(modelPath)
        state, report, _ = fit_to_path(dataset, settings, options, path, empty._meta())
        model = self._copyValues(StreamingBiasedALSModel.load(path))
        model._summary = TrainingSummary.of(state, report)
        return model

    def fitMultiple(
        self, dataset: Table, paramMaps: Sequence[dict[Param[Any], Any]]
    ) -> Iterator[tuple[int, StreamingBiasedALSModel]]:
        """Models of a grid, one by one as (index, model), from any number of threads.

        The ratings are packed once for all param maps; maps that differ in `maxIter` alone are
        learned once, with the models of fewer passes taken on the way.
        """
        dataset = self._table(dataset)
        stages = [self.copy(params) for params in paramMaps]
        points, id_types = [], []
        for stage in stages:
            stage.warnOfUnused()
            kinds, types = stage._ids_of(dataset)
            points.append(GridPoint(*stage._plan(kinds)))
            id_types.append(types)
        grid = GridFit(dataset, points)

        def model(index: int) -> StreamingBiasedALSModel:
            state, report = grid.take(index)
            return stages[index]._model(state, id_types[index], report)

        return _FitMultipleIterator(model, len(stages))

    def fitStream(
        self,
        stream: DataFrame,
        modelPath: Location,
        trigger: Trigger = None,
        validation: Table | None = None,
        queryName: str | None = None,
        keepVersions: int = 5,
        keepDays: float = 0.0,
        leaseSeconds: float = 60.0,
        eventIdCol: str | None = None,
        watermark: str = "1 hour",
        onBatch: OnBatch | None = None,
        prometheusPath: Location = "",
        metricsTable: bool = False,
    ) -> StreamJob[StreamingBiasedALSModel]:
        """Learn from a stream, from nothing, exactly once, one committed version a micro-batch.

        A path with versions resumes from its newest one. `StreamingBiasedALSModel.updateStream`
        says more of each parameter.

        Parameters
        ----------
        stream : DataFrame
            a streaming DataFrame with the columns of ratings
        modelPath : Location
            folder or URI for versions and Spark's checkpoint
        trigger : Trigger
            as DataStreamWriter.trigger takes it, or in a word or two: "availableNow", "5 seconds"
        validation : Table | None
            held-out ratings, scored after each batch
        queryName : str | None
            name of Spark's query
        keepVersions : int
            how many of the newest versions stay loadable
        keepDays : float
            younger versions than so many days stay as well
        leaseSeconds : float
            a writer on another host counts as gone when silent for so long
        eventIdCol : str | None
            column of ids of events; an event delivered again is dropped; None for none
        watermark : str
            how late by timestampCol an event or its repeat may come, such as "1 hour"
        onBatch : OnBatch | None
            called with the metrics of each batch
        prometheusPath : Location
            folder or URI of metrics.prom
        metricsTable : bool
            whether each batch adds a Parquet file to metrics/ under the path

        Raises
        ------
        ValueError
            not a stream, a missing column, an option out of range, a path of other Params or start
        TypeError
            a column of a wrong type
        LeaseError
            another stream writes to the path
        StorageError
            the path is damaged
        """
        self.warnOfUnused()
        self._check_features(streams=True)
        stream = as_stream(stream, "call fit")
        kinds, id_types = self._ids_of(stream)
        stream, state, options = self._from_nothing(stream, kinds, modelPath)
        empty = self._model(state, id_types, None)
        return start_stream(
            stream,
            modelPath,
            StreamStart(state, NOTHING, None, empty._meta()),
            options,
            StreamOptions(
                trigger=trigger,
                validation=validation,
                query_name=queryName,
                keep_versions=keepVersions,
                keep_days=keepDays,
                lease_seconds=leaseSeconds,
                event_id_col=eventIdCol,
                watermark=watermark,
                on_batch=onBatch,
                prometheus_path=prometheusPath,
                metrics_table=metricsTable,
            ),
            empty._at_newest,
        )

    def _plan(self, kinds: tuple[Any, Any]) -> tuple[Settings, FitOptions]:
        self._check_features()
        settings = replace(self.settings(table=True), featured=self._has_features())
        options = fit_options(self, kinds, self.getHandleInvalid(), settings)
        return settings, replace(options, feature_tables=self._feature_tables)

    def _table(self, dataset: Any) -> DataFrame:
        return as_table(dataset, "dataset", self.ratingColumns().in_order, "call fitStream")

    def _ids_of(self, dataset: DataFrame) -> tuple[tuple[Any, Any], tuple[str, str]]:
        schema = dataset.schema
        named = (("userCol", self.getUserCol()), ("itemCol", self.getItemCol()))
        user, item = (id_kind(schema, param, name) for param, name in named)
        user_type, item_type = (id_type_name(schema, param, name) for param, name in named)
        return (user, item), (user_type, item_type)

    def _model(
        self, state: ModelState, id_types: tuple[str, str], report: TrainingReport | None
    ) -> StreamingBiasedALSModel:
        # pyspark.ml's contract: a model carries its estimator's uid, or grids lose their params
        summary = None if report is None else TrainingSummary.of(state, report)
        model = StreamingBiasedALSModel(state, id_types, 0, summary)._resetUid(self.uid)
        return self._copyValues(model)


# the name that saved pipelines carry stays, wherever the class may move
StreamingBiasedALS.__module__ = "sparkml_sgdals"
