"""`versions` and `rollback`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Final

import pandas as pd
import typer

from sparkml_sgdals.cli.command import Invocation, command

__all__ = ["register"]

Path = Annotated[str, typer.Argument(help="Folder or URI that a stream writes versions to.")]

_SHOWN: Final = 20
"""versions that are listed for a person"""


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(app, "versions", spark=False)(versions)
    command(app, "rollback", spark=False)(rollback)


def versions(
    run: Invocation,
    model_path: Path,
    verify: Annotated[bool, typer.Option(help="Read all files and compare checksums.")] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Only so many of the newest; 0: all. By default 20 for a person, all as JSON.",
            min=0, show_default=False,
        ),
    ] = None,
) -> None:  # fmt: skip
    """List the versions under a model path, oldest first."""
    from sparkml_sgdals import StreamingBiasedALSModel

    frame = StreamingBiasedALSModel.versions(model_path, verify)
    rows = [dict(zip(frame.columns, row, strict=True)) for row in frame.itertuples(index=False)]
    shown = (0 if run.output.json else _SHOWN) if limit is None else limit
    newest = rows[-shown:] if shown else rows
    if run.output.json:
        run.output.table("", newest, list(frame.columns))
        return
    told = [row | {"committed": _moment(row["committed"])} for row in newest]
    # what no version has takes no room
    columns = [name for name in frame.columns if any(pd.notna(row[name]) for row in newest)]
    run.output.table("", told, columns)
    if len(newest) < len(rows):
        run.output.say(f"{len(newest)} of {len(rows)} versions; --limit 0 lists all.")


def _moment(value: Any) -> str | None:
    """Return a time as the reader's clock has it, to the second."""
    if pd.isna(value):
        return None
    return str(pd.Timestamp(value).to_pydatetime().astimezone().strftime("%Y-%m-%d %H:%M:%S"))


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
