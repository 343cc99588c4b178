"""`recommend`, `evaluate` and `diagnose`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparkml_sgdals.cli.arguments import Format, Model, Option
from sparkml_sgdals.cli.command import NOT_READY, Invocation, command, pairs

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(app, "recommend")(recommend)
    command(app, "evaluate")(evaluate)
    command(app, "diagnose")(diagnose)


def recommend(
    run: Invocation,
    model: Model,
    user: Annotated[
        list[str] | None, typer.Option("--user", "-u", help="A user's id; may be repeated.")
    ] = None,
    users: Annotated[
        str, typer.Option(help="Table of users, for --user.", show_default=False)
    ] = "",
    everybody: Annotated[bool, typer.Option("--all", help="All users; needs --out.")] = False,
    number: Annotated[int, typer.Option("--number", "-n", help="Items a user.", min=1)] = 10,
    exclude_seen: Annotated[
        str, typer.Option(help="Table of ratings whose pairs are left out.", show_default=False)
    ] = "",
    rank_by: Annotated[str, typer.Option(help="prediction, upper or lower.")] = "prediction",
    titles: Annotated[
        str,
        typer.Option(help="Table of items with the model's item column.", show_default=False),
    ] = "",
    title: Annotated[str, typer.Option(help="Column of titles in it.")] = "title",
    out: Annotated[
        str, typer.Option(help="Write Parquet there and print nothing.", show_default=False)
    ] = "",
    kind: Format = "",
    option: Option = None,
) -> None:
    """Recommend the best items for users, with the predicted rating."""
    from pyspark.sql import functions as F

    from sparkml_sgdals import StreamingBiasedALSModel
    from sparkml_sgdals.cli.sources import read_table

    if sum((bool(user), bool(users), everybody)) != 1:
        raise typer.BadParameter("Name users by --user, --users or --all: one of the three.")
    if everybody and not out:
        raise typer.BadParameter("--all needs --out: a folder for Parquet.")
    if rank_by not in ("prediction", "upper", "lower"):
        raise typer.BadParameter(f"--rank-by is prediction, upper or lower, got {rank_by!r}.")
    options = pairs("--option", option or ())
    with run.spark() as spark:
        loaded = StreamingBiasedALSModel.load(model)
        user_col, item_col = loaded.getUserCol(), loaded.getItemCol()
        seen = read_table(spark, exclude_seen, kind, options) if exclude_seen else None
        more: dict[str, Any] = {"excludeSeen": seen, "rankBy": rank_by}
        if everybody:
            ranked = loaded.recommendForAllUsers(number, **more)
        else:
            asked = (
                read_table(spark, users, kind, options)
                if users
                else _ids(spark, user or [], user_col, loaded.idTypes[0])
            )
            ranked = loaded.recommendForUserSubset(asked, number, coldCol="cold", **more)
        if out:
            ranked.write.mode("overwrite").parquet(out)
            run.output.facts({"written": out})
            return
        rows = ranked.select(
            user_col, "cold", F.posexplode("recommendations").alias("place", "one")
        ).select(user_col, "cold", (F.col("place") + 1).alias("place"), "one.*")
        names = [user_col, "place", item_col]
        if titles:
            known = read_table(spark, titles, "", {}).select(item_col, title)
            rows, names = rows.join(known, item_col, "left"), [*names, title]
        found = rows.orderBy(user_col, "place").collect()
    shown = [row.asDict() for row in found]
    run.output.table("", shown, [*names, "rating", "cold"])


def evaluate(
    run: Invocation,
    model: Model,
    ratings: Annotated[str, typer.Argument(help="Table of held-out ratings.")],
    top: Annotated[
        int, typer.Option(help="Judge lists of so many items instead; of events too.", min=0)
    ] = 0,
    exclude_seen: Annotated[
        str, typer.Option(help="For --top: table of pairs left out of lists.", show_default=False)
    ] = "",
    kind: Format = "",
    option: Option = None,
) -> None:
    """RMSE and MAE of a model on ratings, by Spark's RegressionEvaluator; or how well it ranks."""
    from pyspark.ml.evaluation import RegressionEvaluator
    from pyspark.sql import functions as F

    from sparkml_sgdals import StreamingBiasedALSModel
    from sparkml_sgdals.cli.sources import read_table

    options = pairs("--option", option or ())
    if exclude_seen and not top:
        raise typer.BadParameter("--exclude-seen is of lists: give --top, how long they are.")
    with run.spark() as spark:
        loaded = StreamingBiasedALSModel.load(model)
        if top:
            seen = read_table(spark, exclude_seen, kind, options) if exclude_seen else None
            judged = loaded.evaluateRanking(read_table(spark, ratings, kind, options), top, seen)
            (row,) = judged.toPandas().to_dict("records")
            told = {str(name): value for name, value in row.items()}
            run.output.facts({"model": model, "version": loaded.version} | told)
            return
        rating, prediction = loaded.getRatingCol(), loaded.getPredictionCol()
        scored = loaded.transform(read_table(spark, ratings, kind, options))
        scored = scored.where(F.col(rating).isNotNull() & ~F.isnan(prediction)).cache()
        facts: dict[str, Any] = {"model": model, "version": loaded.version}
        facts["ratings"] = scored.count()
        if not facts["ratings"]:
            raise ValueError(f"{ratings} holds no ratings that the model can predict.")
        for name in ("rmse", "mae"):
            evaluator = RegressionEvaluator(
                predictionCol=prediction, labelCol=rating, metricName=name
            )
            facts[name] = float(evaluator.evaluate(scored))
        scored.unpersist()
    run.output.facts(facts)


def diagnose(
    run: Invocation,
    model: Model,
    held_out: Annotated[
        str,
        typer.Option(
            help="Table of held-out ratings; by default those predicted before they were learned.",
            show_default=False,
        ),
    ] = "",
    min_ratings: Annotated[int, typer.Option(help="Ids with fewer count as thin.", min=1)] = 5,
    kind: Format = "",
    option: Option = None,
) -> int:
    """May the model be served yet? Exit code 0 if it beats mean and biases, else 3."""
    from sparkml_sgdals import StreamingBiasedALSModel
    from sparkml_sgdals.cli.sources import read_table

    options = pairs("--option", option or ())
    with run.spark() as spark:
        loaded = StreamingBiasedALSModel.load(model)
        table = read_table(spark, held_out, kind, options) if held_out else None
        found = loaded.diagnose(table, min_ratings)
    verdict = {"beatsBaseline": found.beatsBaseline, "verdict": found.verdict}
    run.output.facts({"model": model, "version": loaded.version} | asdict(found) | verdict)
    return 0 if found.beatsBaseline else NOT_READY


def _ids(spark: SparkSession, given: list[str], column: str, kind: str) -> DataFrame:
    """Ids of a command line as a table, of the kind that the model learned."""
    from sparkml_sgdals.ingest.columns import quoted

    if kind == "string":
        return spark.createDataFrame([(one,) for one in given], f"{quoted(column)} string")
    try:
        numbers = [(int(one),) for one in given]
    except ValueError as error:
        raise typer.BadParameter(f"The model's users are integers, got {given}.") from error
    return spark.createDataFrame(numbers, f"{quoted(column)} long")
