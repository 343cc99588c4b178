"""A real broker for the tests marked `kafka`, and the connectors in the session of the run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kafka_broker import CONNECTORS, Broker
from registry import connectors, submit_with


def pytest_collection_finish(session: pytest.Session) -> None:
    """Jars have to be there when the JVM starts, which is at the first test that asks for it."""
    if any(item.get_closest_marker("kafka") for item in session.items):
        submit_with(connectors(*CONNECTORS))


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """One broker for all tests that leave it alive."""
    with Broker() as running:
        yield running


_numbers = itertools.count()


@pytest.fixture
def topic() -> Callable[..., str]:
    """Make a topic and send messages to it, in order; more messages go to it by name."""
    confluent = pytest.importorskip("confluent_kafka")
    admin = pytest.importorskip("confluent_kafka.admin")

    def send(
        broker: Broker, messages: list[bytes | None], name: str | None = None, partitions: int = 1
    ) -> str:
        settings = {"bootstrap.servers": broker.address}
        if name is None:
            name = f"ratings-{next(_numbers)}"
            new = admin.NewTopic(name, num_partitions=partitions, replication_factor=1)
            client = admin.AdminClient(settings)
            client.create_topics([new])[name].result(30)
        # idempotent: what it sends again is there once, and in order
        producer = confluent.Producer(settings | {"enable.idempotence": True, "linger.ms": 5})
        for number, message in enumerate(messages):
            producer.produce(name, message, partition=number % partitions)
        assert producer.flush(30) == 0
        return name

    return send


@pytest.fixture
def kafka(spark: Any) -> Callable[..., Any]:
    """Read a topic as a stream, 500 messages a micro-batch."""

    def read(broker: Broker, name: str, **options: Any) -> Any:
        reader = spark.readStream.format("kafka")
        reader = reader.option("kafka.bootstrap.servers", broker.address)
        reader = reader.option("startingOffsets", "earliest").option("subscribe", name)
        return reader.options(**{"maxOffsetsPerTrigger": 500, **options}).load()

    return read
