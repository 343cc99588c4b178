"""What holds for all commands without Spark: help, exit codes, errors, JSON."""

from __future__ import annotations

import inspect
import json
import math
import os
import subprocess
import sys
import tempfile
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import typer
from py4j.protocol import Py4JError
from pyspark.sql import SparkSession
from typer.testing import CliRunner
from writing import Writer

from sparkml_sgdals import __version__
from sparkml_sgdals.cli.app import app
from sparkml_sgdals.cli.command import Invocation, _need_java, command, one_sentence, pairs
from sparkml_sgdals.cli.output import Output, plain
from sparkml_sgdals.cli.wording import in_options
from sparkml_sgdals.extras import install

COMMANDS = ["fit", "stream", "recommend", "evaluate", "diagnose", "versions", "rollback", "serve",
            "demo", "data movielens", "data replay"]  # fmt: skip


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name):
    done = run(*name.split(), "--help")
    assert done.exit_code == 0
    assert "--json" in done.stdout
    assert "--debug" in done.stdout


def test_version():
    assert run("--version").stdout.strip() == __version__


@pytest.mark.parametrize(
    "words", [("-c", "from sparkml_sgdals.cli import main; main()"), ("-m", "sparkml_sgdals.cli")]
)
def test_the_entry_point_runs(words):
    done = subprocess.run(
        [sys.executable, *words, "versions", "/no/such/path"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("failure", "kept"), [(None, False), (ValueError("no"), False), (Py4JError("gone"), True)]
)
def test_the_log_of_spark_stays_where_spark_fails_alone(monkeypatch, tmp_path, failure, kept):
    class Session:
        def stop(self):
            os.write(2, b"stopped\n")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(SparkSession, "getActiveSession", lambda: None)
    monkeypatch.setattr("sparkml_sgdals.cli.command._need_java", lambda: None)
    monkeypatch.setattr(Invocation, "_start", lambda *given: Session())
    raised = nullcontext() if failure is None else pytest.raises(type(failure))
    with raised, Invocation(Output(True)).spark():
        assert len(list(tmp_path.iterdir())) == 1
        if failure is not None:
            raise failure
    assert [file.read_text() for file in tmp_path.iterdir()] == ["stopped\n"] * kept


def test_without_the_extra_it_says_so():
    program = "import sys; sys.modules['typer'] = None\nfrom sparkml_sgdals.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip() == f"The command needs typer: {install('cli')}"


def test_debug_shows_the_stack_trace():
    assert "Traceback" not in run("versions", "/no/such/path").stderr
    assert "Traceback" in run("versions", "/no/such/path", "--debug").stderr


def test_serve_takes_and_hands_on_every_option_of_the_service(monkeypatch):
    serving = pytest.importorskip("sparkml_sgdals.serving")
    told = {}
    known = inspect.signature(serving.serve).parameters
    monkeypatch.setattr(serving, "serve", lambda model, **given: told.update(given), raising=False)
    own = {"user", "item", "rating", "time", "event_id", "model_path", "json", "debug", "columns"}
    command = typer.main.get_command(app).commands["serve"]
    options = {parameter.name for parameter in command.params} - {"help"}
    assert options - own == set(known) - {"model", "columns", "started"}
    words = ["--rating-range", "1", "5", "--origin", "http://a", "--origin", "http://b"]
    words += ["--allowed-host", "*.c"]
    given = {"rating_range": (1.0, 5.0), "origins": ("http://a", "http://b")}
    given["allowed_hosts"] = ("*.c",)
    for name in options - own - set(given):
        default = known[name].default
        if isinstance(default, bool):
            words, given[name] = [*words, f"--{name.replace('_', '-')}"], True
        else:
            given[name] = {int: 7, float: 0.5}.get(type(default), "xy")
            words += [f"--{name.replace('_', '-')}", str(given[name])]
    done = run("serve", "path", *words, "--event-id", "e", "--columns", "u,i,r,t,other")
    assert done.exit_code == 0, done.output
    assert {name: told[name] for name in given} == given
    assert told["columns"] == {"user": "u", "item": "i", "rating": "r", "time": "t", "event": "e"}
    # and by default what the service has
    told.clear()
    assert run("serve", "path").exit_code == 0
    for name in given:
        assert told[name] == known[name].default, name
    # the model says what they are called
    assert told["columns"] == {}
    assert run("serve", "path", "--user", "session", "--time", "").exit_code == 0
    assert told["columns"] == {"user": "session"}
    assert "--columns names five columns" in run("serve", "path", "--columns", "u").stderr


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("fit",),
        ("fit", "a", "b", "--param", "rank"),
        ("fit", "a", "b", "--param", "rnak=3"),
        ("fit", "a", "b", "--conf", "x"),
        ("fit", "a", "b", "--held-out", "c", "--split", "0.1"),
        ("stream", "path"),
        ("stream", "path", "in", "--kafka", "h:1"),
        ("recommend", "m"),
        ("recommend", "m", "--all"),
        ("recommend", "m", "-u", "1", "--rank-by", "luck"),
        ("evaluate", "m", "x.csv", "--exclude-seen", "y.csv"),
        ("rollback", "path", "one"),
    ],
)
def test_wrong_usage_is_exit_code_2(words):
    done = run(*words)
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output


def test_interrupted_is_130():
    mine = typer.Typer()

    def stop(run):
        raise KeyboardInterrupt

    command(mine, "stop", spark=False)(stop)
    assert CliRunner().invoke(mine, []).exit_code == 130


def test_errors_become_one_sentence():
    inside = (
        "[STREAM_FAILED] Query [id = 1] terminated with exception: Traceback (most recent call "
        "last):\n  File 'x'\nValueError: The column 'rating' is missing. Rename one.\n\nmore"
    )
    assert one_sentence(RuntimeError(inside)) == "The column 'rating' is missing. Rename one."
    jvm = (
        "[STREAM_FAILED] Traceback (most recent call last):\n  File 'x'\n"
        "py4j.protocol.Py4JJavaError: An error occurred while calling o1.x.\n"
        ": org.apache.spark.SparkException: Exception thrown\n\tat org.apache.X.y(X.scala:1)\n"
        "Caused by: org.apache.spark.SparkException: Job aborted\n\tat org.apache.X.y(X.scala:1)\n"
        "Caused by: org.apache.spark.SparkIllegalArgumentException: The header is not the schema.\n"
        " Header: a, b\n\tat org.apache.X.y(X.scala:1)\n\tat java.base/z(Unknown Source)\n"
    )
    assert one_sentence(RuntimeError(jvm)) == "The header is not the schema. Header: a, b"
    connect = jvm.replace("py4j.protocol.Py4JJavaError", "pyspark.errors.SparkException")
    assert one_sentence(RuntimeError(connect)) == "The header is not the schema. Header: a, b"
    bare = connect[: connect.index("Caused by")]
    assert one_sentence(RuntimeError(bare)) == "An error occurred while calling o1.x."
    spark = "[PATH_NOT_FOUND] Path does not exist: file:/x. SQLSTATE: 42K03;\nPlan\n\nJVM"
    assert one_sentence(RuntimeError(spark)) == "Path does not exist: file:/x."
    assert one_sentence(ValueError()) == "ValueError"


def test_a_cause_of_many_lines_takes_no_time_to_find():
    """It took for ever where no line of a stack came right after it."""
    trace = "\n".join(f"org.apache.spark.Some{n}.call(Some.scala:{n})" for n in range(5000))
    text = f"Traceback (most recent call last)\nCaused by: java.io.IOException: Gone\n{trace}"
    assert one_sentence(RuntimeError(text)).startswith("Gone org.apache.spark.Some0.call")


def test_pairs():
    assert pairs("--conf", ["a.b=c=d", " e = f "]) == {"a.b": "c=d", "e": "f"}
    with pytest.raises(typer.BadParameter, match="name=value"):
        pairs("--conf", ["=1"])


def test_json_holds_no_nan():
    values = {"a": math.nan, "b": np.float32(0.5), "c": [pd.NA, np.int64(3)], "d": pd.NaT,
              "e": pd.Timestamp("2026-01-02"), "f": math.inf}  # fmt: skip
    expected = {"a": None, "b": 0.5, "c": [None, 3], "d": None, "e": "2026-01-02T00:00:00",
                "f": None}  # fmt: skip
    assert plain(values) == expected
    json.dumps(plain(values), allow_nan=False)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("userCol 'who' is not a column", "--user 'who' is not a column"),
        ("Set timestampCol to one of them.", "Set --time to one of them."),
        ("or set handleInvalid='skip' to learn", "or set -P handleInvalid=skip to learn"),
        ("(implicitPrefs=True)", "(-P implicitPrefs=true)"),
        ("excludeSeen=ratings, or set rankingSize to 1", "--exclude-seen TABLE, or set -P rank"),
        ("call model.write().overwrite().save(path)", "call --overwrite"),
        (
            "by --option nullValue=X, or by -P handleInvalid=skip.",
            "by --option nullValue=X, or by -P handleInvalid=skip.",
        ),
        ("the table is empty. Start a model without ratings with fitStream.", "table is empty."),
        ("Cast it first, e.g. df.withColumn('a', F.col('a').cast('float')).", "in the file."),
    ],
)
def test_messages_speak_of_options(told, said):
    assert said in in_options(told)


def test_params_of_messages_are_never_in_python_s_spelling(tmp_path):
    """Nothing that a row may lack is told by the name that only the library has."""
    from sparkml_sgdals.ingest.bad_rows import column_names
    from sparkml_sgdals.ingest.columns import RatingColumns

    names = column_names(RatingColumns("a", "b", "c", "d", "e"))
    told = in_options(" ".join(map(str, names.values())))
    assert "userCol" not in told
    assert "--user 'a'" in told


def test_without_java_it_says_so_before_spark_looks_for_it(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(OSError, match="Spark needs Java 17"):
        _need_java()
    monkeypatch.setenv("JAVA_HOME", "/no/such")
    with pytest.raises(OSError, match="JAVA_HOME is /no/such"):
        _need_java()


def test_versions_are_listed_for_a_person(tmp_path):
    """Thirty versions: the newest 20, by the reader's clock, without columns that none has."""
    writer = Writer(tmp_path)
    for _ in range(29):
        writer.learn()
    shown = run("versions", tmp_path)
    lines = shown.stdout.splitlines()
    assert len(lines) == 24
    assert "restored" not in lines[1]
    assert "20 of 30 versions; --limit 0 lists all." in shown.stderr
    assert len(json.loads(run("versions", tmp_path, "--json").stdout)) == 30
    assert len(json.loads(run("versions", tmp_path, "--json", "--limit", 3).stdout)) == 3
    assert max(map(len, lines)) <= 80
