"""Files as strangers have them are fitted by the command line, to the model of the plain table."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import strangers
from helpers import long_after
from typer.testing import CliRunner

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel
from sparkml_sgdals.cli.app import app


def run(*words, code=0):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    return done


@pytest.fixture(scope="module")
def plain(spark):
    """Fit the plain table, with users as texts or numbers, with or without times."""

    def fit(texts, timed):
        table = strangers.rows() if texts else strangers.numbered()
        frame = pd.DataFrame(table, columns=list(strangers.NAMES))
        als = StreamingBiasedALS(userCol="userId", itemCol="movieId", rank=4, maxIter=2)
        if timed:
            als.setTimestampCol("timestamp")
        return als.fit(spark.createDataFrame(frame))

    return fit


# each of its kind, one at a time
FIRST = ["books.csv", "ratings.dat", "komma.csv", "events.jsonl", "mac.csv"]
NAMES = [
    *long_after(1, FIRST),
    *long_after(0, (name for name in strangers.FILES if name not in FIRST)),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_fitted_as_the_plain_table(name, plain, tmp_path):
    content, options, texts = strangers.FILES[name]
    (tmp_path / name).write_bytes(content)
    out = tmp_path / "model"
    told = run("fit", tmp_path / name, out, *options, "-P", "rank=4", "-P", "maxIter=2", "--json")
    assert json.loads(told.stdout)["ratings"] == 300
    model = StreamingBiasedALSModel.load(str(out))
    assert model.idTypes == ("string" if texts else "bigint", "bigint")
    expected = plain(texts, name != "books.csv").state
    known = [set(side.users.index.ids().to_pylist()) for side in (model.state, expected)]
    assert known[0] == known[1]
    assert model.state.fingerprint() == expected.fingerprint()
