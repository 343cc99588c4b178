"""`serve` and `demo`: programs that run by themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

import sparkml_sgdals
from sparkml_sgdals.cli.command import Invocation, command
from sparkml_sgdals.extras import install

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(app, "serve", spark=False)(serve)
    command(app, "demo", spark=False)(demo)


def serve(
    run: Invocation,
    model_path: Annotated[str, typer.Argument(help="What fit saved, or stream writes.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0: a free one.", min=0, max=65535)
    ] = 8000,
    inbox: Annotated[
        str | None, typer.Option(help="Folder that the stream reads: ratings posted go there.")
    ] = None,
    archive: Annotated[
        str | None, typer.Option(help="Folder that the inbox's files are moved to once learned.")
    ] = None,
    kafka: Annotated[
        str | None, typer.Option(help="Kafka's host:port: ratings posted go there.")
    ] = None,
    topic: Annotated[str, typer.Option(help="Kafka topic.")] = "ratings",
    titles: Annotated[str | None, typer.Option(help="File of ids and titles of items.")] = None,
    item_features: Annotated[
        str | None,
        typer.Option(help="File of what is known of items: new ones are ranked by it."),
    ] = None,
    user_features: Annotated[
        str | None, typer.Option(help="File of what is known of users, as --item-features.")
    ] = None,
    ratings: Annotated[
        str | None, typer.Option(help="File or folder of ratings that users have given.")
    ] = None,
    token_file: Annotated[
        str | None, typer.Option(help="File with the token that posting needs.")
    ] = None,
    open_writes: Annotated[
        bool, typer.Option("--open-writes", help="Take ratings without a token.")
    ] = False,
    rate: Annotated[
        float, typer.Option(help="Ratings a second that a client may post; 0: no limit.", min=0)
    ] = 20.0,
    rating_range: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Lowest and highest rating taken; by default those seen."),
    ] = None,
    max_body: Annotated[int, typer.Option(help="Bytes of a request.", min=1)] = 1 << 20,
    origins: Annotated[
        list[str] | None,
        typer.Option("--origin", help="Another site that may ask (CORS); may be repeated."),
    ] = None,
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-host",
            help="A name that it is asked under, *.x for all below x; may be repeated.",
        ),
    ] = None,
    connections: Annotated[int, typer.Option(help="Connections at once.", min=1)] = 1_000,
    client_connections: Annotated[int, typer.Option(help="Of these of one client.", min=1)] = 256,
    client_streams: Annotated[
        int, typer.Option(help="Streams of events of one client.", min=0)
    ] = 16,
    history: Annotated[
        int, typer.Option(help="Ratings posted that are remembered.", min=0)
    ] = 100_000,
    gate: Annotated[
        bool, typer.Option("--gate", help="Not ready before a version beats its baseline.")
    ] = False,
    cache: Annotated[str | None, typer.Option(help="Folder to map factors in.")] = None,
    poll_seconds: Annotated[
        float, typer.Option(help="How often to look for a new version.", min=0.01)
    ] = 0.25,
    wait_seconds: Annotated[
        float, typer.Option(help="How long to wait for a first version.", min=0)
    ] = 0.0,
    trust_proxy: Annotated[
        str | None, typer.Option(help="Address of a proxy whose X-Forwarded-For is believed.")
    ] = None,
    ann: Annotated[
        bool, typer.Option("--ann", help="Rank by an approximate index (extra ann).")
    ] = False,
    ann_recall: Annotated[
        float, typer.Option(help="Share of the exact best ten that it has to find.", min=0, max=1)
    ] = 0.95,
    user: Annotated[
        str | None, typer.Option(help="Column of user ids; by default the model's.")
    ] = None,
    item: Annotated[
        str | None, typer.Option(help="Column of item ids; by default the model's.")
    ] = None,
    rating: Annotated[
        str | None, typer.Option(help="Column of ratings; by default the model's.")
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(help="Column of the time of a rating; by default the model's, or timestamp."),
    ] = None,
    event_id: Annotated[
        str | None, typer.Option(help="Column of an event's id; by default eventId.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="These five at once: user,item,rating,timestamp,eventId.")
    ] = None,
    log_level: Annotated[str, typer.Option(help="Level of the log.")] = "warning",
) -> None:
    """Answer requests for recommendations by HTTP; a new version is taken up as it comes.

    For example, then open http://127.0.0.1:8000/ for a page, or ask
    http://127.0.0.1:8000/recommendations/1?n=5 (all requests: /openapi.json):

    sparkml-sgdals serve model --titles movies.csv

    Ratings are taken where --inbox or --kafka says where they go, and --token-file or
    --open-writes who may post them. Columns are those of --ratings and of what is posted on;
    those that are not named here are the model's.
    """
    try:
        # not by name: the service is an extra
        serving = import_module("sparkml_sgdals.serving")
        run_service = serving.serve
        history_of = import_module("sparkml_sgdals.serving.intake.history")
    except ModuleNotFoundError as missing:
        raise ImportError(f"serve needs {missing.name}: {install('serve')}") from missing
    one_by_one = {"user": user, "item": item, "rating": rating, "time": time, "event": event_id}
    named = history_of.named_columns(columns) if columns else {}
    named |= {name: column for name, column in one_by_one.items() if column}
    run_service(
        model_path,
        host=host,
        port=port,
        inbox=inbox,
        archive=archive,
        kafka=kafka,
        topic=topic,
        columns=named,
        titles=titles,
        item_features=item_features,
        user_features=user_features,
        ratings=ratings,
        token_file=token_file,
        open_writes=open_writes,
        rate=rate,
        rating_range=rating_range,
        max_body=max_body,
        origins=tuple(origins or ()),
        allowed_hosts=tuple(allowed_hosts or ()),
        connections=connections,
        client_connections=client_connections,
        client_streams=client_streams,
        history=history,
        gate=gate,
        cache=cache,
        poll_seconds=poll_seconds,
        wait_seconds=wait_seconds,
        trust_proxy=trust_proxy,
        ann=ann,
        ann_recall=ann_recall,
        log_level=log_level,
        started=lambda address: run.output.facts({"address": address}),
    )


def demo(
    run: Invocation,
    data: Annotated[
        str,
        typer.Option(
            help="Folder with ratings.csv; by default what SPARKML_SGDALS_DATA names, else "
            "MovieLens is downloaded, else ratings are made up.",
            show_default=False,
        ),
    ] = "",
    out: Annotated[str, typer.Option(help="Folder for picture, metrics and model.")] = "out",
) -> int:
    """Stream MovieLens into a model, against Spark's ALS, and draw what came of it."""
    if find_spec("matplotlib") is None:
        raise ImportError(f"demo needs matplotlib: {install('plot')}")
    package = Path(sparkml_sgdals.__file__).parent
    # in a checkout, and where a wheel puts it
    places = (package.parent / "examples" / "demo.py", package / "cli" / "demo_story.py")
    story = next((place for place in places if place.is_file()), None)
    if story is None:
        raise FileNotFoundError(f"There is no {places[1]}: install the package again.")
    names = os.environ | {"SPARKML_SGDALS_OUT": str(Path(out).resolve())}
    if data:
        names["SPARKML_SGDALS_DATA"] = data
    # a process of its own: it sets up matplotlib and Spark as it likes
    speech = sys.stderr if run.output.json else None
    code = subprocess.run([sys.executable, story], env=names, stdout=speech, check=False).returncode
    if run.output.json:
        ends = {"picture": ".png", "metrics": "-metrics.csv", "model": "-model"}
        made = {name: f"{out}/demo{end}" for name, end in ends.items()}
        run.output.line({"exitCode": code} | made)
    return code
