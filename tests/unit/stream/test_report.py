"""Who is told of a batch: the callback, the file for Prometheus, the table of rows."""

from __future__ import annotations

import logging

import numpy as np
from batch_rows import SECOND

from sparkml_sgdals.store.objects import ObjectStore
from sparkml_sgdals.stream.report import Report, prometheus_text


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
