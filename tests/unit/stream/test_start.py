"""A query whose worker was late is started again, and only that."""

from __future__ import annotations

import pytest
from pyspark.errors import PySparkException

from sparkml_sgdals.stream.start import start_query


class Writer:
    """Fails so many times, as Spark Connect does on a busy machine, which cannot be had at will."""

    def __init__(self, failures: int, message: str) -> None:
        self.failures, self.message = failures, message
        self.starts = 0

    def start(self) -> str:
        self.starts += 1
        if self.starts <= self.failures:
            raise PySparkException(self.message)
        return "query"


@pytest.mark.parametrize("failures", [0, 1, 3])
def test_a_late_worker_is_started_again(failures: int) -> None:
    writer = Writer(failures, "Python worker failed to connect back.\n\nJVM stacktrace: ...")
    assert start_query(writer) == "query"
    assert writer.starts == failures + 1


def test_one_that_is_always_late_is_an_error() -> None:
    writer = Writer(100, "Python worker failed to connect back.")
    with pytest.raises(PySparkException, match="connect back"):
        start_query(writer)
    assert writer.starts == 4


def test_other_errors_are_raised_at_once() -> None:
    writer = Writer(1, "[STREAMING_OUTPUT_MODE.UNSUPPORTED_OPERATION] ...")
    with pytest.raises(PySparkException, match="UNSUPPORTED"):
        start_query(writer)
    assert writer.starts == 1
