"""`fit` and `stream`."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from sparkml_sgdals.cli.arguments import Format, Item, Option, Rating, Schema, Time, User
from sparkml_sgdals.cli.command import Invocation, command, pairs

if TYPE_CHECKING:
    from sparkml_sgdals.stream.job import StreamJob

__all__ = ["register"]

Params = Annotated[
    list[str] | None,
    typer.Option(
        "--param", "-P", help="A Param of StreamingBiasedALS, as name=value; may be repeated."
    ),
]

_LISTED: Final = 10
"""items of a list that a model of events is judged by"""
_SHOWN: Final = ("batch", "ratings", "invalid", "newUsers", "newItems", "rmse", "validationRmse")
_HEADINGS: Final = ("batch", "ratings", "invalid", "new users", "new items", "RMSE before learning",
                    "held-out RMSE")  # fmt: skip


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
    user: User = "userId",
    item: Item = "movieId",
    rating: Rating = "rating",
    time: Time = "timestamp",
    param: Params = None,
    kind: Format = "",
    option: Option = None,
) -> None:
    """Learn a model from a table, save it, and say what it is worth.

    With -P implicitPrefs=true rows are events, and lists of ten are judged: see evaluate --top.
    """
    from sparkml_sgdals import StreamingBiasedALS
    from sparkml_sgdals.cli.sources import SourceColumns, read_table
    from sparkml_sgdals.store.saved_model import refuse_model_path

    refuse_model_path(out)
    if held_out and split:
        raise typer.BadParameter("--held-out and --split exclude each other.")
    options = pairs("--option", option or ())
    columns = SourceColumns(user, item, rating, time)
    als = _with_params(StreamingBiasedALS().setParams(**_column_params(columns)), param)
    with run.spark() as spark:
        table, test = read_table(spark, ratings, kind, options), None
        if held_out:
            test = read_table(spark, held_out, kind, options)
        elif split:
            table, test = table.randomSplit([1 - split, split], seed=als.getSeed())
        model = als.setParams(showProgress=run.output.terminal and _has_tqdm()).fit(table)
        facts: dict[str, Any] = {"model": out}
        if als.getImplicitPrefs():
            facts |= _told_of_events(model, test, table)
        else:
            diagnosis = model.diagnose(test)
            facts |= asdict(diagnosis) | {"verdict": diagnosis.verdict}
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

    Ends with Ctrl-C, or by itself with --once. Prints a line a batch.
    """
    from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel
    from sparkml_sgdals.cli.sources import (
        SourceColumns,
        read_files_stream,
        read_kafka_stream,
        read_table,
        with_event_times,
    )
    from sparkml_sgdals.store.objects import full_path
    from sparkml_sgdals.store.version_store import VersionStore

    if bool(source) == bool(kafka):
        raise typer.BadParameter("Name a folder, or --kafka with --topic: one of the two.")
    options = pairs("--option", option or ())
    columns = SourceColumns(user, item, rating, time)
    schema = schema or columns.ddl_with(event_id)
    als = _with_params(StreamingBiasedALS().setParams(**_column_params(columns)), param)
    with run.spark() as spark:
        ratings = (
            read_kafka_stream(spark, kafka, topic, schema, options)
            if kafka
            else read_files_stream(spark, source, kind, schema, options)
        )
        arguments: dict[str, Any] = {
            "trigger": {"availableNow": True} if once else {"processingTime": every},
            "validation": read_table(spark, validation, "", {}) if validation else None,
            "keepVersions": keep_versions,
            "prometheusPath": prometheus,
        }
        if event_id:
            ratings = with_event_times(ratings, time)
            arguments |= {"eventIdCol": event_id, "watermark": watermark}
        resumes = VersionStore(full_path(model_path)).newest() is not None
        if start or (resumes and not param):
            model = StreamingBiasedALSModel.load(start or model_path)
            job = model.updateStream(ratings, model_path, **arguments)
        else:
            job = als.fitStream(ratings, model_path, **arguments)
        _watch(run, job)


def _told_of_events(model: Any, test: Any, seen: Any) -> dict[str, Any]:
    """Return what a model of events learned, and how its lists of ten do on a table, if any."""
    summary = model.summary
    told = {name: getattr(summary, name) for name in ("ratings", "users", "items")}
    if test is not None:
        (row,) = model.evaluateRanking(test, _LISTED, seen).toPandas().to_dict("records")
        told |= {f"test{name.title()}" if name in told else str(name): v for name, v in row.items()}
    return told


def _watch(run: Invocation, job: StreamJob[Any]) -> None:
    """Print a line a batch until the stream ends; Ctrl-C or SIGTERM end it after a batch."""
    output = run.output
    widths = [len(heading) for heading in _HEADINGS]
    shown = len(job.metrics())
    if not output.json:
        output.row(_HEADINGS, widths)
    ended = False
    # what a container is told to end by
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with output.bar("Learning", "ratings") as bar:
            task = None if bar is None else bar.add_task("", total=None)
            while not ended:
                ended = job.awaitTermination(1)
                metrics = job.metrics()
                for row in metrics[shown:].to_dict("records"):
                    if output.json:
                        output.line(row)
                    else:
                        output.row([_cell(row[name]) for name in _SHOWN], widths)
                shown = max(shown, len(metrics))
                if bar is not None and task is not None:
                    bar.update(task, completed=int(metrics.ratings.sum()))
    except KeyboardInterrupt:
        output.say("Stopping after the batch that runs ...")
        job.stop()
    finally:
        signal.signal(signal.SIGTERM, earlier)
    newest = job.model
    output.say(f"{job.path} is at version {newest.version}.")


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


def _column_params(columns: Any) -> dict[str, str]:
    return {
        "userCol": columns.user,
        "itemCol": columns.item,
        "ratingCol": columns.rating,
        "timestampCol": columns.time,
    }


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


def _has_tqdm() -> bool:
    from importlib.util import find_spec

    return find_spec("tqdm") is not None
