"""The model: transform, update, learn from a stream, save (driver; arithmetic is elsewhere)."""

from __future__ import annotations

import logging
from typing import Any

from pyspark.ml import Model
from pyspark.ml.recommendation import ALSModel
from pyspark.ml.util import MLReadable, MLWritable, MLWriter
from pyspark.sql import DataFrame, SparkSession

from sparkml_sgdals.fit.fitting import learn_table
from sparkml_sgdals.ingest.bad_rows import column_names, explain_problems, refuse_invalid
from sparkml_sgdals.ingest.collecting import announced_in, collect_ratings, rated
from sparkml_sgdals.ingest.frames import Table, as_table, like_given
from sparkml_sgdals.learn.far_values import limits_for
from sparkml_sgdals.ml.evaluate_methods import EvaluationMethods
from sparkml_sgdals.ml.export_methods import ExportMethods
from sparkml_sgdals.ml.factor_methods import FactorMethods
from sparkml_sgdals.ml.feature_methods import ModelFeatures
from sparkml_sgdals.ml.fit_options import fit_options, stream_invalid
from sparkml_sgdals.ml.one_methods import OneMethods
from sparkml_sgdals.ml.params import default_settings
from sparkml_sgdals.ml.persistence import ModelReader, ModelWriter, Picklable
from sparkml_sgdals.ml.setters import ModelSetters
from sparkml_sgdals.ml.summary import TrainingSummary
from sparkml_sgdals.ml.version_methods import VersionMethods
from sparkml_sgdals.predict.scoring import FactorFrames, ScoreColumns, score
from sparkml_sgdals.spark_jobs import active_session
from sparkml_sgdals.state.event_scores import serving_state
from sparkml_sgdals.state.event_starts import event_starts
from sparkml_sgdals.state.factors import put_features
from sparkml_sgdals.state.model_state import ModelState, Scale
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store.large.opening import open_version, refuse_whole
from sparkml_sgdals.store.objects import Location, full_path
from sparkml_sgdals.store.overlay import Overlay
from sparkml_sgdals.store.version_store import StorageError, VersionStore
from sparkml_sgdals.stream.announced import start_announced
from sparkml_sgdals.stream.job import StreamJob
from sparkml_sgdals.stream.micro_batch import learn_collected
from sparkml_sgdals.stream.options import StreamOptions, Trigger
from sparkml_sgdals.stream.report import OnBatch
from sparkml_sgdals.stream.start import StreamStart, start_stream

__all__ = ["StreamingBiasedALSModel"]

logger = logging.getLogger(__name__)


class StreamingBiasedALSModel(
    FactorMethods,
    EvaluationMethods,
    ExportMethods,
    OneMethods,
    VersionMethods,
    ModelFeatures,
    Picklable,
    Model,
    ModelSetters,
    MLWritable,
    MLReadable["StreamingBiasedALSModel"],
):
    """A fitted model, which predicts and goes on learning.

    prediction = globalMean + user bias + item bias + user features . item features

    Attributes
    ----------
    version : int
        grows by one with every update or micro-batch
    """

    def __init__(
        self,
        state: ModelState | None = None,
        id_types: tuple[str, str] = ("bigint", "bigint"),
        version: int = 0,
        summary: TrainingSummary | None = None,
    ) -> None:
        super().__init__()
        if state is None:
            state = ModelState.empty(default_settings(), "int", "int")
        self._state = state
        self._id_types = id_types
        self.version = version
        self._summary = summary
        # copies share a state until one of them learns
        self._shared = False
        self._path_id: str | None = None
        # of a version that is too large for memory: reads the rows that `_state` lacks
        self._stored: Overlay | None = None
        self._frames: tuple[tuple[SparkSession, bool], FactorFrames] | None = None
        self._predictor = None
        self._serving: tuple[ModelState, int, ModelState] | None = None

    @property
    def state(self) -> ModelState:
        """Everything that predictions depend on; not part of the public interface."""
        return self._state

    @property
    def idTypes(self) -> tuple[str, str]:
        """Spark's names of the types of user and item ids."""
        return self._id_types

    # ---- what it knows ----------------------------------------------------------------------

    @property
    def rank(self) -> int:
        """Number of features."""
        settings = self._state.settings
        return settings.table_rank or settings.rank

    @property
    def globalMean(self) -> float:
        """Mean of the ratings."""
        return self._scoring_state().scale.mean

    @property
    def hasSummary(self) -> bool:
        """Whether there is a `summary`: not where the model was loaded or comes from a stream."""
        return self._summary is not None

    @property
    def summary(self) -> TrainingSummary:
        """What the last fit did: ratings, ids, training RMSE by sweep, noise, seconds by phase.

        Raises RuntimeError where there is none (hasSummary), as pyspark.ml's models do.
        """
        if self._summary is None:
            raise RuntimeError(
                "There is no training summary: this model was loaded, or comes from a stream. "
                "diagnose() says what any model has learned."
            )
        return self._summary

    # ---- predict ----------------------------------------------------------------------------

    def _transform(self, dataset: Any) -> Any:
        names = (self.getUserCol(), self.getItemCol())
        return like_given(dataset, names, self._scored)

    def _scored(self, dataset: DataFrame) -> DataFrame:
        columns = ScoreColumns(
            user=self.getUserCol(),
            item=self.getItemCol(),
            prediction=self.getPredictionCol(),
            std=self.getPredictionStdCol(),
            cold_start=self.getColdStartStrategy(),
            clip=self.getClipPredictions(),
            features=self._features_among(dataset.columns),
        )
        if columns.std and self._state.settings.solver != "bayes":
            raise ValueError(
                f"predictionStdCol needs a model of solver 'bayes', this one was learned by "
                f"{self._state.settings.solver!r}: set predictionStdCol to ''."
            )
        if columns.std:
            self._refuse_of_events("predictionStdCol states the deviation of a rating")
        spark, state = dataset.sparkSession, self._scoring_state()
        key = (spark, bool(columns.std))
        if self._frames is None or self._frames[0] != key:
            frames = (self._factors(spark, side, key[1]) for side in ("users", "items"))
            self._frames = (key, FactorFrames(*frames))
        starts = (
            event_starts(self._state, state)
            if any(columns.features) and self._state.settings.learns_events
            else (None, None)
        )
        return score(dataset, state, self._frames[1], columns, starts)

    # ---- start from ALS ---------------------------------------------------------------------

    @classmethod
    def fromALS(cls, als_model: ALSModel, nonnegative: bool = False) -> StreamingBiasedALSModel:
        """Start a model from the factors of Spark's own ALSModel; it learns on from there.

        Its predictions for known pairs are ALS's, until its first update; they are clipped only
        once a rating has been seen. Variances start at the defaults' priors. With `nonnegative` no
        feature becomes negative; ValueError where one of ALS is.
        """
        # ALS's features are far from their prior: partners would take all of that for news
        settings = default_settings(
            rank=als_model.rank, implicit_prior=False, nonnegative=nonnegative
        )
        state = ModelState.empty(settings, "int", "int")
        for table, factors in (
            (state.users, als_model.userFactors),
            (state.items, als_model.itemFactors),
        ):
            put_features(table, factors.select("id", "features").toArrow())
        state.scale = Scale(frozen=True)
        model = cls(state, ("int", "int"))
        model._set(
            userCol=als_model.getUserCol(),
            itemCol=als_model.getItemCol(),
            predictionCol=als_model.getPredictionCol(),
            coldStartStrategy=als_model.getColdStartStrategy(),
        )
        return model

    # ---- go on learning ---------------------------------------------------------------------

    def update(self, dataset: Table) -> StreamingBiasedALSModel:
        """Learn more ratings, each once, in place, and return the model; `version` grows by one.

        Up to a million ratings are filtered on the driver; more are learned the way of `fit`,
        with what the model knows as the prior.

        Raises
        ------
        ValueError
            a missing column, a stream, or rows that cannot be learned (handleInvalid)
        TypeError
            a column of a wrong type
        DivergenceError
            the model is then as it was before
        """
        self._check_feature_columns()
        names = self.ratingColumns().in_order
        dataset = as_table(dataset, "dataset", names, "call updateStream")
        settings = self._state.settings
        options = fit_options(self, self._kinds(), self.getHandleInvalid(), settings)
        keep = options.handle_invalid == "keep"
        given = options.rating_range
        collected = collect_ratings(
            dataset, options.columns, options.kinds, keep,
            limits_of=lambda table: limits_for(self._state, given, table), newest=options.newest,
        )  # fmt: skip
        if collected is None:
            refuse_whole(self._state, "For an update with more than a million ratings")
            prior = None if self._state.blank else self._state
            announced = announced_in(dataset, options.columns, options.kinds)
            rows = rated(dataset, options.columns)
            self._state, report, *_ = learn_table(rows, settings, options, prior, screened=True)
            start_announced(self._state, announced, options)
            self._summary = TrainingSummary.of(self._state, report)
        else:
            if options.handle_invalid == "error":
                rows = rated(dataset, options.columns)
                refuse_invalid(collected.problems, options.columns, rows, options.kinds)
            if self._shared:
                self._keep_apart()
            stored = self._stored
            done = learn_collected(
                self._state, collected, options, *([] if stored is None else [stored.fetch])
            )
            if stored is not None and done.rows is not None:
                stored.learned(done.rows, (done.new_users, done.new_items))
                stored.trim()
            if done.bad_rows:
                told = explain_problems(done.problems, column_names(options.columns))
                logger.warning("rows not learned: %s", told)
        self._shared = False
        self._frames = None
        self._path_id = None
        self.version += 1
        return self

    def updateStream(
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
        """Learn from a stream, exactly once, one committed version a micro-batch.

        This model is the start of an empty `modelPath` and is itself left as it is; a path with
        versions resumes from its newest one.

        Parameters
        ----------
        stream : DataFrame
            a streaming DataFrame with the columns of ratings
        modelPath : Location
            folder or URI for versions and Spark's checkpoint; without a scheme local
        trigger : Trigger
            as DataStreamWriter.trigger takes it, e.g. {"availableNow": True}, or in a word or two:
            "availableNow", "5 seconds"
        validation : Table | None
            held-out ratings, scored after each batch and kept under the path
        queryName : str | None
            name of Spark's query
        keepVersions : int
            how many of the newest versions stay loadable
        keepDays : float
            younger versions than so many days stay as well
        leaseSeconds : float
            a writer on another host counts as gone when silent for so long
        eventIdCol : str | None
            column of ids of events; an event delivered again is dropped (Spark's
            dropDuplicatesWithinWatermark), as are those later than `watermark`
        watermark : str
            how late by timestampCol, a timestamp, an event or its repeat may come
        onBatch : OnBatch | None
            called with the metrics of each batch, a dict, once it is committed, in the process that
            learns (on Spark Connect beside the server, so it must be picklable); what it raises is
            logged
        prometheusPath : Location
            folder or URI in which metrics.prom is replaced after each batch
        metricsTable : bool
            whether each batch adds a Parquet file to metrics/ under the path, a row with the
            columns of `job.metrics` that need no other batch

        Raises
        ------
        ValueError
            not a stream, a missing column, an option out of range, a path learned with other Params
            or from another start, or maxResidentIds set for a model of ratings that ranks
            (rankingSize)
        TypeError
            a column of a wrong type
        LeaseError
            another stream writes to the path
        StorageError
            the path is damaged
        """
        self._check_feature_columns()
        stored = self._stored
        told = self._state.fingerprint() if stored is None else stored.fingerprint()
        return start_stream(
            stream,
            modelPath,
            StreamStart(self._state, told, self._path_id, self._meta(), stored),
            fit_options(self, self._kinds(), stream_invalid(self), self._state.settings),
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
            self._at_newest,
        )

    @classmethod
    def resumeStream(
        cls,
        stream: DataFrame,
        modelPath: Location,
        maxResidentIds: int | None = None,
        **options: Any,
    ) -> StreamJob[StreamingBiasedALSModel]:
        """Go on with the stream of a model path without loading its model into memory first.

        Parameters
        ----------
        stream : DataFrame
            a streaming DataFrame with the columns of ratings
        modelPath : Location
            folder or URI of a model that a stream has begun
        maxResidentIds : int | None
            the Param, by default as it was set for the path
        **options : Any
            as `updateStream` takes them

        Raises
        ------
        StorageError
            there is no model, or it is damaged
        ValueError
            `maxResidentIds` for a model of events, or of ratings that ranks
        others : as `updateStream`
        """
        store = VersionStore(full_path(modelPath))
        meta, newest = store.meta(), store.newest()
        if meta is None or newest is None:
            raise StorageError(f"{modelPath} does not hold a model: start with updateStream.")
        settings = Settings.from_json(meta["settings"])
        if maxResidentIds and settings.learns_events:
            raise ValueError(
                f"maxResidentIds is {maxResidentIds}, but a model of events (implicitPrefs) is "
                "kept in memory as a whole: leave it out."
            )
        empty = ModelState.empty(settings, *meta["kinds"])
        model = cls._described(meta, empty, newest.version)
        if maxResidentIds is not None:
            model.setMaxResidentIds(maxResidentIds)
        return model.updateStream(stream, modelPath, **options)

    # ---- copy, save, load -------------------------------------------------------------------

    def copy(self, extra: dict[Any, Any] | None = None) -> StreamingBiasedALSModel:
        """Return an independent snapshot: what this model learns later, the copy does not."""
        self._shared = True
        return super().copy(extra)

    def write(self) -> MLWriter:
        """Return a writer: model.write().overwrite().save(path)."""
        return ModelWriter(self)

    @classmethod
    def read(cls) -> ModelReader[StreamingBiasedALSModel]:
        """Return a reader of saved models and of model paths."""
        return ModelReader(cls, cls._from_store)

    @classmethod
    def load(
        cls, path: Location, version: int | None = None, maxResidentIds: int | None = None
    ) -> StreamingBiasedALSModel:
        """Load a saved model, or a version (the newest by default) under a model path.

        A version in sorted runs with more ids than `maxResidentIds` is read where it lies: the
        model then holds that many rows at most.

        Parameters
        ----------
        path : Location
            folder or URI
        version : int | None
            of a model path
        maxResidentIds : int | None
            users and items in memory, by default as the Param was set; 0 = all

        Raises
        ------
        StorageError
            nothing readable is there, it is damaged or of another format
        """
        return cls.read().load(path, version, maxResidentIds)

    def __repr__(self) -> str:
        """Return the uid and sizes of the model."""
        state = self._state
        return (
            f"StreamingBiasedALSModel: uid={self.uid}, rank={self.rank}, version={self.version}, "
            f"users={state.ids[0]}, items={state.ids[1]}, ratings={state.counters.ratings}"
            + ("" if self._stored is None else f", read from {self._stored.store.path}")
        )

    @classmethod
    def _from_store(
        cls, store: VersionStore, version: int | None, resident: int | None = None
    ) -> StreamingBiasedALSModel:
        def limit() -> int:
            if resident is not None:
                return resident
            params: dict[str, int] = (store.meta() or {}).get("params", {})
            return params.get("maxResidentIds", cls().getMaxResidentIds())

        state, commit, stored = open_version(store, version, limit)
        model = cls._described(store.meta() or {}, state, commit.version)
        model._stored = stored
        if resident is not None:
            model.setMaxResidentIds(resident)
        return model

    @classmethod
    def _described(
        cls, meta: dict[str, Any], state: ModelState, version: int
    ) -> StreamingBiasedALSModel:
        for name in ("idTypes", "pathId", "uid", "params"):
            if name not in meta:
                raise StorageError(
                    f"model.json says nothing of {name}, as of a path that a stream wrote: restore "
                    "it, or use Predictor.load(path), which does without."
                )
        model = cls(state, tuple(meta["idTypes"]), version)
        model._path_id = meta["pathId"]
        model._resetUid(meta["uid"])
        for name, value in meta["params"].items():
            model._set(**{name: value})
        return model

    def _at_newest(self, store: VersionStore) -> StreamingBiasedALSModel:
        newest = self._from_store(store, None, self.getMaxResidentIds())
        return self._copyValues(newest)

    def _meta(self) -> dict[str, Any]:
        params = {param.name: value for param, value in self._paramMap.items()}
        return {"uid": self.uid, "params": params, "idTypes": list(self._id_types)}

    def _scoring_state(self) -> ModelState:
        """Return the state that scores pairs: of events with their popularity and context."""
        if not self._state.settings.learns_events:
            return self._state
        held = self._serving
        if held is None or held[0] is not self._state or held[1] != self.version:
            held = (self._state, self.version, serving_state(self._state))
            self._serving = held
        return held[2]

    def _refuse_of_events(self, what: str) -> None:
        if self._state.settings.learns_events:
            raise ValueError(
                f"{what}, and this model was learned from events (implicitPrefs=True). Judge it "
                "by the rank of what users did next: docs/positive-only.md."
            )

    def _kinds(self) -> tuple[Any, Any]:
        return self._state.users.index.kind, self._state.items.index.kind

    @staticmethod
    def _session() -> SparkSession:
        return active_session()


# the name that saved pipelines carry stays, wherever the class may move
StreamingBiasedALSModel.__module__ = "sparkml_sgdals"
