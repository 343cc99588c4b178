"""The commands that need Spark, on real ratings tables, one after another as a person would."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import ONCE, long_after
from typer.testing import CliRunner

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel
from sparkml_sgdals.cli.app import app
from sparkml_sgdals.cli.reading.columns import DEFAULTS

NAMES = {"user": "userId", "item": "movieId", "time": "timestamp"}


def run(*words, code=0):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, done.output
    return done


def answer(*words, code=0):
    return json.loads(run(*words, "--json", code=code).stdout)


@pytest.fixture(scope="module")
def tables(small, tmp_path_factory):
    """Folder with train.csv, test.parquet and titles.csv."""
    folder = tmp_path_factory.mktemp("tables")
    table = small.rename(columns=NAMES)
    table.iloc[:3000].to_csv(folder / "train.csv", index=False)
    table.iloc[3000:].to_parquet(folder / "test.parquet")
    ids = np.sort(table.movieId.unique())
    titles = pd.DataFrame({"movieId": ids, "title": [f"Film, the {i}th" for i in ids]})
    titles.to_csv(folder / "titles.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def fitted(spark, tables):
    """A model of the command `fit`, and what it said."""
    out = tables / "model"
    said = answer("fit", tables / "train.csv", out, "--held-out", tables / "test.parquet",
                  "-P", "rank=4", "-P", "implicitPrior=false", "--overwrite")  # fmt: skip
    return out, said


@pytest.mark.long
def test_fit_saves_what_the_library_learns(spark, tables, fitted):
    out, said = fitted
    loaded = StreamingBiasedALSModel.load(str(out))
    table = spark.read.csv(str(tables / "train.csv"), header=True, inferSchema=True)
    als = StreamingBiasedALS(userCol="userId", itemCol="movieId", timestampCol="timestamp", rank=4,
                             implicitPrior=False)  # fmt: skip
    assert loaded.state.fingerprint() == als.fit(table).state.fingerprint()
    assert (said["ratings"], said["evidence"], said["predicted"]) == (3000, "held-out", 1000)
    assert said["rmse"] < said["baselineRmse"]
    assert 3 <= len(said["trainingRmse"]) <= 10


def test_fit_does_not_replace_a_model_unasked(tables, fitted):
    done = run("fit", tables / "train.csv", fitted[0], code=1)
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.long
def test_evaluate_agrees_with_transform(spark, tables, fitted):
    out, said = fitted
    found = answer("evaluate", out, tables / "test.parquet")
    model = StreamingBiasedALSModel.load(str(out))
    scored = model.transform(spark.read.parquet(str(tables / "test.parquet"))).toPandas()
    apart = scored.prediction - scored.rating
    assert found["ratings"] == 1000
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean(apart**2)), rel=1e-9)
    assert found["mae"] == pytest.approx(np.mean(np.abs(apart)), rel=1e-9)
    assert found["rmse"] == pytest.approx(said["rmse"], rel=1e-6)


@pytest.mark.long
def test_evaluate_ranks(spark, tables, fitted):
    train, test = tables / "train.csv", tables / "test.parquet"
    found = answer("evaluate", fitted[0], test, "--top", 5, "--exclude-seen", train)
    model = StreamingBiasedALSModel.load(str(fitted[0]))
    seen = spark.read.csv(str(train), header=True, inferSchema=True)
    judged = model.evaluateRanking(spark.read.parquet(str(test)), 5, excludeSeen=seen)
    assert (found["k"], found["recall"], found["novelty"]) == (5, judged.recall, judged.novelty)
    assert found["ndcgStandardError"] == judged.standardErrors["ndcg"]
    run("evaluate", fitted[0], test, "--exclude-seen", train, code=2)


def test_diagnose_tells_by_its_exit_code(tables, fitted):
    found = answer("diagnose", fitted[0], "--held-out", tables / "test.parquet")
    assert found["beatsBaseline"] is True
    # too few ratings to judge by
    few = tables / "few.parquet"
    pd.read_parquet(tables / "test.parquet").head(10).to_parquet(few)
    found = answer("diagnose", fitted[0], "--held-out", few, code=3)
    assert found["beatsBaseline"] is False
    assert "Not yet" in run("diagnose", fitted[0], "--held-out", few, code=3).stdout


@pytest.mark.long
def test_recommend_for_users_with_titles(spark, tables, fitted):
    out, _ = fitted
    rows = answer("recommend", out, "-u", "8", "-u", "999999", "-n", "3",
                  "--exclude-seen", tables / "train.csv",
                  "--titles", tables / "titles.csv")  # fmt: skip
    assert [(row["userId"], row["place"], row["cold"]) for row in rows] == [
        *((8, place, False) for place in (1, 2, 3)),
        *((999999, place, True) for place in (1, 2, 3)),
    ]
    assert all(row["title"] == f"Film, the {row['movieId']}th" for row in rows)
    assert all(row["rating"] >= after["rating"] for row, after in itertools.pairwise(rows[:3]))
    train = pd.read_csv(tables / "train.csv")
    seen = set(train[train.userId == 8].movieId)
    assert seen
    assert not seen & {row["movieId"] for row in rows if row["userId"] == 8}
    # for a person: a table
    shown = run("recommend", out, "-u", "8", "-n", "2").stdout
    assert "movieId" in shown
    assert str(rows[0]["movieId"]) in run("recommend", out, "-u", "8", "--exclude-seen",
                                          tables / "train.csv").stdout  # fmt: skip


def test_recommend_for_all_writes_parquet(tables, fitted, tmp_path):
    place = tmp_path / "best"
    run("recommend", fitted[0], "--all", "-n", "5", "--out", place)
    table = pd.read_parquet(place)
    assert len(table) == 120
    assert {len(best) for best in table.recommendations} == {5}


def test_recommend_refuses_ids_of_the_other_kind(fitted):
    assert "integers" in run("recommend", fitted[0], "-u", "bob", code=2).stderr


def test_stream_versions_and_rollback(spark, small, files, tmp_path):
    table = small.rename(columns=NAMES)
    folder, path = files(table.iloc[:900], 300), tmp_path / "films"
    words = ("stream", path, folder, "--once", "--option", "maxFilesPerTrigger=1")
    done = run(*words, "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["batch"] for line in lines] == [0, 1, 2]
    assert [line["ratings"] for line in lines] == [300, 300, 300]
    assert lines[0]["rmse"] is None or lines[0]["rmse"] > 0

    files(table.iloc[900:1200], 300, first=3)
    again = run(*words).stdout.splitlines()
    # only what is new is learned and told
    assert len(again) == 2
    assert again[1].split()[:2] == ["3", "300"]
    found = answer("versions", path, "--verify")
    assert [row["loadable"] for row in found] == [True] * len(found)
    assert found[-1]["ratings"] == 1200
    assert found[-1]["batch"] == 3

    wanted = found[-2]["version"]
    done = answer("rollback", path, wanted, "--no-reread")
    assert (done["restored"], done["version"]) == (wanted, found[-1]["version"] + 1)
    assert answer("versions", path)[-1]["ratings"] == 900
    # offsets stay: what was left out is not learned again
    assert len(run(*words).stdout.splitlines()) == 1
    error = run("rollback", path, 12345, code=1).stderr
    assert len(error.splitlines()) == 1
    assert "12345" in error


@pytest.mark.long
def test_stream_goes_on_from_a_saved_model(spark, small, files, fitted, tmp_path):
    table = small.rename(columns=NAMES)
    folder, path = files(table.iloc[3000:3400], 200), tmp_path / "films"
    run("stream", path, folder, "--start", fitted[0], "--once", "--validation",
        fitted[0].parent / "test.parquet", "--option", "maxFilesPerTrigger=1")  # fmt: skip
    found = StreamingBiasedALSModel.load(str(path))
    assert found.state.counters.ratings == 3400
    schema = DEFAULTS.ddl()
    stream = spark.readStream.schema(schema).option("header", True)
    stream = stream.option("maxFilesPerTrigger", 1).csv(folder)
    start = StreamingBiasedALSModel.load(str(fitted[0]))
    job = start.updateStream(stream, str(tmp_path / "library"), trigger=ONCE)
    job.awaitTermination(60)
    assert found.state.fingerprint() == job.model.state.fingerprint()


@pytest.mark.parametrize("kind", long_after(1, ["json", "csv"]))
def test_a_stream_learns_an_event_once_and_tells_prometheus(spark, small, tmp_path, kind):
    """Of messages as the service writes them: whole seconds, an id each."""
    table = small.rename(columns=NAMES).iloc[:200].assign(timestamp=range(10**9, 10**9 + 200))
    table["eventId"] = [f"e{n}" for n in range(200)]
    folder = tmp_path / "in"
    folder.mkdir()
    for number, part in enumerate((table, table.iloc[50:])):
        file = folder / f"{number}.{kind}"
        if kind == "csv":
            part.to_csv(file, index=False)
        else:
            part.to_json(file, orient="records", lines=True)
    told = tmp_path / "collected"
    if kind == "csv":
        # names of a header are compared with the schema's, in order
        schema = ", ".join(
            f"{name} {'double' if name == 'rating' else 'string' if name == 'eventId' else 'long'}"
            for name in table.columns
        )
        more = ["--schema", schema]
    else:
        more = []
    run("stream", tmp_path / "films", folder, "--once", "--event-id", "eventId",
        "--watermark", "10 minutes", "--prometheus", told, "--option", "maxFilesPerTrigger=1",
        *more)  # fmt: skip
    found = answer("versions", tmp_path / "films")
    assert found[-1]["ratings"] == 200
    (file,) = told.glob("*.prom")
    assert "200" in file.read_text()


def test_a_stream_whose_files_have_other_columns_fails_in_a_sentence(spark, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.csv").write_text("movieId,userId,rating,timestamp\n1,2,3.0,4\n")
    run("stream", tmp_path / "films", folder, "--once")
    (folder / "b.csv").write_text("userId,movieId,rating,timestamp\n1,2,3.0,4\n")
    done = run("stream", tmp_path / "films", folder, "--once", code=1)
    assert len(done.stderr.splitlines()) == 1
    assert "b.csv has the columns 'userId', 'movieId'" in done.stderr


def test_a_stream_learns_the_files_of_a_folder_that_are_ratings(spark, small, files, tmp_path):
    """Other files lie there; ids are texts and times are moments, without a schema."""
    table = small.rename(columns=NAMES).iloc[:400]
    table = table.assign(
        userId="u" + table.userId.astype(str),
        timestamp=pd.to_datetime(table.timestamp, unit="s").dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    folder, path = files(table, 200), tmp_path / "films"
    for name, content in {
        "README.txt": "what this is", "notes.md": "a;b;c", ".part.csv": "x", "_SUCCESS": "",
    }.items():  # fmt: skip
        Path(folder, name).write_text(content)
    alive = tmp_path / "alive"
    done = run("stream", path, folder, "--once", "--json", "--alive-file", alive)
    assert alive.exists()
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(one["ratings"] for one in told) == 400
    assert sum(one["invalid"] for one in told) == 0
    found = StreamingBiasedALSModel.load(str(path))
    assert found.idTypes == ("string", "bigint")
    # goes on with what it has learned, whatever the file's columns are called
    files(table.rename(columns={"userId": "user_id", "movieId": "item"}), 400, first=9)
    shutil.rmtree(folder)
    again = files(table.rename(columns={"userId": "user_id", "movieId": "item"}), 400, first=9)
    run("stream", path, again, "--once")
    # what an earlier run left says nothing of this one
    run("stream", path, "nowhere", "--once", "--alive-file", alive, code=1)
    assert not alive.exists()
    found = StreamingBiasedALSModel.load(str(path))
    assert found.state.counters.ratings == 800
    assert found.state.users.size == table.userId.nunique()


@pytest.mark.long
def test_scores_tell_items_apart_that_are_clipped_to_one_number(spark, tables):
    """Ratings of five stars throughout for some, so that many predictions lie above."""
    high = pd.read_csv(tables / "train.csv")
    high.loc[high.userId < 300, "rating"] = 5.0
    high.to_csv(tables / "high.csv", index=False)
    out = tables / "high"
    run("fit", tables / "high.csv", out, "-P", "rank=4")
    rows = answer("recommend", out, "-u", "8", "-n", "5")
    assert [row["rating"] for row in rows] == [5.0] * 5
    scores = [row["score"] for row in rows]
    assert scores == sorted(set(scores), reverse=True)
    assert scores[-1] > 5.0
    model = StreamingBiasedALSModel.load(str(out)).setPredictionStdCol("std")
    pairs = spark.createDataFrame([(row["userId"], row["movieId"]) for row in rows],
                                  "userId long, movieId long")  # fmt: skip
    stds = {row.movieId: row["std"] for row in model.transform(pairs).collect()}
    assert [row["std"] for row in rows] == [stds[row["movieId"]] for row in rows]
    shown = run("recommend", out, "-u", "8", "-n", "5").stdout
    assert "unclipped" in shown
    assert "±" in shown


def test_a_missing_column_and_a_missing_file(tables, fitted, tmp_path):
    out = tmp_path / "m"
    done = run("fit", tables / "train.csv", out, "--user", "who", code=1)
    assert "who" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = run("fit", tables / "nothing.csv", out, code=1)
    assert "nothing.csv" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.long
def test_in_a_session_of_its_own(classic_only, tables, tmp_path):
    """--master and --conf reach Spark, stdout holds JSON and nothing else."""
    program = "from sparkml_sgdals.cli import main; main()"
    words = ["fit", tables / "train.csv", tmp_path / "m", "--json", "--master", "local[1]",
             "--conf", "spark.ui.enabled=false", "--conf", "spark.sql.shuffle.partitions=1",
             "-P", "rank=2"]  # fmt: skip
    names = {k: v for k, v in os.environ.items() if not k.startswith(("SPARK_", "PYSPARK_"))}
    names["SPARK_LOCAL_IP"] = "127.0.0.1"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        env=names, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ratings"] == 3000


@pytest.mark.long
def test_fit_of_events_is_judged_by_its_lists(spark, tables):
    """A table of events has no RMSE to be judged by."""
    out = tables / "events"
    said = answer("fit", tables / "train.csv", out, "--held-out", tables / "test.parquet",
                  "-P", "implicitPrefs=true", "-P", "rank=4", "-P", "maxIter=3",
                  "-P", "forgetUsersAfter=30 days")  # fmt: skip
    loaded = StreamingBiasedALSModel.load(str(out))
    # its whole seconds are times there
    newest = pd.read_csv(tables / "train.csv").timestamp.max()
    assert loaded.state.users.memory.moment.max() == newest * 1_000_000
    assert (said["ratings"], said["users"]) == (3000, loaded.state.users.size)
    assert 0 < said["recall"] < 1
    again = answer("evaluate", out, tables / "test.parquet", "--top", 10,
                   "--exclude-seen", tables / "train.csv")  # fmt: skip
    assert again["recall"] == pytest.approx(said["recall"])
    judged = answer("diagnose", out, "--held-out", tables / "test.parquet", code=3)
    assert judged["recall"] == pytest.approx(said["recall"])
    assert "events were held out" in judged["verdict"]
    assert "rmse" not in judged
    assert (loaded.state.settings.table_rank, loaded.rank) == (4, 4)


@pytest.mark.long
def test_events_need_no_column_of_ratings(spark, small, tmp_path):
    """A fit of them, and a stream that begins with them."""
    (tmp_path / "in [1]").mkdir()
    table = small.rename(columns=NAMES)[["userId", "movieId", "timestamp"]]
    table.to_csv(tmp_path / "in [1]" / "clicks.csv", index=False)
    with_ones = table.assign(rating=1)[["userId", "movieId", "rating", "timestamp"]]
    with_ones.to_csv(tmp_path / "ones.csv", index=False)
    more = ("-P", "implicitPrefs=true", "-P", "rank=3")
    found = []
    for source in (tmp_path / "in [1]" / "clicks.csv", tmp_path / "ones.csv"):
        answer("fit", source, tmp_path / "m", *more, "-P", "maxIter=2", "--overwrite")
        found.append(StreamingBiasedALSModel.load(str(tmp_path / "m")).state.fingerprint())
    assert found[0] == found[1]
    shown = run("stream", tmp_path / "path", tmp_path / "in [1]", "--once", *more).stdout
    assert "ranked  recall  baseline     MRR" in shown
    assert "RMSE" not in shown
    assert answer("versions", tmp_path / "path")[-1]["ratings"] == len(table)
    told = run("fit", tmp_path / "in [1]" / "clicks.csv", tmp_path / "n", code=1)
    assert "learn each row as an event by -P implicitPrefs=true" in " ".join(told.stderr.split())


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Folder with ratings.csv, cold.csv of films that are not in it, and films.csv."""
    folder = tmp_path_factory.mktemp("films")
    rng = np.random.default_rng(6)
    has = rng.random((90, 3)) < 0.5
    has[:, 0] |= ~has.any(axis=1)
    genres = ["|".join(np.array(["Comedy", "War", "Sci-Fi"])[row]) for row in has]
    about = pd.DataFrame({"movie_id": range(90), "title": [f"The {n}th film" for n in range(90)],
                          "genres": genres, "year": rng.integers(1960, 2020, 90),
                          "studio": rng.integers(1, 4, 90)})  # fmt: skip
    about.to_csv(folder / "films.csv", index=False)
    frame = pd.DataFrame(
        {"userId": rng.integers(0, 40, 5000), "movieId": rng.integers(0, 90, 5000)}
    )
    value = (
        2.5
        + has[frame.movieId] @ [1.0, -0.7, 0.2]
        + (about.year.to_numpy()[frame.movieId] - 1990) / 60
    )
    frame["rating"] = (value + rng.normal(0, 0.3, 5000)).round(1)
    frame[frame.movieId < 70].to_csv(folder / "ratings.csv", index=False)
    frame[frame.movieId >= 70].to_csv(folder / "cold.csv", index=False)
    return folder


@pytest.mark.long
@pytest.mark.filterwarnings("default:Of the features of items 'title' is left out")
def test_features_from_fit_to_stream(spark, films, tmp_path):
    """What is known of new films is learned, judged, recommended by and started from."""
    about = ("--item-features", films / "films.csv")
    told = run("fit", films / "ratings.csv", films / "model", "--held-out", films / "cold.csv",
               "-P", "rank=2", *about, "--category", "studio", "--json")  # fmt: skip
    assert "'title' is left out" in told.stderr
    said = json.loads(told.stdout)
    assert said["coldPredicted"] == said["predicted"] > 900
    assert said["coldRmse"] < 0.7 * said["coldPlainRmse"]
    model = StreamingBiasedALSModel.load(str(films / "model"))
    names = [row.feature for row in model.featureWeights.collect()]
    assert names[:2] == ["year", "genres=Comedy"]
    assert names[-3:] == ["studio=1", "studio=2", "studio=3"]

    seen = answer("diagnose", films / "model", "--held-out", films / "cold.csv", *about)
    assert seen["coldRmse"] == said["coldRmse"]
    judged = answer("evaluate", films / "model", films / "cold.csv", *about)
    assert judged["rmse"] == pytest.approx(said["coldRmse"], rel=1e-3)
    rows = answer("recommend", films / "model", "-u", 1, "-n", 90, *about)
    assert len(rows) == 90

    (tmp_path / "in").mkdir()
    shutil.copy(films / "cold.csv", tmp_path / "in")
    words = (
        "stream",
        tmp_path / "m",
        tmp_path / "in",
        "--start",
        films / "model",
        "--once",
        "--json",
    )
    lines = [json.loads(line) for line in run(*words, *about).stdout.splitlines()]
    assert lines[0]["newItems"] == 20
    assert lines[0]["rmse"] == pytest.approx(said["coldRmse"], rel=1e-3)
    line = {"userId": None, "movieId": 200, "rating": None, "timestamp": 1,
            "itemFeatures": [1999.0] + [0.0] * 6}  # fmt: skip
    (tmp_path / "told").mkdir()
    (tmp_path / "told" / "a.json").write_text(json.dumps(line) + "\n")
    told = run("stream", tmp_path / "t", tmp_path / "told", "--start", films / "model", "--once",
               "--json", *about)  # fmt: skip
    row = json.loads(told.stdout.splitlines()[0])
    assert (row["newItems"], row["invalid"]) == (1, 0)
    shutil.copy(films / "cold.csv", tmp_path / "in" / "again.csv")
    assert len(run(*words).stdout.splitlines()) == 1
    run("stream", tmp_path / "n", tmp_path / "in", "--once", *about)
    begun = StreamingBiasedALSModel.load(str(tmp_path / "n"))
    assert "genres=Comedy" in [row.feature for row in begun.featureWeights.collect()]
    shutil.copy(films / "ratings.csv", tmp_path / "in" / "later.csv")
    assert run("stream", tmp_path / "n", tmp_path / "in", "--once", *about).stdout


@pytest.mark.long
@pytest.mark.filterwarnings("default:Of the features of items 'title' is left out")
def test_features_of_events_are_judged(spark, films, tmp_path):
    """New items among themselves, by `fit` as by `diagnose`."""
    about = ("--held-out", films / "cold.csv", "--item-features", films / "films.csv")
    said = answer("fit", films / "ratings.csv", tmp_path / "m", "-P", "implicitPrefs=true",
                  "-P", "rank=2", "-P", "maxIter=2", *about)  # fmt: skip
    assert said["coldLists"] == 40
    assert 0 < said["coldNdcg"] < 1
    judged = answer("diagnose", tmp_path / "m", *about, code=3)
    names = ("coldPredicted", "coldNdcg", "coldPlainNdcg")
    assert {name: judged[name] for name in names} == {name: said[name] for name in names}
    assert judged["coldPredicted"] == judged["predicted"] > 500
