"""`fit` and `stream`."""

from __future__ import annotations

import json
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from sparkml_sgdals.cli.arguments import (
    Format,
    Item,
    ItemFeatures,
    Option,
    Rating,
    Schema,
    Time,
    TimeFormat,
    User,
    UserFeatures,
)
from sparkml_sgdals.cli.command import Invocation, command, pairs
from sparkml_sgdals.cli.reading.columns import DEFAULTS, SourceColumns, by_order, find_columns
from sparkml_sgdals.cli.reading.places import Place, look
from sparkml_sgdals.ingest.columns import quoted

if TYPE_CHECKING:
    from sparkml_sgdals.stream.job import StreamJob

__all__ = ["register"]

Params = Annotated[
    list[str] | None,
    typer.Option(
        "--param",
        "-P",
        help="A Param of StreamingBiasedALS, as name=value, such as rank=32; may be repeated. A "
        "name that is none lists all.",
    ),
]

_POLL_SECONDS: Final = 0.25
_LISTED: Final = 10
"""items of a list that a model of events is judged by"""
_COLD: Final = (
    "coldPredicted", "coldLists", "coldRecall", "coldNdcg", "coldPlainRecall", "coldPlainNdcg",
)  # fmt: skip
"""fields of a diagnosis that say what features of new ids are worth"""
_COUNTED: Final = ("batch", "ratings", "invalid", "newUsers", "newItems", "ranked")
_HEADINGS: Final = {
    "batch": "batch", "ratings": "ratings", "invalid": "invalid", "newUsers": "new users",
    "newItems": "new items", "rmse": "RMSE before learning", "validationRmse": "held-out RMSE",
    "ranked": "ranked", "recall": "recall", "baselineRecall": "baseline", "mrr": "MRR",
}  # fmt: skip
"""columns of a stream's metrics that are shown; of ratings none of ranks, of events no errors"""
_NOT_OF: Final = {
    False: ("ranked", "recall", "baselineRecall", "mrr"), True: ("rmse", "validationRmse")
}  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(app, "fit")(fit)
    command(app, "stream")(stream)


def fit(
    run: Invocation,
    ratings: Annotated[str, typer.Argument(help="Table of ratings: file, folder or URI.")],
    out: Annotated[str, typer.Argument(help="Folder or URI to save the model to.")],
    held_out: Annotated[
        str, typer.Option(help="Table of ratings to judge the model on.", show_default=False)
    ] = "",
    split: Annotated[
        float, typer.Option(help="Share of the ratings to hold out and judge on.", min=0, max=0.9)
    ] = 0.0,
    overwrite: Annotated[bool, typer.Option(help="Replace a model that is there.")] = False,
    item_features: ItemFeatures = "",
    user_features: UserFeatures = "",
    category: Annotated[
        list[str] | None,
        typer.Option(
            help="A column of features whose numbers are names, such as a department's; may be "
            "repeated."
        ),
    ] = None,
    user: User = "userId",
    item: Item = "movieId",
    rating: Rating = "rating",
    time: Time = "timestamp",
    time_format: TimeFormat = "",
    param: Params = None,
    kind: Format = "",
    option: Option = None,
) -> None:
    """Learn a model from a table, save it, and say what it is worth.

    RATINGS is CSV, JSON or Parquet, one rating a row. Separator, encoding, header and decimal
    comma are found out, and so are columns that are called alike, such as user_id. For example:

    sparkml-sgdals fit ratings.csv model --split 0.1 --user reader --item isbn --time ''

    With -P implicitPrefs=true rows are events, and lists of ten are judged: see evaluate --top.

    With --item-features movies.csv the model learns what genres, years and the like say of items
    that nobody has rated: numbers as they are, text as categories, Action|Comedy as two.
    """
    from sparkml_sgdals import StreamingBiasedALS
    from sparkml_sgdals.cli.reading.feature_tables import with_vectors
    from sparkml_sgdals.cli.reading.sources import read_ratings, with_event_times

    if held_out and split:
        raise typer.BadParameter("--held-out and --split exclude each other.")
    options = pairs("--option", option or ())
    asked = SourceColumns(user, item, rating, time)
    als = _with_params(StreamingBiasedALS(), param)
    _refuse_to_replace(out, overwrite)
    needed = _needed(als.getImplicitPrefs())
    places = [
        _checked(run, path, kind, options, asked, needed) for path in (ratings, held_out) if path
    ]
    about = [
        look(p, "", {}, (), run.elsewhere) if p else None for p in (user_features, item_features)
    ]
    drops = als.getHandleInvalid() != "error"
    test = None
    with run.spark() as spark:
        with run.output.phase("Looking"):
            table, columns = read_ratings(spark, places[0], asked, needed, None, time_format, drops)
            als.setParams(**_column_params(columns, table.columns))
            if als.forgettingEvents()[1]:
                table = with_event_times(table, columns.time)
            ids = _id_types(als, table)
            if held_out:
                test, _ = read_ratings(
                    spark, places[1], columns, needed, ids, time_format, drops, as_asked=True
                )
            elif split:
                table, test = table.randomSplit([1 - split, split], seed=als.getSeed())
            known = _features(spark, about, columns, ids, category or ())
            als.setUserFeatures(known[0]).setItemFeatures(known[1])
        if columns != asked or places[0].headless:
            run.output.say(_said_of_columns(columns, places[0]))
        with _seen(run, als):
            model = als.fit(table)
        facts: dict[str, Any] = {"model": out}
        with run.output.phase("Judging"):
            if als.getImplicitPrefs():
                facts |= _told_of_events(model, test, table)
                if test is not None and (known[0] is not None or known[1] is not None):
                    found = asdict(model.diagnose(with_vectors(test, model, known)))
                    facts |= {name: found[name] for name in _COLD}
            else:
                if test is not None:
                    test = with_vectors(test, model, known)
                diagnosis = model.diagnose(test)
                facts |= asdict(diagnosis) | {"verdict": diagnosis.verdict}
        with run.output.phase("Saving"):
            writer = model.write()
            (writer.overwrite() if overwrite else writer).save(out)
    summary = model.summary
    facts |= {"trainingRmse": summary.rmse, "form": summary.form, "seconds": summary.seconds}
    run.output.facts(facts)


def stream(
    run: Invocation,
    model_path: Annotated[str, typer.Argument(help="Folder or URI of versions; resumed if any.")],
    source: Annotated[
        str, typer.Argument(help="Folder that files of ratings arrive in.", show_default=False)
    ] = "",
    kafka: Annotated[str, typer.Option(help="Kafka's host:port, for a source folder.")] = "",
    topic: Annotated[str, typer.Option(help="Kafka topic of JSON messages.")] = "ratings",
    start: Annotated[
        str,
        typer.Option(help="Saved model to start an empty path from, else nothing."),
    ] = "",
    once: Annotated[bool, typer.Option("--once", help="Learn what is there, then end.")] = False,
    every: Annotated[str, typer.Option(help="Time between micro-batches.")] = "5 seconds",
    validation: Annotated[
        str, typer.Option(help="Table of held-out ratings, scored after each batch.")
    ] = "",
    keep_versions: Annotated[int, typer.Option(help="Versions that stay loadable.", min=1)] = 5,
    event_id: Annotated[
        str,
        typer.Option(help="Column of an event's id: repeats are dropped.", show_default=False),
    ] = "",
    watermark: Annotated[
        str, typer.Option(help="With --event-id: how much later a repeat may come.")
    ] = "1 hour",
    prometheus: Annotated[
        str,
        typer.Option(help="Folder that Prometheus's textfile collector reads.", show_default=False),
    ] = "",
    alive_file: Annotated[
        Path | None,
        typer.Option(
            help="File to touch every second or so while all is well, for a container's probe."
        ),
    ] = None,
    item_features: ItemFeatures = "",
    user_features: UserFeatures = "",
    user: User = "userId",
    item: Item = "movieId",
    rating: Rating = "rating",
    time: Time = "timestamp",
    schema: Schema = "",
    param: Params = None,
    kind: Format = "",
    option: Option = None,
) -> None:
    """Learn from a stream of files or of Kafka, exactly once, a version a micro-batch.

    Ends with Ctrl-C, or by itself with --once. Prints a line a batch. For example:

    sparkml-sgdals stream films arriving --once

    New items start where --item-features says: as the model that --start names has learned, else
    as the stream itself learns.
    """
    from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel
    from sparkml_sgdals.cli.reading.feature_tables import (
        told_vectors,
        with_vectors,
    )
    from sparkml_sgdals.cli.reading.sources import (
        read_files_stream,
        read_kafka_stream,
        read_ratings,
        renamed,
        with_event_times,
    )
    from sparkml_sgdals.store.objects import full_path
    from sparkml_sgdals.store.version_store import VersionStore

    if alive_file is not None:
        # one of an earlier run would speak for this one
        alive_file.unlink(missing_ok=True)
    if bool(source) == bool(kafka):
        raise typer.BadParameter("Name a folder, or --kafka with --topic: one of the two.")
    options = pairs("--option", option or ())
    columns = SourceColumns(user, item, rating, time)
    als = _with_params(StreamingBiasedALS(), param)
    about = [
        look(p, "", {}, (), run.elsewhere) if p else None for p in (user_features, item_features)
    ]
    place = None if kafka else look(
        source, kind, options, columns.in_order, run.elsewhere, stream=True
    )  # fmt: skip
    held = _checked(run, validation, "", {}, columns) if validation else None
    if place is not None and place.aside:
        run.output.say(f"Left alone in {source}: {', '.join(place.aside)}.")
    with run.spark() as spark:
        resumes = VersionStore(full_path(model_path)).newest() is not None
        model = None
        if start or (resumes and not param):
            model = StreamingBiasedALSModel.load(start or model_path)
        ids, vectors = None, []
        if model is not None:
            columns, ids = _as_learned(model, columns), model.idTypes
            vectors = told_vectors(model)
        if place is None:
            told = schema or columns.ddl(ids or ("bigint", "bigint"))
            if event_id and not schema:
                told += f", {quoted(event_id)} string"
            if not schema:
                told += "".join(f", {quoted(name)} array<double>" for name in vectors)
            ratings = read_kafka_stream(spark, kafka, topic, told, options)
        else:
            more = [event_id] if event_id else []
            events = model.state.settings.learns_events if model else als.getImplicitPrefs()
            ratings, columns = read_files_stream(
                spark, place, columns, schema, ids, more, vectors, _needed(events)
            )
        if model is not None:
            ratings = renamed(ratings, columns, _as_learned(model, None))
            columns = _as_learned(model, None)
            # as this run is told, whatever those before were
            model.setUserFeaturesCol("").setItemFeaturesCol("")
            known = _features(spark, about, columns, model.idTypes, None)
            ratings = with_vectors(ratings, model, known)
        als.setParams(**_column_params(columns, ratings.columns))
        if model is None and any(about):
            known = _features(spark, about, columns, _id_types(als, ratings), ())
            als.setUserFeatures(known[0]).setItemFeatures(known[1])
        arguments: dict[str, Any] = {
            "trigger": {"availableNow": True} if once else {"processingTime": every},
            "keepVersions": keep_versions,
            "prometheusPath": prometheus,
        }
        settings = model.state.settings if model else als.settings()
        if event_id or settings.forget_after_micros:
            ratings = with_event_times(ratings, columns.time)
        if event_id:
            arguments |= {"eventIdCol": event_id, "watermark": watermark}
        if held is not None:
            ids = _id_types(als, ratings)
            arguments["validation"], _ = read_ratings(spark, held, columns, ids=ids, as_asked=True)
        if model is not None:
            job = model.updateStream(ratings, model_path, **arguments)
        else:
            job = als.fitStream(ratings, model_path, **arguments)
        _watch(run, job, settings.learns_events, alive_file)


def _as_learned(model: Any, asked: SourceColumns | None) -> SourceColumns:
    """Return the columns that a model has learned from, but for those that options name."""
    own = SourceColumns(
        model.getUserCol(), model.getItemCol(), model.getRatingCol(), model.getTimestampCol()
    )
    if asked is None:
        return own
    said = {name: one for name, one in vars(asked).items() if one != getattr(DEFAULTS, name)}
    return replace(own, **said)


def _refuse_to_replace(out: str, overwrite: bool) -> None:
    """See before the work that a model can be saved."""
    from sparkml_sgdals.store.objects import ObjectStore
    from sparkml_sgdals.store.saved_model import refuse_model_path

    refuse_model_path(out)
    if overwrite:
        return
    try:
        store = ObjectStore(out)
        taken = store.names("")
    except (OSError, ValueError, ImportError):
        # of a scheme that only Spark can write, which will say so itself
        return
    if taken:
        raise FileExistsError(f"There is something at {out} already: --overwrite replaces it.")


def _checked(
    run: Invocation,
    path: str,
    kind: str,
    options: dict[str, str],
    asked: SourceColumns,
    needed: tuple[str, ...] = ("user", "item", "rating"),
) -> Place:
    """Return what lies under a path, with its columns checked as far as they are known."""
    place = look(path, kind, options, asked.in_order, run.elsewhere)
    if place.aside:
        run.output.say(f"Left alone in {path}: {', '.join(place.aside)}.")
    names = place.names
    if place.headless and place.dialect is not None:
        names = tuple(by_order(asked, place.dialect.width))
    if names is not None:
        find_columns(names, asked, path, needed)
    return place


def _said_of_columns(columns: SourceColumns, place: Place) -> str:
    order = ", ".join(name or "no time" for name in vars(columns).values())
    if place.headless:
        return f"{place.path} has no header; its columns were taken for {order}, in this order."
    return f"Columns of users, items, ratings and times in {place.path}: {order}."


def _features(
    spark: Any, about: Sequence[Any], columns: SourceColumns, ids: tuple[str, str],
    categories: Sequence[str] | None,
) -> tuple[Any, Any]:  # fmt: skip
    """Read what is known of users, and of items, where the command names a place of it."""
    from sparkml_sgdals.cli.reading.feature_tables import read_features

    users, items = (
        None if one is None else read_features(spark, one, side, columns, ids, categories)
        for one, side in zip(about, ("user", "item"), strict=True)
    )
    return users, items


def _id_types(als: Any, table: Any) -> tuple[str, str]:
    from sparkml_sgdals.ingest.columns import id_type_name

    schema = table.schema
    return (
        id_type_name(schema, "userCol", als.getUserCol()),
        id_type_name(schema, "itemCol", als.getItemCol()),
    )


@contextmanager
def _seen(run: Invocation, als: Any) -> Iterator[None]:
    """Show how far a fit is, by what its tasks note, and by a bar for each of its two phases."""
    from sparkml_sgdals.fit.progress import read_progress

    if not run.output.terminal or run.elsewhere or als.getProgressPath():
        with run.output.phase("Reading and learning"):
            yield
        return
    ended = threading.Event()
    with tempfile.TemporaryDirectory(prefix="sparkml-sgdals-progress-") as folder:
        als.setParams(progressPath=folder)

        def watch() -> None:
            with run.output.phase("Reading"):
                while not ended.wait(_POLL_SECONDS) and not read_progress(folder)[1]:
                    pass
            with run.output.phase("Learning", "steps") as phase:
                last = False
                while not last:
                    last = ended.wait(_POLL_SECONDS)
                    done, total, rmse = read_progress(folder)
                    phase.update(done, total or None, "" if rmse is None else f"RMSE {rmse:.4f}")

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
            als.setParams(progressPath="")


def _told_of_events(model: Any, test: Any, seen: Any) -> dict[str, Any]:
    """Return what a model of events learned, and how its lists of ten do on a table, if any."""
    summary = model.summary
    told = {name: getattr(summary, name) for name in ("ratings", "users", "items")}
    if test is not None:
        (row,) = model.evaluateRanking(test, _LISTED, seen).toPandas().to_dict("records")
        told |= {f"test{name.title()}" if name in told else str(name): v for name, v in row.items()}
    return told


@contextmanager
def _asked_to_end() -> Iterator[threading.Event]:
    """Yield what is set by Ctrl-C or SIGTERM, by which a container is ended; a second one breaks.

    No exception: one that is raised while Spark is asked something leaves no way to ask it more.
    """
    asked = threading.Event()

    def note(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {one: signal.signal(one, note) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _watch(run: Invocation, job: StreamJob[Any], events: bool, alive_file: Path | None) -> None:
    """Print a line a batch until the stream ends; Ctrl-C or SIGTERM end it after a batch."""
    output = run.output
    columns = {name: text for name, text in _HEADINGS.items() if name not in _NOT_OF[events]}
    widths = [max(len(heading), 6) for heading in columns.values()]
    shown = len(job.metrics())
    if not output.json:
        output.row(list(columns.values()), widths)
    ended = False
    with _asked_to_end() as asked, output.phase("Learning", "ratings") as phase:
        while not ended and not asked.is_set():
            ended = job.awaitTermination(1)
            metrics = job.metrics()
            for row in metrics[shown:].to_dict("records"):
                if output.json:
                    output.line(row)
                else:
                    output.row([_cell(row[name], name in _COUNTED) for name in columns], widths)
            shown = max(shown, len(metrics))
            phase.update(int(metrics.ratings.sum()), None, f"in {shown:,} micro-batches")
            if alive_file is not None:
                # only after Spark and the model path have answered
                alive_file.touch()
        if asked.is_set():
            output.say("Stopping after the batch that runs ...")
            job.stop()
    newest = job.model
    output.say(f"{job.path} is at version {newest.version}.")


def _cell(value: Any, counted: bool) -> str:
    if value is None or value != value:
        return "-"
    # a count that older batches lack is a float too
    return f"{value:.4f}" if isinstance(value, float) and not counted else f"{value:,.0f}"


def _needed(events: bool) -> tuple[str, ...]:
    """Return what a row has to have, of events or of ratings."""
    return ("user", "item") if events else ("user", "item", "rating")


def _column_params(columns: SourceColumns, names: Sequence[str]) -> dict[str, str]:
    told = {"userCol": columns.user, "itemCol": columns.item, "timestampCol": columns.time}
    # events may have none, and then count one each
    here = columns.rating in names or "." in columns.rating or columns.rating != DEFAULTS.rating
    return told | ({"ratingCol": columns.rating} if here else {})


def _with_params(als: Any, given: list[str] | None) -> Any:
    """Return the estimator with Params from texts: numbers and true or false as JSON has them."""
    for name, text in pairs("--param", given or ()).items():
        if not als.hasParam(name):
            names = ", ".join(sorted(param.name for param in als.params))
            raise typer.BadParameter(f"There is no Param {name!r}: choose of {names}.")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        als.setParams(**{name: value})
    return als
