"""`data movielens` and `data replay`."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sparkml_sgdals.cli.arguments import Time
from sparkml_sgdals.cli.command import Invocation, command
from sparkml_sgdals.datasets import movielens as ml
from sparkml_sgdals.datasets import replay as rp

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(app, "movielens", spark=False)(movielens)
    command(app, "replay", spark=False)(replay)


def movielens(
    run: Invocation,
    out: Annotated[Path, typer.Argument(help="Folder for ratings.parquet and movies.parquet.")],
    source: Annotated[
        Path | None, typer.Option("--from", help="Folder of an archive that was unpacked.")
    ] = None,
    name: Annotated[
        str, typer.Option(help=f"Release to download: {', '.join(ml.CHECKSUMS)}.")
    ] = "ml-latest-small",
    site: Annotated[str, typer.Option(help="Where releases are downloaded from.")] = ml.SITE,
) -> None:
    """MovieLens as Parquet, from a folder or downloaded with its checksum compared."""
    if source is not None:
        written = ml.convert(source, out)
    else:
        with tempfile.TemporaryDirectory(prefix="movielens-") as scratch:
            with run.output.phase("Downloading", "bytes") as phase:
                ml.download(
                    name, Path(scratch), site, lambda done, of: phase.update(done, of or None)
                )
            written = ml.convert(Path(scratch), out)
    run.output.facts(asdict(written))


def replay(
    run: Invocation,
    ratings: Annotated[Path, typer.Argument(help="File of ratings: .parquet, .csv or .json.")],
    folder: Annotated[
        Path | None, typer.Option("--to", help="Folder that a stream reads JSON files from.")
    ] = None,
    kafka: Annotated[str, typer.Option(help="Kafka's host:port, for a folder.")] = "",
    topic: Annotated[str, typer.Option(help="Kafka topic.")] = "ratings",
    batch: Annotated[int, typer.Option(help="Ratings at a time.", min=1)] = 1000,
    every: Annotated[float, typer.Option(help="Seconds between them; 0: at once.", min=0)] = 5.0,
    limit: Annotated[int, typer.Option(help="Only the first so many; 0: all.", min=0)] = 0,
    time: Time = "timestamp",
) -> None:
    """Send a file of ratings in time order, some every few seconds, to a folder or to Kafka."""
    if (folder is None) == (not kafka):
        raise typer.BadParameter("Name a folder by --to, or --kafka with --topic: one of the two.")
    rows = rp.read_ordered(ratings, time)
    rows = rows.iloc[:limit] if limit else rows
    sink: rp.Sink = rp.FolderSink(folder) if folder is not None else rp.KafkaSink(kafka, topic)
    sent = 0
    try:
        with run.output.phase("Sending", "ratings") as phase:
            for sent in rp.replay(rows, sink, batch, every):
                phase.update(sent, len(rows))
    except KeyboardInterrupt:
        run.output.say("Stopped.")
    run.output.facts({"sent": sent, "of": len(rows), "to": str(folder or f"{kafka}/{topic}")})
