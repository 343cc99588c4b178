"""What lies under a path is found out before Spark starts: dialects, columns, folders, models."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil

import pandas as pd
import pytest
import strangers
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from sparkml_sgdals.cli.app import app
from sparkml_sgdals.cli.reading.columns import DEFAULTS, SourceColumns, find_columns
from sparkml_sgdals.cli.reading.dialect import dialect_of, encoding_of
from sparkml_sgdals.cli.reading.places import look

LETTERS = st.characters(codec="cp1252", exclude_categories=["C", "Z"], exclude_characters='"#%')
NAMES = st.text(LETTERS, min_size=1, max_size=8).filter(lambda text: not text.isascii())
ROWS = st.lists(
    st.tuples(NAMES, st.integers(1, 999), st.decimals(0, 10, places=1), st.integers(1, 2**31)),
    min_size=2, max_size=20,
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_spark(monkeypatch):
    """A session would have been asked for by its builder."""
    monkeypatch.setattr(
        "pyspark.sql.SparkSession.Builder.getOrCreate",
        lambda self: pytest.fail("Spark was started"),
    )


def run(*words, code=1):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, done.output
    return " ".join(done.stderr.replace("│", "").split())


@given(
    ROWS, st.sampled_from([";", "\t", "|", ",", "::"]), st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]), st.booleans(), st.booleans(),
)  # fmt: skip
def test_however_rows_are_written_they_are_found(rows, sep, end, encoding, headed, comma):
    told = [[user, str(item), str(rating).replace(".", "," if comma else "."), str(time)]
            for user, item, rating, time in rows]  # fmt: skip
    lines = [list(DEFAULTS.in_order), *told] if headed else told
    if sep == "::":
        told = [[value.replace("::", "") for value in row] for row in told]
        lines = [[value.replace("::", "") for value in row] for row in lines]
        text = end.join(map(sep.join, lines)) + end
    else:
        page = io.StringIO(newline="")
        csv.writer(page, delimiter=sep, lineterminator=end).writerows(lines)
        text = page.getvalue()
    content = text.encode(encoding)
    found = encoding_of([content])
    known = {"utf-8": "UTF-8", "utf-8-sig": "UTF-8", "utf-16": "UTF-16", "cp1252": "ISO-8859-1"}
    assert found == known[encoding]
    dialect = dialect_of(content, found, DEFAULTS.in_order, {})
    assert dialect.options["sep"] == sep
    assert dialect.names == (DEFAULTS.in_order if headed else None)
    for row, expected in zip(dialect.rows, told, strict=True):
        assert row[1:] == expected[1:]


def test_an_odd_letter_late_in_a_file_counts():
    assert encoding_of([b"a,b\n" * 1000, "é".encode("latin-1")]) == "ISO-8859-1"
    assert encoding_of(["é".encode()[:1], "é".encode()[1:]]) == "UTF-8"
    assert encoding_of(["é".encode()[:1]], cut=True) == "UTF-8"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("userId", "movieId", "rating", "timestamp"), DEFAULTS),
        (("USERID", "MovieID", "Rating"), SourceColumns("USERID", "MovieID", "Rating", "")),
        (("User-ID", "ISBN", "Book-Rating"), SourceColumns("User-ID", "ISBN", "Book-Rating", "")),
        (("ts", "stars", "business_id", "user_id"),
         SourceColumns("user_id", "business_id", "stars", "ts")),
    ],
)  # fmt: skip
def test_columns_that_are_called_alike_are_found(names, found):
    assert find_columns(names, DEFAULTS, "a.csv") == found


@pytest.mark.parametrize(
    ("names", "asked", "said"),
    [
        (("who", "movieId", "rating"), DEFAULTS, "a.csv has no column 'userId'; it has 'who'"),
        (("user", "uid", "movieId", "rating"), DEFAULTS, "such as --user user or uid"),
        (("userId", "movieId", "rating"), SourceColumns("who", "movieId", "rating", ""), "--user"),
        # an option is never guessed about
        (("userId", "movieId", "rating"), SourceColumns("userId", "movieId", "rating", "when"),
         "Say by --time which is meant"),
        (("user", "item", "artist", "rating"), DEFAULTS, "--item item or artist"),
    ],
)  # fmt: skip
def test_a_column_that_is_not_there_is_asked_for_by_its_option(names, asked, said):
    with pytest.raises(ValueError, match="Say by --") as told:
        find_columns(names, asked, "a.csv")
    assert said in str(told.value)


def test_a_folder_is_one_table(tmp_path):
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating\n1,2,3\n")
    (tmp_path / "README.txt").write_text("what this is")
    place = look(str(tmp_path), wanted=DEFAULTS.in_order)
    assert place.aside == ("README.txt",)
    assert place.options["pathGlobFilter"].startswith("*.{csv,csv.gz")
    (tmp_path / "movies.csv").write_text("movieId,title\n1,A film\n")
    with pytest.raises(ValueError, match=r"movies.csv has the columns 'movieId', 'title', ratings"):
        look(str(tmp_path))
    (tmp_path / "more.parquet").write_bytes(b"PAR1")
    with pytest.raises(typer.BadParameter, match=r"\.csv and \.parquet"):
        look(str(tmp_path))


def test_a_name_that_says_nothing_is_told_by_what_is_in_the_file(tmp_path):
    frame = pd.DataFrame(strangers.rows(), columns=list(strangers.NAMES))
    frame.to_parquet(tmp_path / "ratings")
    assert look(str(tmp_path / "ratings")).kind == "parquet"
    (tmp_path / "lines").write_text('{"a": 1}\n{"a": 2}\n')
    assert look(str(tmp_path / "lines")).kind == "json"
    (tmp_path / "packed.csv.gz").write_bytes(gzip.compress(b"a;b\n1;2\n3;4\n"))
    assert look(str(tmp_path / "packed.csv.gz")).options["sep"] == ";"
    (tmp_path / "sheet.xlsx").write_bytes(b"PK\x03\x04rest")
    with pytest.raises(ValueError, match="save it as CSV"):
        look(str(tmp_path / "sheet.xlsx"))


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_files_of_encodings_that_no_reader_takes_together_are_refused(tmp_path, kind):
    line = "a,é\n1,é\n" if kind == "csv" else '{"a": "é"}\n'
    (tmp_path / f"1.{kind}").write_text(line, encoding="utf-8")
    (tmp_path / f"2.{kind}").write_text(line, encoding="utf-16")
    with pytest.raises(ValueError, match=rf"1\.{kind} is UTF-8, 2\.{kind} is UTF-16"):
        look(str(tmp_path))


def test_options_that_are_given_are_taken(tmp_path):
    (tmp_path / "a.csv").write_text("1;2,3;4\n5;6,7;8\n")
    place = look(str(tmp_path / "a.csv"), given={"sep": ",", "header": "true"})
    assert (place.options["sep"], place.names) == (",", ("1;2", "3;4"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("fit", "nothing.csv", "m"), "There is no nothing.csv."),
        (("fit", "a.csv", "m", "--held-out", "no.csv"), "There is no no.csv."),
        (("fit", "a.csv", "m", "--user", "who"), "a.csv has no column 'who'; it has 'userId'"),
        (("fit", "a.csv", "m", "--held-out", "b.parquet"), "b.parquet has no column 'userId'"),
        (("fit", "a.csv", "old"), "There is something at old already: --overwrite replaces it."),
        (("fit", "empty.csv", "m"), "empty.csv has no rows."),
        (("stream", "m", "nowhere"), "There is no nowhere."),
        (("stream", "m", "in", "--validation", "no.csv"), "There is no no.csv."),
        (("recommend", "nowhere", "-u", "1"), "nowhere is not there, or empty"),
        (("recommend", "in", "-u", "1"), "in holds no model: name the folder"),
        (("recommend", "old", "-u", "1", "--titles", "no.csv"), "There is no no.csv."),
        (("evaluate", "nowhere", "a.csv"), "nowhere is not there"),
        (("diagnose", "nowhere"), "nowhere is not there"),
    ],
)
def test_what_is_wrong_is_said_before_spark_starts(words, said, tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("userId,movieId,rating,timestamp\n1,2,3,4\n")
    (tmp_path / "empty.csv").write_text("")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "b.parquet")
    (tmp_path / "old" / "metadata").mkdir(parents=True)
    (tmp_path / "in").mkdir()
    shutil.copy(tmp_path / "a.csv", tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    assert said in run(*words)


def test_json_of_any_shape_is_known(tmp_path):
    rows = [{"a": 1}, {"a": 2}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert look(str(tmp_path / "a.json")).options == {"multiLine": "true"}
    (tmp_path / "a.json").write_text("\n".join(map(json.dumps, rows)))
    assert look(str(tmp_path / "a.json")).options == {}
    (tmp_path / "a.json").write_text(json.dumps(rows[0], indent=1))
    assert look(str(tmp_path / "a.json")).options == {"multiLine": "true"}
    (tmp_path / "a.json").write_bytes(json.dumps(rows[0]).encode("utf-16"))
    with pytest.raises(ValueError, match="iconv"):
        look(str(tmp_path / "a.json"))
