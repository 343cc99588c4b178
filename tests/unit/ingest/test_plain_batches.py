"""Which batches are read from their own columns, and what their chunks tell of partitions."""

from types import SimpleNamespace

import pyarrow as pa
import pytest
from pyspark.sql.types import (
    BooleanType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    ShortType,
    StringType,
    StructField,
    StructType,
    TimestampNTZType,
    TimestampType,
)

from sparkml_sgdals.ingest.columns import RatingColumns
from sparkml_sgdals.ingest.plain_batches import partitions_of, plain_batches

COLUMNS = RatingColumns("user", "item", "rating", "time")
INTS = ("int", "int")
PLAIN = "user long, item int, rating double, time long"
TYPES = {
    "boolean": BooleanType(), "date": DateType(), "decimal": DecimalType(3, 1),
    "double": DoubleType(), "float": FloatType(), "int": IntegerType(), "long": LongType(),
    "short": ShortType(), "string": StringType(), "timestamp": TimestampType(),
    "timestamp_ntz": TimestampNTZType(),
    "struct": StructType([StructField("time", LongType())]),
}  # fmt: skip


def session(limit: str | None = None) -> SimpleNamespace:
    told = {} if limit is None else {"spark.driver.maxResultSize": limit}
    return SimpleNamespace(conf=SimpleNamespace(get=told.get))


def found(schema: str, kinds=INTS, columns=COLUMNS, limit=None):
    # without a session there is no DDL
    pairs = (column.split() for column in schema.split(", "))
    fields = [StructField(name, TYPES[kind]) for name, kind in pairs]
    return plain_batches(session(limit), StructType(fields), columns, kinds)


def test_columns_are_found_as_spark_finds_them() -> None:
    taken = found("USER short, item int, Rating int, time timestamp, seen boolean").taken
    assert [theirs for _, theirs, _ in taken] == ["USER", "item", "Rating", "time"]
    texts = found("user string, item string, rating float, time int", ("str", "str")).taken
    assert [kind for *_, kind in texts] == [None, None, pa.float32(), pa.int64()]


def test_events_need_no_rating() -> None:
    columns = RatingColumns("user", "item", "rating", rating_needed=False)
    plain = found("user long, item long", columns=columns)
    table = plain.of(pa.table({"user": [1, 2], "item": [3, None]}))
    assert table.column("rating").to_pylist() == [1.0, 1.0]
    assert table.column("item").to_pylist() == [3, None]


@pytest.mark.parametrize(
    "schema",
    [
        "user double, item int, rating double, time long",
        "user string, item int, rating double, time long",
        "user long, item int, rating decimal, time long",
        "user long, item int, rating double, time date",
        "user long, item int, rating double, time timestamp_ntz",
        "user long, item int, rating double, time double",
        "user long, User long, item int, rating double, time long",
        "user long, item int, rating double, event struct",
        f"{PLAIN}, message struct",
        f"{PLAIN}, text string",
        f"{PLAIN}, a int, b int, c int, d int, e int",
    ],
)
def test_what_spark_has_to_select(schema: str) -> None:
    assert found(schema) is None


def test_what_nothing_bounds_is_selected() -> None:
    assert found(PLAIN, limit="0") is found(PLAIN, limit="0b") is None
    assert found(PLAIN, limit="2g") is not None
    features = RatingColumns("user", "item", "rating", features=("time", None))
    assert found(PLAIN, columns=features) is None


@pytest.mark.parametrize(
    ("lengths", "partitions"),
    [([], 0), ([0, 0], 0), ([5, 0, 7], 2), ([10_000, 10_000, 3], 2), ([10_000] * 9, 1)],
)
def test_partitions_by_their_chunks(lengths: list[int], partitions: int) -> None:
    """Not fewer than have an end of their own, and not one for each full batch."""
    column = pa.chunked_array([pa.nulls(n, pa.int64()) for n in lengths], pa.int64())
    assert partitions_of(pa.table({"user": column})) == partitions
