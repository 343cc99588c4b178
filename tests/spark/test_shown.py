"""What a notebook shows of models, summaries, jobs and evaluations, and what they draw."""

from __future__ import annotations

import pytest
from helpers import ONCE

from sparkml_sgdals import StreamingBiasedALS


@pytest.fixture(scope="module")
def als():
    return StreamingBiasedALS(timestampCol="time", rank=3, maxIter=2)


def test_a_model_its_summary_and_its_evaluation(als, ratings, small):
    model = als.fit(ratings)
    shown = model._repr_html_()
    users = small["user"].nunique()
    for part in ("ALSModel", ">4,000<", f">{users}<", ">user, item<", ">0.5 to 5, mean "):
        assert part in shown
    summary = model.summary
    assert f"{summary.rmse[-1]:.4f}" in summary._repr_html_()
    (line,) = summary.plot().axes[0].lines
    assert line.get_ydata().tolist() == summary.rmse
    judged = model.evaluateRanking(ratings.limit(200), 5)
    assert f"{judged.ndcg:.4f} ± " in judged._repr_html_()
    assert "Serve it?" in model.diagnose()._repr_html_()


def test_a_job_of_ratings(als, files, stream, small, tmp_path):
    path = str(tmp_path / "a<b")
    job = als.fitStream(stream(files(small[:600], 200)), path, trigger=ONCE)
    job.awaitTermination()
    assert repr(job) == f"StreamJob({path!r})"
    shown = job._repr_html_()
    for part in ("a&lt;b", ">ended<", ">3<", ">600<", "rmse of the last"):
        assert part in shown
    assert job.plot().axes[0].get_ylabel() == "RMSE (units of the rating)"


def test_a_job_of_events_and_one_without_batches(files, stream, small, tmp_path):
    events = StreamingBiasedALS(implicitPrefs=True, timestampCol="time", rank=3, rankingSize=5)
    job = events.fitStream(stream(files(small[:600], 200)), tmp_path / "m", trigger=ONCE)
    job.awaitTermination()
    assert "recall of the last" in job._repr_html_()
    assert len(job.plot().axes[0].lines) == 2
    (tmp_path / "none").mkdir()
    empty = events.fitStream(stream(str(tmp_path / "none")), tmp_path / "n", trigger=ONCE)
    empty.awaitTermination()
    assert ">0<" in empty._repr_html_()
    with pytest.raises(ValueError, match="has no rows"):
        empty.plot()
