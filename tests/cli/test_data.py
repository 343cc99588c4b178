"""MovieLens in its forms, downloads against a server of this machine, and replays."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import threading
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from sparkml_sgdals.cli.app import app
from sparkml_sgdals.datasets import movielens as ml
from sparkml_sgdals.datasets import replay as rp

ROWS = [(1, 31, 2.5, 1260759144), (1, 1029, 3.0, 1260759179), (7, 31, 4.0, 851868750)]
TITLES = [(31, "Dangerous Minds\x85 The Film (1995)", "Drama"), (1029, "Caché (1941)", "Animation")]


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def unpacked(tmp_path):
    """Write the rows as a release of a kind has them; returns the folder."""

    def write(kind):
        folder = tmp_path / kind
        folder.mkdir()
        if kind == "csv":
            frame = pd.DataFrame(ROWS, columns=["userId", "movieId", "rating", "timestamp"])
            frame.to_csv(folder / "ratings.csv", index=False)
            titles = pd.DataFrame(TITLES, columns=["movieId", "title", "genres"])
            titles.to_csv(folder / "movies.csv", index=False)
        elif kind == "dat":
            lines = ["::".join(map(str, row)) for row in ROWS]
            (folder / "ratings.dat").write_text("\n".join(lines) + "\n")
            lines = ["::".join(map(str, row)) for row in TITLES]
            (folder / "movies.dat").write_text("\n".join(lines) + "\n", encoding="latin-1")
        else:
            lines = ["\t".join(map(str, row)) for row in ROWS]
            (folder / "u.data").write_text("\n".join(lines) + "\n")
            (folder / "u.genre").write_text("Drama|0\nAnimation|1\n\n")
            items = [f"{i}|{t}|01-Jan-1995||http://x|{int(g == 'Drama')}|{int(g != 'Drama')}"
                     for i, t, g in TITLES]  # fmt: skip
            (folder / "u.item").write_text("\n".join(items) + "\n", encoding="latin-1")
        return folder

    return write


@pytest.mark.parametrize("kind", ["csv", "dat", "tab"])
def test_each_form_of_movielens_becomes_the_same_parquet(kind, unpacked, tmp_path):
    out = tmp_path / "out"
    done = run("data", "movielens", out, "--from", unpacked(kind), "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["ratings"], facts["users"], facts["items"], facts["movies"]) == (3, 2, 2, 2)
    ratings = pd.read_parquet(out / "ratings.parquet")
    assert [tuple(row) for row in ratings.itertuples(index=False)] == ROWS
    assert list(map(str, ratings.dtypes)) == ["int64", "int64", "float64", "int64"]
    movies = pd.read_parquet(out / "movies.parquet")
    assert [tuple(row) for row in movies.itertuples(index=False)] == TITLES


def test_a_folder_without_ratings_is_named(tmp_path):
    done = run("data", "movielens", tmp_path / "out", "--from", tmp_path)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"Error: {tmp_path} holds no ratings.csv")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture
def site(unpacked, tmp_path):
    """A server of this machine with an archive, its checksum, and one whose checksum is wrong."""
    folder = tmp_path / "site"
    folder.mkdir()
    source = unpacked("csv")
    for name in ("ml-latest-small", "ml-latest"):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for file in source.iterdir():
                archive.write(file, f"{name}/{file.name}")
    digest = hashlib.md5((folder / "ml-latest-small.zip").read_bytes()).hexdigest()
    (folder / "ml-latest-small.zip.md5").write_text(f"MD5 (ml-latest-small.zip) = {digest}\n")
    (folder / "ml-latest.zip.md5").write_text("0" * 32 + "  ml-latest.zip\n")
    (folder / "ml-1m.zip").write_bytes(b"not it")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_download_compares_the_checksum_and_converts(site, tmp_path):
    done = run("data", "movielens", tmp_path / "out", "--site", site, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["ratings"] == 3
    assert pd.read_parquet(tmp_path / "out" / "movies.parquet").shape == (2, 3)


@pytest.mark.parametrize("name", ["ml-latest", "ml-1m"])
def test_a_wrong_checksum_leaves_nothing(name, site, tmp_path):
    out = tmp_path / "out"
    done = run("data", "movielens", out, "--site", site, "--name", name)
    assert done.exit_code == 1
    assert "has the checksum" in done.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [("ml-25m", "could not be fetched"), ("ml-7", "There is no MovieLens 'ml-7'")],
)
def test_what_is_not_there_is_an_error_in_a_sentence(name, words, site, tmp_path):
    done = run("data", "movielens", tmp_path / "out", "--site", site, "--name", name)
    assert done.exit_code == 1
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_download_says_how_far_it_is(site, tmp_path):
    said = []
    ml.download("ml-latest-small", tmp_path, site, lambda done, total: said.append((done, total)))
    assert said[-1][0] == said[-1][1] > 0


def test_replay_to_a_folder_is_in_time_order_and_goes_on(unpacked, tmp_path):
    file, out = unpacked("csv") / "ratings.csv", tmp_path / "in"
    words = ("data", "replay", file, "--to", out, "--batch", "2", "--every", "0", "--json")
    done = run(*words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"sent": 3, "of": 3, "to": str(out)}
    assert run(*words).exit_code == 0
    names = [f"replay-{n:08d}.json" for n in range(4)]
    assert sorted(p.name for p in out.iterdir()) == names
    sent = pd.concat([rp.read_ordered(out / name, "timestamp") for name in names[:2]])
    assert sent.timestamp.tolist() == sorted(row[3] for row in ROWS)


def test_replay_keeps_its_pace():
    waited, sent = [], []

    class Sink:
        def send(self, rows):
            sent.append(len(rows))

    rows = pd.DataFrame({"rating": range(5)})
    assert list(rp.replay(rows, Sink(), 2, 10.0, waited.append)) == [2, 4, 5]
    assert sent == [2, 2, 1]
    # due at 10 and at 20 seconds, and never after the last
    assert [round(one) for one in waited] == [10, 20]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("no.csv", "--to", "in"), 1, "There is no no.csv."),
        (("ratings.csv",), 2, "one of the two"),
        (("ratings.csv", "--to", "in", "--kafka", "h:1"), 2, "one of the two"),
        (("ratings.csv", "--to", "in", "--time", "when"), 1, "has no column 'when'"),
    ],
)
def test_replay_says_what_is_wrong(words, code, said, unpacked, tmp_path, monkeypatch):
    monkeypatch.chdir(unpacked("csv"))
    done = run("data", "replay", *words)
    assert done.exit_code == code
    assert said in " ".join(done.stderr.replace("│", "").split())
    assert not Path("in").exists()


@pytest.mark.parametrize(("batch", "every", "said"), [(0, 1.0, "at least 1"), (1, -1.0, "seconds")])
def test_replay_refuses_batches_of_nothing_and_time_that_runs_back(batch, every, said):
    sent = rp.replay(pd.DataFrame({"rating": [1.0]}), None, batch, every)
    with pytest.raises(ValueError, match=said):
        next(sent)


def test_rows_of_one_time_keep_their_order(tmp_path):
    rows = pd.DataFrame({"place": range(1000), "timestamp": [n % 3 for n in range(1000)]})
    rows.to_csv(tmp_path / "rows.csv", index=False)
    found = rp.read_ordered(tmp_path / "rows.csv", "timestamp")
    assert found.place.to_list() == sorted(range(1000), key=lambda n: n % 3)
