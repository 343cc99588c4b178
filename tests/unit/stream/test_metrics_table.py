"""The table of metrics, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from batch_rows import FIRST, SECOND, THIRD

from sparkml_sgdals.stream.metrics_table import METRICS, MetricsFrame, metrics_frame
from sparkml_sgdals.stream.report import prometheus_text


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


@pytest.mark.parametrize("events", [False, True])
def test_few_columns_are_shown_and_all_are_there(events):
    judged = {"rmse": None, "ranked": 9, "recall": 0.25} if events else {"rmse": 0.75, "ranked": 0}
    row = {"batch": 0, "version": 1, "ratings": 9, "seconds": 1.0} | judged
    plain = metrics_frame([row, row | {"batch": 1}])
    shown = MetricsFrame(plain)
    assert list(shown.columns) == list(METRICS)
    assert shown.rmse.equals(plain.rmse)
    first = shown.read_first
    assert len(first.columns) == 10 + events
    assert not events or list(first.ranked) == [9, 9]
    assert ("recall" in first.columns, "rmse" in first.columns) == (events, not events)
    for said in (repr(shown), shown._repr_html_(), repr(shown.tail(1))):
        assert ("0.25" if events else "0.75") in said
        assert "fadingRmse" not in said
        assert f"{len(METRICS) - 10 - events} more columns: metrics(all=True)" in said
    # what somebody chose is shown as pandas shows it
    chosen = shown[["batch", "fadingRmse"]]
    assert repr(chosen) == repr(plain[["batch", "fadingRmse"]])
    assert chosen._repr_html_() == plain[["batch", "fadingRmse"]]._repr_html_()
    assert MetricsFrame(metrics_frame([])).read_first.empty
