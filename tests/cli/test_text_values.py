"""Values of text as numbers and moments, and what is said of those that are none."""

from __future__ import annotations

import json
import random
import re

import pytest
from helpers import long_after

from sparkml_sgdals.cli.reading.columns import DEFAULTS
from sparkml_sgdals.cli.reading.places import look
from sparkml_sgdals.cli.reading.sources import read_files_stream, read_plain
from sparkml_sgdals.cli.reading.text_values import Roles, as_numbers, from_latin

ROLES = Roles("u", "i", "r", "t")


def read(spark, column, values, **more):
    """Return what a column of text becomes, and its type."""
    rows = [(None if value is None else str(value),) for value in values]
    table = spark.createDataFrame(rows, f"{column} string")
    roles = Roles(**{role: name for role, name in vars(ROLES).items() if name == column})
    found = as_numbers(table, roles, **more)
    return [row[0] for row in found.collect()], found.schema[0].dataType.simpleString()


@pytest.mark.long
def test_ids_are_numbers_where_all_of_them_are(spark):
    drawn = random.Random(1)
    whole = [drawn.randrange(-(2**63), 2**63) for _ in range(200)] + [0, 7, 2**63 - 1, -(2**63)]
    assert read(spark, "u", whole) == (whole, "bigint")
    assert read(spark, "u", ["1.0", "31.", "+5", " 8 ", None, ""]) == (
        [1, 31, 5, 8, None, None], "bigint")  # fmt: skip
    # one that is none makes all of them texts, and 007 is not 7
    for other in ("007", "x7", "1.5", 2**63, "1e3", "\u0663"):
        texts = ["7", str(other)]
        assert read(spark, "u", texts) == (texts, "string"), other


def test_ids_are_of_the_types_that_a_model_has(spark):
    assert read(spark, "i", ["7", "8"], ids=("bigint", "string")) == (["7", "8"], "string")
    assert read(spark, "i", ["7", "8"], ids=("string", "bigint")) == ([7, 8], "bigint")
    with pytest.raises(ValueError, match="'i' holds 'x', which is no whole number as the model's"):
        read(spark, "i", ["7", "x"], ids=("bigint", "bigint"))


def test_ratings_have_a_point_or_a_comma(spark):
    drawn = random.Random(2)
    ratings = [round(drawn.uniform(-10, 10), drawn.randrange(4)) for _ in range(200)]
    assert read(spark, "r", ratings) == (ratings, "double")
    commas = [str(one).replace(".", ",") for one in ratings]
    assert read(spark, "r", commas) == (ratings, "double")
    with pytest.raises(ValueError, match=r"'r' holds 'good', in 2 rows such, which is no number"):
        read(spark, "r", ["1", "good", "good", None])
    assert read(spark, "r", ["1,5", "n/a"], drops_bad=True) == ([1.5, None], "double")


@pytest.mark.long
def test_times_are_numbers_or_moments_and_never_both(spark):
    assert read(spark, "t", [1_400_000_000, 5]) == ([1_400_000_000, 5], "bigint")
    assert read(spark, "t", ["1.5", "2"]) == ([1.5, 2.0], "double")
    found, kind = read(spark, "t", ["2014-05-13T16:53:20Z", "2014-05-13", "2014-05-13 16:53:20.5"])
    assert (kind, None in found) == ("timestamp", False)
    found, kind = read(spark, "t", ["13.05.2014", "01.12.2015"], time_format="dd.MM.yyyy")
    assert [one.isoformat()[:10] for one in found] == ["2014-05-13", "2015-12-01"]
    for values, more in (
        (["13.05.2014", "14.05.2014"], {}),
        (["2014-05-13", "1400000000"], {}),
        (["13.05.2014", "2014-05-13"], {"time_format": "dd.MM.yyyy"}),
    ):
        with pytest.raises(ValueError, match=r"say the form by --time-format"):
            read(spark, "t", values, **more)


def test_windows_own_letters_are_read_right(spark):
    told = bytes(code for code in range(0x20, 0x100) if code not in (0x81, 0x8D, 0x8F, 0x90, 0x9D))
    # as Spark reads a byte a character
    table = spark.createDataFrame([(told.decode("latin-1"),)], "`gr\u00fc\u0080n` string")
    fixed = from_latin(table)
    assert fixed.columns == ["gr\u00fc\u20acn"]
    assert fixed.first()[0] == told.decode("cp1252")
    assert not re.search(r"[\x80-\x9f]", fixed.first()[0])


@pytest.mark.parametrize("first", long_after(1, ["utf-8", "cp1252"]))
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_files_of_two_encodings_in_a_folder_are_each_read_as_what_they_are(
    spark, tmp_path, kind, first
):
    other = {"utf-8": "cp1252", "cp1252": "utf-8"}[first]
    names = {first: ["Zoë", "日本" if first == "utf-8" else "Œuvre"], other: ["Jürgen", "plain"]}
    for number, (encoding, users) in enumerate(names.items()):
        if kind == "csv":
            lines = ["userId,movieId,rating", *(f"{user},1,{number + 3}" for user in users)]
        else:
            lines = [
                json.dumps({"userId": user, "movieId": 1, "rating": 4}, ensure_ascii=False)
                for user in users
            ]
            lines.append(r'{"userId": "\u20ac", "movieId": 1, "rating": 4}')
        (tmp_path / f"{number}.{kind}").write_bytes("\n".join(lines).encode(encoding) + b"\n")
    told = {user for users in names.values() for user in users}
    told |= {"€"} if kind == "jsonl" else set()
    assert {row.userId for row in read_plain(spark, look(str(tmp_path))).collect()} == told
    stream, _ = read_files_stream(spark, look(str(tmp_path), stream=True), DEFAULTS, "", None)
    query = stream.writeStream.format("memory").queryName(f"of_{kind}_{first[:2]}")
    query.trigger(availableNow=True).start().awaitTermination()
    assert {row.userId for row in spark.table(f"of_{kind}_{first[:2]}").collect()} == told
