"""All commands in one place."""

from __future__ import annotations

import typer

from sparkml_sgdals import __version__
from sparkml_sgdals.cli import data, learn, manage, start, use

__all__ = ["app"]

app = typer.Typer(
    name="sparkml-sgdals",
    help="A recommender that learns from a table and goes on learning from a stream.",
    epilog="Exit codes: 0 done, 1 an error, 2 wrong usage, 3 the model does not beat its "
    "baseline (diagnose), 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for module in (learn, use, manage, start):
    module.register(app)
data_app = typer.Typer(help="Get ratings, and replay them as a stream.", no_args_is_help=True)
data.register(data_app)
app.add_typer(data_app, name="data")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Learn to recommend from a table, and go on learning from a stream."""
