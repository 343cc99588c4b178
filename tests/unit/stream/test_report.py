"""The table of metrics and the file for Prometheus, by hand."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from sparkml_sgdals.store.objects import ObjectStore
from sparkml_sgdals.stream.metrics_table import METRICS, metrics_frame
from sparkml_sgdals.stream.report import Report, prometheus_text

FIRST = {
    "batch": 0, "version": 1, "committed": "2026-01-01T00:00:00.000+00:00", "ratings": 10,
    "invalid": 1, "zeroWeight": 0, "newUsers": 4, "newItems": 5, "users": 4, "items": 5,
    "judged": 0, "rmse": None, "baselineRmse": None, "mae": None, "baselineMae": None,
    "logLikelihood": None, "within1": None, "within2": None, "validationRmse": None,
    "collectSeconds": 0.1, "learnSeconds": 0.1, "seconds": 0.5,
}  # fmt: skip
SECOND = FIRST | {
    "batch": 1, "version": 2, "ratings": 10, "newUsers": 1, "users": 2, "judged": 10,
    "rmse": 2.0, "baselineRmse": 3.0, "mae": 1.0, "baselineMae": 2.0, "logLikelihood": -1.5,
    "within1": 0.5, "within2": 0.9,
}  # fmt: skip
THIRD = SECOND | {"batch": 2, "version": 3, "ratings": 30, "judged": 30, "rmse": 1.0, "mae": 0.5}


class TestMetricsFrame:
    def test_by_hand(self):
        frame = metrics_frame([FIRST, SECOND, THIRD], window=40, fading=1.0)
        assert tuple(frame.columns) == METRICS
        assert np.isnan(frame.windowRmse[0])
        mean_square = (10 * 4.0 + 30 * 1.0) / 40
        assert frame.windowRmse.tolist()[1:] == pytest.approx([2.0, mean_square**0.5])
        assert frame.fadingRmse.tolist()[1:] == pytest.approx([2.0, mean_square**0.5])
        assert frame.windowMae[2] == pytest.approx((10 * 1.0 + 30 * 0.5) / 40)
        assert frame.windowBaselineRmse[2] == pytest.approx(3.0)
        assert frame.fadingBaselineMae[2] == pytest.approx(2.0)
        assert frame.newUserShare.tolist() == [1.0, 0.5, 0.5]
        assert frame.ratingsPerSecond.tolist() == [20.0, 20.0, 60.0]

    def test_a_window_forgets_and_fading_fades(self):
        frame = metrics_frame([FIRST, SECOND, THIRD], window=30, fading=0.5)
        assert frame.windowRmse[2] == pytest.approx(1.0)
        assert frame.fadingRmse[2] == pytest.approx(1.0, abs=1e-6)

    def test_ranks_over_batches_by_hand(self):
        nothing = dict.fromkeys(("recall", "mrr", "baselineRecall", "baselineMrr"))
        events = FIRST | {"ranked": 0} | nothing
        second = {"ranked": 20, "recall": 0.5, "mrr": 0.2, "baselineRecall": 0.1, "baselineMrr": 0}
        third = {"ranked": 60, "recall": 0.1, "mrr": 0.1, "baselineRecall": 0.1, "baselineMrr": 0}
        rows = [events, events | second, events | third]
        frame = metrics_frame(rows, window=80, fading=1.0)
        assert np.isnan(frame.windowRecall[0])
        assert frame.windowRecall[2] == pytest.approx((20 * 0.5 + 60 * 0.1) / 80)
        assert frame.fadingMrr[2] == pytest.approx((20 * 0.2 + 60 * 0.1) / 80)
        assert frame.windowBaselineRecall[2] == pytest.approx(0.1)
        assert frame.windowRmse.isna().all()
        faded = metrics_frame(rows, fading=0.5)
        assert faded.fadingRecall[2] == pytest.approx(0.1, abs=1e-6)
        lines = prometheus_text(rows[2], 20).splitlines()
        assert "sgdals_recall 0.1" in lines
        assert "sgdals_ranked 60" in lines
        assert not any("sgdals_rmse" in line for line in lines)

    def test_rows_of_an_older_release(self):
        old = {k: v for k, v in SECOND.items() if k not in ("judged", "mae", "users", "within1")}
        frame = metrics_frame([old, THIRD], window=40, fading=1.0)
        assert frame.windowRmse[1] == pytest.approx(((10 * 4.0 + 30 * 1.0) / 40) ** 0.5)
        # of the first batch no absolute error is known: it does not count as 0
        assert frame.windowMae[1] == pytest.approx(0.5)
        assert np.isnan(frame.newUserShare[0])

    def test_no_batches(self):
        assert len(metrics_frame([])) == 0

    @pytest.mark.parametrize("bad", [{"window": 0}, {"fading": 0.0}, {"fading": 1.1}])
    def test_ranges(self, bad):
        with pytest.raises(ValueError, match=next(iter(bad))):
            metrics_frame([FIRST], **bad)


class TestPrometheus:
    def test_text(self):
        lines = prometheus_text(SECOND, 20).splitlines()
        assert "sgdals_ratings_learned_total 20" in lines
        assert "# TYPE sgdals_ratings_learned_total counter" in lines
        assert "sgdals_rmse 2.0" in lines
        assert "sgdals_baseline_rmse 3.0" in lines
        assert not any("validation" in line for line in lines)
        values = [line.split() for line in lines if not line.startswith("#")]
        assert all(len(pair) == 2 and np.isfinite(float(pair[1])) for pair in values)


class TestReport:
    def test_file_and_call(self, tmp_path):
        heard = []
        report = Report(heard.append, str(tmp_path))
        report.after_commit(SECOND, 20)
        assert heard == [SECOND]
        assert (tmp_path / "metrics.prom").read_text() == prometheus_text(SECOND, 20)

    def test_a_failing_callback_is_logged(self, caplog):
        def fail(metrics):
            raise RuntimeError("no phone line")

        with caplog.at_level(logging.ERROR):
            Report(fail).after_commit(SECOND, 20)
        assert "batch 1" in caplog.text

    def test_rows_of_the_table_replace_each_other(self, tmp_path):
        store, report = ObjectStore(str(tmp_path)), Report(table=True)
        report.before_commit(store, SECOND)
        report.before_commit(store, SECOND)
        assert store.names("metrics") == ["000000000002.parquet"]
        row = store.read_table("metrics/000000000002.parquet").to_pylist()[0]
        assert row["rmse"] == 2.0
        assert row["newUserShare"] == 0.5
        assert row["validationRmse"] is None
