"""Every acknowledged rating is learned once, whatever of the whole chain is killed."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi")

from chain import run_chain


def check(figures, kills):
    assert figures.differences == []
    assert sum(figures.kills.values()) == kills
    assert figures.learned == figures.ratings_acknowledged > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_service_and_stream_killed():
    check(run_chain("inbox", 6, seed=1), 6)


@pytest.mark.kafka
@pytest.mark.timeout(1800)
def test_service_stream_and_broker_killed():
    check(run_chain("topic", 3, seed=2), 3)
