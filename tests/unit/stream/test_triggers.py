"""When micro-batches start, in the words that people use."""

from datetime import timedelta

import pytest

from sparkml_sgdals.stream.options import StreamOptions


def options(trigger):
    return StreamOptions(
        trigger=trigger, validation=None, query_name=None, keep_versions=5, keep_days=0.0,
        lease_seconds=60.0, event_id_col=None, watermark="1 hour", on_batch=None,
        prometheus_path="", metrics_table=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {}),
        ("5 seconds", {"processingTime": "5 seconds"}),
        (" availableNow ", {"availableNow": True}),
        ("once", {"once": True}),
        ("available now", {"availableNow": True}),
        ("2 minutes 30 seconds", {"processingTime": "2 minutes 30 seconds"}),
        (timedelta(seconds=1.5), {"processingTime": "1500 milliseconds"}),
        ({"processingTime": "1 minute"}, {"processingTime": "1 minute"}),
    ],
)
def test_words_become_what_spark_takes(given, expected):
    assert options(given).starts() == expected


@pytest.mark.parametrize(
    "given", [5, "", "5s", "sometimes", {}, {"once": True, "availableNow": True}, timedelta(0)]
)
def test_anything_else_is_told_what_to_write(given):
    with pytest.raises(TypeError, match='"5 seconds", "availableNow" or what'):
        options(given)
