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


TABLE = {"userId": [1, 2, 3], "movieId": [1, 2, 3], "rating": [1, 2, 3]}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    ("held", "remedy"),
    [
        (TABLE, "pandas.read_json('a.json')"),
        (pd.DataFrame(TABLE).to_dict(), "pandas.read_json('a.json')"),
        ({"ratings": [{"userId": 1}] * 3}, "DataFrame(json.load(open('a.json'))['ratings'])"),
        ({"ratings": [{"userId": 1}] * 99_999}, "json.load(open('a.json'))['ratings']"),
    ],
    ids=["columns", "by index", "under a name", "longer than a sample"],
)  # fmt: skip
def test_json_that_is_no_row_is_told(held, remedy, indent, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(held, indent=indent))
    with pytest.raises(ValueError, match=r"one JSON object, of '.*', not one a row") as told:
        look(str(tmp_path / "a.json"))
    assert remedy in str(told.value)


def test_rows_of_structs_are_rows(tmp_path):
    row = {"user": {"id": 1}, "item": {"id": 2}, "rating": 3}
    for text in (json.dumps(row), json.dumps(row) + "\n", json.dumps(row) + "\n" + json.dumps(row)):
        (tmp_path / "a.json").write_text(text)
        assert look(str(tmp_path / "a.json")).kind == "json"


@pytest.mark.parametrize("ahead", ["My ratings", "sep=;", "My ratings\n\nof 2024; and 2025"])
def test_lines_before_a_table_are_told(ahead, tmp_path):
    table = "Leser;Buch;Note\n" + "".join(f"{n};{n + 1};3,5\n" for n in range(9))
    (tmp_path / "my export.csv").write_text(f"{ahead}\n{table}")
    line = ahead.count("\n") + 2
    with pytest.raises(ValueError, match=rf"in line {line}\. .*tail -n \+{line} 'my export.csv'"):
        look(str(tmp_path / "my export.csv"))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32"])
def test_text_that_spark_cannot_read_is_told(encoding, tmp_path):
    (tmp_path / "a.csv").write_bytes("userId,movieId,rating\n1,2,3\n".encode(encoding))
    with pytest.raises(ValueError, match=r"a.csv is text in UTF-.*iconv -f UTF-"):
        look(str(tmp_path / "a.csv"))


def test_columns_that_blanks_align_are_told(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"{n:>5} {n:>5} {3.5:>5}\n" for n in range(9)))
    with pytest.raises(ValueError, match=r"several blanks between values.*sed"):
        look(str(tmp_path / "a.txt"))


def test_files_of_several_separators_are_told(tmp_path):
    for name, sep in {"a.csv": ",", "b.csv": ";"}.items():
        rows = [["userId", "movieId", "rating"], ["1", "2", "3"]]
        (tmp_path / name).write_text("".join(sep.join(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"a.csv is separated by ',', b.csv by ';'"):
        look(str(tmp_path))


def test_files_in_folders_below_are_told(tmp_path):
    (tmp_path / "2024").mkdir()
    (tmp_path / "2024" / "a.csv").write_text("userId,movieId,rating\n1,2,3\n")
    with pytest.raises(typer.BadParameter, match=r"below it, such as 2024/a.csv: name one"):
        look(str(tmp_path))
    found = look(str(tmp_path), given={"recursiveFileLookup": "true"})
    assert found.names == ("userId", "movieId", "rating")


def test_a_name_with_signs_of_patterns_is_a_name(tmp_path):
    (tmp_path / "a[1]{2}*.csv").write_text("userId,movieId,rating\n1,2,3\n")
    assert look(str(tmp_path / "a[1]{2}*.csv")).source.endswith(r"a\[1\]\{2\}\*.csv")
    assert look(str(tmp_path / "*.csv")).source.endswith("/*.csv")


def test_what_is_narrower_than_a_row_may_be_a_header(tmp_path):
    # as R's write.table and some others write it
    rows = "".join(f'"{n}",{n},{n + 1},3\n' for n in range(9))
    for header in ('"userId","movieId","rating"\n', "reader,book,note\n", ""):
        (tmp_path / "a.csv").write_text(header + rows)
        look(str(tmp_path / "a.csv"))
    for first in ("1,2\n", "anna,2,\n"):
        # what lacks a value is a row
        (tmp_path / "a.csv").write_text(first + "anna,2,3,4\n" * 9)
        assert len(look(str(tmp_path / "a.csv")).dialect.rows) == 10


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
