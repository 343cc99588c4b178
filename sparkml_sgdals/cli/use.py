"""`recommend`, `evaluate` and `diagnose`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparkml_sgdals.cli.arguments import Format, ItemFeatures, Model, Option, UserFeatures
from sparkml_sgdals.cli.command import NOT_READY, Invocation, command, pairs
from sparkml_sgdals.cli.reading.columns import SourceColumns
from sparkml_sgdals.cli.reading.places import Place, look
from sparkml_sgdals.ingest.columns import quoted

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
        str, typer.Option(help="Table of users, in the place of --user.", show_default=False)
    ] = "",
    everybody: Annotated[bool, typer.Option("--all", help="All users; needs --out.")] = False,
    number: Annotated[int, typer.Option("--number", "-n", help="Items for each user.", min=1)] = 10,
    exclude_seen: Annotated[
        str, typer.Option(help="Table of ratings whose pairs are left out.", show_default=False)
    ] = "",
    rank_by: Annotated[
        str, typer.Option(help="prediction, or upper or lower: its bound one ± away.")
    ] = "prediction",
    titles: Annotated[
        str,
        typer.Option(help="Table of items, ids as in the model, and titles.", show_default=False),
    ] = "",
    title: Annotated[str, typer.Option(help="Column of titles in it.")] = "title",
    out: Annotated[
        str, typer.Option(help="Write Parquet there and print nothing.", show_default=False)
    ] = "",
    item_features: ItemFeatures = "",
    user_features: UserFeatures = "",
    kind: Format = "",
    option: Option = None,
) -> None:
    """Recommend the best items for users, with the predicted rating.

    For example, five items that user 1 has not rated in ratings.csv, by their titles:

    sparkml-sgdals recommend model -u 1 -n 5 --exclude-seen ratings.csv --titles movies.csv

    "unclipped" tells items apart whose rating is the highest there is; ± is the standard
    deviation of a rating; cold users are not known, and get what is liked most. Items and users
    of --item-features and --user-features that nobody has rated, or who have not, count as known.
    """
    from sparkml_sgdals import StreamingBiasedALSModel

    if sum((bool(user), bool(users), everybody)) != 1:
        raise typer.BadParameter("Name users by --user, --users or --all: one of the three.")
    if everybody and not out:
        raise typer.BadParameter("--all needs --out: a folder for Parquet.")
    if rank_by not in ("prediction", "upper", "lower"):
        raise typer.BadParameter(f"--rank-by is prediction, upper or lower, got {rank_by!r}.")
    options = pairs("--option", option or ())
    _there(run, model)
    places = {
        path: look(path, "" if path == titles else kind, {} if path == titles else options,
                   (), run.elsewhere)
        for path in (exclude_seen, users, titles)
        if path
    }  # fmt: skip
    with run.spark() as spark:
        with run.output.phase("Loading"):
            loaded = StreamingBiasedALSModel.load(model)
            users_known, items_known = _features_of(
                spark, run, loaded, user_features, item_features
            )
            loaded = loaded if users_known is None else loaded.withUsers(users_known)
            loaded = loaded if items_known is None else loaded.withItems(items_known)
        names = _columns_of(loaded)
        seen = _pairs_of(spark, loaded, places[exclude_seen]) if exclude_seen else None
        more: dict[str, Any] = {"excludeSeen": seen, "rankBy": rank_by}
        with run.output.phase("Ranking"):
            if everybody:
                ranked = loaded.recommendForAllUsers(number, **more)
            else:
                asked = (
                    _pairs_of(spark, loaded, places[users], ("user",))
                    if users
                    else _ids(spark, user or [], names.user, loaded.idTypes[0])
                )
                if not out:
                    # the place of two items that are clipped to one number tells them apart
                    events = loaded.state.settings.learns_events
                    clips = loaded.getClipPredictions() and not events
                    loaded = loaded.copy().setClipPredictions(False)
                ranked = loaded.recommendForUserSubset(asked, number, coldCol="cold", **more)
            if out:
                ranked.write.mode("overwrite").parquet(out)
            else:
                rows = _one_by_one(spark, loaded, ranked, clips)
                found = {row[names.item] for row in rows}
                known = _titles_of(spark, loaded, places[titles], title, found) if titles else {}
        if out:
            run.output.facts({"written": out})
            return
    for row in rows:
        if titles:
            row[title] = known.get(row[names.item])
    shown = [names.user, "place", names.item, *([title] if titles else []), "rating"]
    if run.output.json or any(row["score"] != row["rating"] for row in rows):
        shown.append("score")
    if any(row["std"] is not None for row in rows):
        shown.append("std")
    run.output.table("", rows, [*shown, "cold"], {"std": "±", "score": "unclipped"})


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
    item_features: ItemFeatures = "",
    user_features: UserFeatures = "",
    kind: Format = "",
    option: Option = None,
) -> None:
    """RMSE and MAE of a model on ratings, by Spark's RegressionEvaluator; or how well it ranks."""
    from pyspark.ml.evaluation import RegressionEvaluator
    from pyspark.sql import functions as F

    from sparkml_sgdals import StreamingBiasedALSModel
    from sparkml_sgdals.cli.reading.feature_tables import with_vectors

    options = pairs("--option", option or ())
    if exclude_seen and not top:
        raise typer.BadParameter("--exclude-seen is of lists: give --top, how long they are.")
    _there(run, model)
    held = look(ratings, kind, options, (), run.elsewhere)
    done = look(exclude_seen, kind, options, (), run.elsewhere) if exclude_seen else None
    with run.spark() as spark, run.output.phase("Judging"):
        loaded = StreamingBiasedALSModel.load(model)
        facts: dict[str, Any] = {"model": model, "version": loaded.version}
        known = _features_of(spark, run, loaded, user_features, item_features)
        if top:
            loaded = loaded if known[0] is None else loaded.withUsers(known[0])
            loaded = loaded if known[1] is None else loaded.withItems(known[1])
            seen = None if done is None else _pairs_of(spark, loaded, done)
            judged = loaded.evaluateRanking(_pairs_of(spark, loaded, held), top, seen)
            (row,) = judged.toPandas().to_dict("records")
            facts |= {str(name): value for name, value in row.items()}
        else:
            rating, prediction = loaded.getRatingCol(), loaded.getPredictionCol()
            pairs_held = _pairs_of(spark, loaded, held, ("user", "item", "rating"))
            scored = loaded.transform(with_vectors(pairs_held, loaded, known))
            scored = scored.where(F.col(rating).isNotNull() & ~F.isnan(prediction)).cache()
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
    item_features: ItemFeatures = "",
    user_features: UserFeatures = "",
    kind: Format = "",
    option: Option = None,
) -> int:
    """May the model be served yet? Exit code 0 if it beats mean and biases, else 3.

    A model of events has to beat the most popular items in lists of ten, on held-out events. Of
    what is held out, users and items that the model has not learned are judged apart too, with what
    --item-features and --user-features say of these and without.
    """
    from sparkml_sgdals import StreamingBiasedALSModel
    from sparkml_sgdals.cli.reading.feature_tables import with_vectors

    if (item_features or user_features) and not held_out:
        raise typer.BadParameter("--item-features is of held-out ratings: give --held-out.")

    options = pairs("--option", option or ())
    _there(run, model)
    held = look(held_out, kind, options, (), run.elsewhere) if held_out else None
    with run.spark() as spark, run.output.phase("Judging"):
        loaded = StreamingBiasedALSModel.load(model)
        table = None
        if held is not None:
            events = loaded.state.settings.learns_events
            rated = ("user", "item") if events else ("user", "item", "rating")
            known = _features_of(spark, run, loaded, user_features, item_features)
            table = with_vectors(_pairs_of(spark, loaded, held, rated), loaded, known)
        found = loaded.diagnose(table, min_ratings)
    verdict = {"beatsBaseline": found.beatsBaseline, "verdict": found.verdict}
    facts = {"model": model, "version": loaded.version} | asdict(found)
    if loaded.state.settings.learns_events:
        facts = {name: value for name, value in facts.items() if "rmse" not in name.casefold()}
    run.output.facts(facts | verdict)
    return 0 if found.beatsBaseline else NOT_READY


def _there(run: Invocation, model: str) -> None:
    """See before Spark starts that there is something where a model should be."""
    from sparkml_sgdals.store.objects import ObjectStore

    if run.elsewhere:
        return
    try:
        found = ObjectStore(model).names("")
    except (OSError, ValueError, ImportError):
        # of a scheme that only Spark reads
        return
    if not {"metadata", "model.json", "commits"} & set(found):
        what = "holds no model" if found else "is not there, or empty"
        raise FileNotFoundError(
            f"{model} {what}: name the folder that fit saved to, or a stream's model path."
        )


def _columns_of(model: Any) -> SourceColumns:
    return SourceColumns(
        model.getUserCol(), model.getItemCol(), model.getRatingCol(), model.getTimestampCol()
    )


def _pairs_of(
    spark: SparkSession, model: Any, place: Place, needed: tuple[str, ...] = ("user", "item")
) -> DataFrame:
    """Read a table with the names and types of ids that a model knows."""
    from sparkml_sgdals.cli.reading.sources import read_ratings

    columns = _columns_of(model)
    table, _ = read_ratings(spark, place, columns, needed, model.idTypes, as_asked=True)
    return table


def _features_of(
    spark: SparkSession, run: Invocation, model: Any, users: str, items: str
) -> tuple[DataFrame | None, DataFrame | None]:
    """Read what is known of users and of items, where a table of it is named."""
    from sparkml_sgdals.cli.reading.feature_tables import read_features

    columns = _columns_of(model)
    found = [
        read_features(spark, look(path, "", {}, (), run.elsewhere), side, columns, model.idTypes)
        if path else None
        for path, side in ((users, "user"), (items, "item"))
    ]  # fmt: skip
    return found[0], found[1]


def _one_by_one(
    spark: SparkSession, model: Any, ranked: DataFrame, clips: bool
) -> list[dict[str, Any]]:
    """Return a row for each user and place: rating, the score before it is clipped, deviation."""
    from pyspark.sql import functions as F

    user, item = model.getUserCol(), model.getItemCol()
    rows = [
        row.asDict()
        for row in ranked.select(
            user, "cold", F.posexplode("recommendations").alias("place", "one")
        )
        .select(user, "cold", (F.col("place") + 1).alias("place"), "one.*")
        .orderBy(user, "place")
        .collect()
    ]
    counters, std = model.state.counters, {}
    settings = model.state.settings
    if rows and settings.solver == "bayes" and not settings.learns_events:
        model = model.copy().setPredictionStdCol("std")
        kinds = dict(zip((user, item), model.idTypes, strict=True))
        schema = ", ".join(f"{quoted(name)} {kind}" for name, kind in kinds.items())
        asked = spark.createDataFrame([(row[user], row[item]) for row in rows], schema)
        std = {(row[user], row[item]): row["std"] for row in model.transform(asked).collect()}
    for row in rows:
        row["score"] = row["rating"]
        if clips:
            row["rating"] = min(max(row["score"], counters.low), counters.high)
        row["std"] = std.get((row[user], row[item]))
    return rows


def _titles_of(
    spark: SparkSession, model: Any, place: Place, title: str, found: set[Any]
) -> dict[Any, str]:
    """Titles of some items, of a table whose first columns are ids and titles without a header."""
    from sparkml_sgdals.cli.reading.sources import read_plain
    from sparkml_sgdals.cli.reading.text_values import Roles, as_numbers

    table, item = read_plain(spark, place), model.getItemCol()
    if place.headless:
        table = table.toDF(item, title, *table.columns[2:])
    same = [name for name in table.columns if name.casefold() == item.casefold()]
    if not same or title not in table.columns:
        lacking = title if same else item
        raise ValueError(
            f"{place.path} has no column {lacking!r}; it has {', '.join(map(repr, table.columns))}."
            + (" Say by --title which has the titles." if same else "")
        )
    table = as_numbers(table, Roles(item=same[0]), model.idTypes)
    table = table.select(quoted(same[0]), quoted(title)).toDF("item", "title")
    asked = spark.createDataFrame([(one,) for one in found], f"item {model.idTypes[1]}")
    return {row["item"]: row["title"] for row in table.join(asked, "item").collect()}


def _ids(spark: SparkSession, given: list[str], column: str, kind: str) -> DataFrame:
    """Ids of a command line as a table, of the kind that the model learned."""
    if kind == "string":
        return spark.createDataFrame([(one,) for one in given], f"{quoted(column)} string")
    try:
        numbers = [(int(one),) for one in given]
    except ValueError as error:
        raise typer.BadParameter(f"The model's users are integers, got {given}.") from error
    return spark.createDataFrame(numbers, f"{quoted(column)} long")
