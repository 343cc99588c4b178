"""Every acknowledged rating is learned once, whatever of the whole chain is killed."""

from __future__ import annotations

import json
import time

import pytest

pytest.importorskip("fastapi")

from chain import SEEDS, SIZE, Chain, ChainFigures, run_chain
from sources import made_ratings

from sparkml_sgdals.store.version_store import VersionStore


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


@pytest.mark.kafka
@pytest.mark.timeout(600)
def test_a_batch_of_the_topic_is_a_fixed_number_of_offsets_after_a_kill_too(tmp_path):
    """What the comparison with an undisturbed stream rests on."""
    from confluent_kafka import Producer

    chain = Chain(tmp_path, "topic", ChainFigures("topic"))
    later = made_ratings(SEEDS + SIZE).iloc[SEEDS:].assign(time=int(time.time()))
    rows = [row | {"eventId": f"later-{n}"} for n, row in enumerate(later.to_dict("records"))]

    def sizes():
        return [row["ratings"] for row in VersionStore(str(chain.path)).metrics()]

    def post(some):
        producer = Producer({"bootstrap.servers": chain.broker.address})
        for row in some:
            producer.produce(chain.spec["topic"], json.dumps(row).encode())
        assert producer.flush(30) == 0

    try:
        chain.start_stream()
        chain.wait("the first ratings", lambda: len(sizes()) == SEEDS // SIZE)
        chain.stream.kill()
        post(rows[:5])
        chain.start_stream()
        started = time.monotonic()
        # it says nothing where no batch is to be learned again
        chain.wait("it", lambda: chain.stream.lines() or time.monotonic() > started + 60)
        time.sleep(5)
        post(rows[5:])
        chain.wait("the last ratings", lambda: sum(sizes()) == SEEDS + SIZE, 120)
    finally:
        chain.close()
    assert sizes() == [SIZE] * (SEEDS // SIZE + 1)
