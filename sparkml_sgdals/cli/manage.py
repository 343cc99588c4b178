"""`versions` and `rollback`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from sparkml_sgdals.cli.command import Invocation, command

__all__ = ["register"]

Path = Annotated[str, typer.Argument(help="Folder or URI that a stream writes versions to.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(app, "versions", spark=False)(versions)
    command(app, "rollback", spark=False)(rollback)


def versions(
    run: Invocation,
    model_path: Path,
    verify: Annotated[bool, typer.Option(help="Read all files and compare checksums.")] = False,
) -> None:
    """List the versions under a model path, oldest first."""
    from sparkml_sgdals import StreamingBiasedALSModel

    frame = StreamingBiasedALSModel.versions(model_path, verify)
    rows = [dict(zip(frame.columns, row, strict=True)) for row in frame.itertuples(index=False)]
    run.output.table("", rows, list(frame.columns))


def rollback(
    run: Invocation,
    model_path: Path,
    version: Annotated[int, typer.Argument(help="The version to go back to.")],
    reread: Annotated[
        bool,
        typer.Option(help="Whether the stream learns again what it read since that version."),
    ] = True,
) -> None:
    """Make an older version the newest one; stop the stream before."""
    from sparkml_sgdals import StreamingBiasedALSModel

    done = StreamingBiasedALSModel.rollback(model_path, version, reread)
    if run.output.json:
        run.output.line(asdict(done))
    else:
        run.output.facts({"done": str(done)})
