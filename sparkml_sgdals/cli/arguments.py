"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["Format", "Item", "ItemFeatures", "Model", "Option", "Rating", "Schema", "Time",
           "TimeFormat", "User", "UserFeatures"]  # fmt: skip

Model = Annotated[str, typer.Argument(help="A saved model, or a model path: its newest version.")]
User = Annotated[str, typer.Option(help="Column of user ids.")]
Item = Annotated[str, typer.Option(help="Column of item ids.")]
Rating = Annotated[str, typer.Option(help="Column of ratings.")]
Time = Annotated[str, typer.Option(help="Column of the time of a rating; '' for none.")]
ItemFeatures = Annotated[
    str,
    typer.Option(
        help="Table of what is known of items: ids, and columns such as genres and a year.",
        show_default=False,
    ),
]
UserFeatures = Annotated[
    str,
    typer.Option(help="Table of what is known of users, as --item-features.", show_default=False),
]
TimeFormat = Annotated[
    str,
    typer.Option(
        help="Form of times that are text, such as 'dd.MM.yyyy HH:mm'; by default numbers and "
        "ISO 8601.",
        show_default=False,
    ),
]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        help="csv, json, parquet or another that Spark reads; by default as the name says.",
        show_default=False,
    ),
]
Option = Annotated[
    list[str] | None,
    typer.Option("--option", help="An option of Spark's reader, as name=value; may be repeated."),
]
Schema = Annotated[
    str,
    typer.Option(
        help='Schema of messages or files, such as "userId string, movieId long, rating double"; '
        "by default as a first file shows, of messages ids and times long, ratings double.",
        show_default=False,
    ),
]
