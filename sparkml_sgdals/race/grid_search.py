"""StreamingGridSearch: candidates of a grid race on one stream, the best one serves (driver)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import pandas as pd
from pyspark import keyword_only
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.sql import DataFrame

from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.ingest.features import SIDES
from sparkml_sgdals.ingest.frames import as_stream
from sparkml_sgdals.ml.estimator import StreamingBiasedALS
from sparkml_sgdals.ml.model import StreamingBiasedALSModel
from sparkml_sgdals.ml.params.converters import at_least, param
from sparkml_sgdals.race.candidates import started_from
from sparkml_sgdals.race.standings import RaceRules
from sparkml_sgdals.race.updater import RaceUpdater, leader_of
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store.objects import Location
from sparkml_sgdals.store.version_store import VersionStore
from sparkml_sgdals.stream.job import StreamJob
from sparkml_sgdals.stream.options import StreamOptions, Trigger
from sparkml_sgdals.stream.report import OnBatch
from sparkml_sgdals.stream.start import StreamStart, start_stream

__all__ = ["RACE", "RaceJob", "StreamingGridSearch"]

RACE: Final = (
    "candidate", "params", "batch", "ratings", "loss", "rmse", "mrr", "rival", "lower", "upper",
    "leads", "entered", "dropped", "reason", "dropped_at",
)  # fmt: skip
"""Columns of `RaceJob.race`."""


def _share(name: str, value: Any) -> float:
    number = TypeConverters.toFloat(value)
    if not 0.0 < number < 1.0:
        raise ValueError(f"{name} must be above 0 and below 1, got {value!r}.")
    return number


def _tolerance(value: Any) -> float:
    number = TypeConverters.toFloat(value)
    if not 0.0 <= number < 1.0:
        raise ValueError(f"tolerance must be at least 0 and below 1, got {value!r}.")
    return number


class RaceJob(StreamJob[StreamingBiasedALSModel]):
    """A race on a stream; `model` is the leader's newest version, `metrics` are the leaders'."""

    def race(self) -> pd.DataFrame:
        """How each candidate stood after each batch that it ran in, columns RACE.

        candidate is its place in estimatorParamMaps, params what that sets; ratings are those
        predicted since its entrance, loss is its RMSE with the fading factor and rmse that of the
        batch, in rating units; of events loss is 1 - MRR@N with the fading factor. mrr is MRR@N of
        the batch, where it ranks. lower and upper bound its mean squared error, or 1 - MRR@N,
        minus that of `rival`; leads, entered, dropped say what it is after the batch, reason why it
        was dropped ("worse", "equal": better by the tolerance at most, or "diverged"), dropped_at
        in which batch that was, in all rows since its entrance.
        """
        store = VersionStore(self.path)
        names = (store.meta() or {})["race"]["params"]
        rows: list[dict[str, Any]] = []
        for batch in store.metrics():
            for row in batch["race"]:
                told = (
                    {"mrr": None}
                    | row
                    | {
                        "params": names[row["candidate"]],
                        "batch": batch["batch"],
                        "reason": row["dropped"],
                        "dropped": bool(row["dropped"]),
                    }
                )
                rows.append(told)
        frame = pd.DataFrame(rows, columns=list(RACE))
        numbers = ["loss", "rmse", "mrr", "lower", "upper", "dropped_at"]
        frame[numbers] = frame[numbers].astype(float)
        run = frame.groupby("candidate").entered.cumsum()
        ends = frame.batch.where(frame.dropped.astype(bool))
        frame["dropped_at"] = ends.groupby([frame.candidate, run]).transform("max")
        return frame


class StreamingGridSearch(Params):
    """Hyperparameters without the past: candidates learn from one stream, the worst are dropped.

    Every micro-batch is collected and encoded once and learned by all candidates in the race, side
    by side on the driver's cores. Each is judged by its errors on ratings that it has not learned
    yet; `sparkml_sgdals.race.standings` says by which test one is dropped and what is assumed.

    Parameters
    ----------
    estimator : StreamingBiasedALS
        a StreamingBiasedALS
    estimatorParamMaps : Sequence[dict[Param[Any], Any]]
        a grid, as ParamGridBuilder makes it; maps may set what is learned by, not which columns are
        read
    errorProbability : float
        that a candidate that is better than all others by more than the tolerance is ever dropped,
        at most
    keep : int
        candidates that stay in the race whatever the evidence, so that the order can turn round
    minRatings : int
        ratings predicted before a candidate can be dropped
    challengers : int
        dropped candidates that may be back at a time, started from the leader's factors
    fadingFactor : float
        what a rating counts in the loss that the leader is chosen by when the next comes
    tolerance : float
        a candidate goes as well where it is shown not to be better than the leader by more than
        this share of its RMSE (of events, of its 1 - MRR@N); 0 keeps those that are equal
    parallelism : int
        threads; 0 for as many as the driver has cores

    Examples
    --------
    >>> grid = ParamGridBuilder().addGrid(als.rank, [4, 16]).addGrid(als.drift, [0.0, 1e-4]).build()
    >>> search = StreamingGridSearch(estimator=als, estimatorParamMaps=grid, keep=2)
    >>> job = search.fitStream(stream, "/models/race", trigger={"availableNow": True})
    >>> job.model, job.race()
    """

    errorProbability: Param[float] = param(
        "errorProbability",
        "probability that the best candidate is ever dropped, at most.",
        partial(_share, "errorProbability"),
    )
    keep: Param[int] = param(
        "keep", "candidates that stay whatever the evidence.", at_least("keep", 1)
    )
    minRatings: Param[int] = param(
        "minRatings",
        "ratings predicted before a candidate can be dropped.",
        at_least("minRatings", 0),
    )
    challengers: Param[int] = param(
        "challengers", "dropped candidates that may be back at a time.", at_least("challengers", 0)
    )
    fadingFactor: Param[float] = param(
        "fadingFactor",
        "what a rating counts in a candidate's loss when the next one comes.",
        partial(_share, "fadingFactor"),
    )
    tolerance: Param[float] = param(
        "tolerance",
        "share of the leader's loss that a candidate has to be better by to stay; 0 = any.",
        _tolerance,
    )
    parallelism: Param[int] = param(
        "parallelism",
        "threads that learn side by side; 0 = the driver's cores.",
        at_least("parallelism", 0),
    )

    _input_kwargs: dict[str, Any]

    @keyword_only
    def __init__(
        self,
        *,
        estimator: StreamingBiasedALS,
        estimatorParamMaps: Sequence[dict[Param[Any], Any]],
        errorProbability: float = 0.05,
        keep: int = 2,
        minRatings: int = 5_000,
        challengers: int = 0,
        fadingFactor: float = 0.9999,
        tolerance: float = 0.002,
        parallelism: int = 0,
    ) -> None:
        super().__init__()
        defaults = RaceRules()
        self._setDefault(
            errorProbability=defaults.error_probability,
            keep=defaults.keep,
            minRatings=defaults.min_ratings,
            challengers=defaults.challengers,
            fadingFactor=defaults.fading,
            tolerance=defaults.tolerance,
            parallelism=0,
        )
        given = dict(self._input_kwargs)
        self._estimator: StreamingBiasedALS = given.pop("estimator")
        self._maps: list[dict[Param[Any], Any]] = list(given.pop("estimatorParamMaps"))
        self._set(**given)

    def fitStream(
        self,
        stream: DataFrame,
        modelPath: Location,
        trigger: Trigger = None,
        queryName: str | None = None,
        keepVersions: int = 5,
        keepDays: float = 0.0,
        leaseSeconds: float = 60.0,
        eventIdCol: str | None = None,
        watermark: str = "1 hour",
        onBatch: OnBatch | None = None,
        prometheusPath: Location = "",
        metricsTable: bool = False,
        initialModel: StreamingBiasedALSModel | None = None,
    ) -> RaceJob:
        """Start the race on a stream, or resume it where the path holds it: same winner, same bits.

        `StreamingBiasedALSModel.updateStream` says more of each parameter.

        Parameters
        ----------
        stream : DataFrame
            a streaming DataFrame with the columns of ratings, of at most a million ratings a
            micro-batch
        modelPath : Location
            folder or URI for versions and Spark's checkpoint
        trigger : Trigger
            as DataStreamWriter.trigger takes it, or in a word or two: "availableNow", "5 seconds"
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
        initialModel : StreamingBiasedALSModel | None
            what all candidates start from, each with its own Params; what a fitted table of events
            says is the same in all. None for nothing. A race that is resumed gets the same one

        Raises
        ------
        ValueError
            not a stream, a missing column, an option out of range, no candidates, two that learn
            the same, maps that set columns, a path with another race or with a model without one,
            or an initialModel of other ids, of events where candidates learn ratings or the other
            way round, or of events by another solver
        TypeError
            a column of a wrong type
        LeaseError
            another stream writes to the path
        StorageError
            the path is damaged, or was rolled back
        """
        stream = as_stream(stream, "use CrossValidator or RankingValidationSplit")
        stages = [self._estimator.copy(params) for params in self._maps]
        settings = self._settings_of(stages)
        first = stages[0]
        kinds, id_types = first._ids_of(stream)
        begins = None if initialModel is None else initialModel.state
        stream, start, options = first._from_nothing(stream, kinds, modelPath, begins)
        if initialModel is not None:
            settings = _starting_from(initialModel, settings, kinds, options.columns.features)
        rules = RaceRules(
            self.getOrDefault(self.errorProbability),
            self.getOrDefault(self.keep),
            self.getOrDefault(self.minRatings),
            self.getOrDefault(self.challengers),
            self.getOrDefault(self.fadingFactor),
            self.getOrDefault(self.tolerance),
            squares=not settings[0].learns_events,
        )
        named = {
            "candidates": [s.to_json() for s in settings],
            "params": [json.dumps(_named(params)) for params in self._maps],
            "rules": rules.__dict__,
        }
        identity = json.dumps([named["candidates"], named["rules"]], sort_keys=True)
        origin = f"race {hashlib.sha256(identity.encode()).hexdigest()}"
        if initialModel is not None:
            stored = initialModel._stored
            # candidates hold all of it
            start = initialModel.state if stored is None else stored.whole()
            origin += f" from {start.fingerprint()}"
        begun = first._model(start, id_types, None)
        threads = self.getOrDefault(self.parallelism) or os.cpu_count() or 1

        def load(store: VersionStore) -> StreamingBiasedALSModel:
            model = StreamingBiasedALSModel._from_store(store, None)
            commit = store.read_commit(model.version)
            winner = stages[0 if commit is None else leader_of(commit)]
            return winner._copyValues(model)

        job = start_stream(
            stream,
            modelPath,
            StreamStart(start, origin, None, begun._meta() | {"race": named}),
            options,
            StreamOptions(
                trigger=trigger,
                validation=None,
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
            load,
            partial(
                RaceUpdater, settings=settings, rules=rules, threads=min(threads, len(settings))
            ),
        )
        return RaceJob(job.query, job.path, job._lease, load, job._late)

    def _settings_of(self, stages: list[StreamingBiasedALS]) -> tuple[Settings, ...]:
        if not stages:
            raise ValueError("estimatorParamMaps is empty: give one map a candidate.")
        read = {(stage.ratingColumns(), stage.getRatingRange()) for stage in stages}
        if len(read) > 1:
            raise ValueError(
                "The candidates read different columns or ratings: set userCol, itemCol, "
                "ratingCol, timestampCol, weightCol and ratingRange on the estimator, not in "
                "estimatorParamMaps."
            )
        for stage in stages:
            stage.warnOfUnused()
            stage._check_features(streams=True)
        settings = tuple(
            replace(stage.settings(), featured=stage._has_features()) for stage in stages
        )
        if len({own.learns_events for own in settings}) > 1:
            raise ValueError(
                "Some candidates learn events and some ratings: set implicitPrefs on the "
                "estimator, not in estimatorParamMaps."
            )
        if len({(own.ranking_size, own.ranking_sample) for own in settings}) > 1:
            raise ValueError(
                "The candidates rank differently, so their ranks do not compare: set rankingSize "
                "and rankingSample on the estimator, not in estimatorParamMaps."
            )
        if any(own.forget_after or own.forget_after_micros for own in settings):
            raise ValueError(
                "Candidates of a race have all users in common, so none is forgotten: leave "
                "forgetUsersAfter unset, and set it on the estimator that goes on with the winner."
            )
        if settings[0].learns_events:
            self._check_events(settings)
        seen: dict[str, int] = {}
        for number, own in enumerate(settings):
            # a stream is learned in one pass, whatever these
            same = {"max_iter": 0, "tol": 0.0}
            learned_by = json.dumps(own.to_json() | same, sort_keys=True)
            if learned_by in seen:
                raise ValueError(
                    f"Candidates {seen[learned_by]} and {number} learn a stream in the same way "
                    f"({_named(self._maps[number])}): leave one out. maxIter and tol have no "
                    "effect on a stream."
                )
            seen[learned_by] = number
        return settings

    def _check_events(self, settings: tuple[Settings, ...]) -> None:
        """Refuse what leaves candidates of events without a loss in common."""
        if not settings[0].ranking_size:
            raise ValueError(
                "rankingSize is 0, and a race of events is judged by MRR@rankingSize: set it to 1 "
                "or more."
            )
        for name in ("solver", "nonnegative"):
            if (
                self.getOrDefault(self.challengers)
                and len({getattr(s, name) for s in settings}) > 1
            ):
                raise ValueError(
                    "challengers cannot start from the leader where candidates of events differ "
                    f"in {name}: set challengers to 0, or one {name} on the estimator."
                )


def _starting_from(
    model: StreamingBiasedALSModel, settings: tuple[Settings, ...], kinds: tuple[IdKind, IdKind],
    features: tuple[str | None, str | None],
) -> tuple[Settings, ...]:  # fmt: skip
    """Return the candidates' settings where they start from a model.

    Raises ValueError where they cannot; `features` are the columns of features of both sides.
    """
    state, held = model.state, model.state.settings
    for side, name, weights, learns in zip(
        SIDES, features, state.features, state.learns_features, strict=True
    ):
        if name is not None and weights is None and not learns:
            raise ValueError(
                f"There are features of {side}s, and initialModel was fitted without: fit it with "
                f"them, or leave {side}FeaturesCol and set{side.capitalize()}Features out."
            )
    if held.featured and any(own.solver != "bayes" for own in settings):
        raise ValueError(
            "initialModel knows features, which solver 'bayes' alone goes on with: set solver on "
            "the estimator, or fit initialModel without features."
        )
    settings = tuple(replace(own, featured=held.featured) for own in settings)
    if (state.users.index.kind, state.items.index.kind) != kinds:
        raise ValueError(
            f"initialModel has ids of types {', '.join(model.idTypes)} (user, item), and the "
            "stream has others: cast its columns."
        )
    if held.learns_events != settings[0].learns_events:
        what = {True: "events", False: "ratings"}
        raise ValueError(
            f"initialModel learned {what[held.learns_events]} and the candidates learn "
            f"{what[settings[0].learns_events]}: set implicitPrefs on the estimator as in the "
            "model."
        )
    others = {own.solver for own in settings} - {held.solver}
    if held.learns_events and others:
        raise ValueError(
            f"initialModel learned events by solver {held.solver!r}, and candidates of solver "
            f"{', '.join(sorted(others))!r} cannot start from it: set solver on the estimator."
        )
    if held.learns_events and any(own.nonnegative != held.nonnegative for own in settings):
        raise ValueError(
            f"initialModel learned events with nonnegative={held.nonnegative}, and candidates of "
            "the other cannot start from it: set nonnegative on the estimator as in the model."
        )
    return tuple(started_from(held, own) for own in settings)


def _named(params: dict[Param[Any], Any]) -> dict[str, Any]:
    return {key.name: value for key, value in params.items()}
