"""Ratings posted to the service, sent on to a real broker."""

from __future__ import annotations

import json

import confluent_kafka as confluent
import pytest
from kafka_broker import Broker

from sparkml_sgdals.serving.intake.history import IntakeColumns
from sparkml_sgdals.serving.intake.kafka import KafkaIntake
from sparkml_sgdals.serving.intake.keys import KeyTakenError
from sparkml_sgdals.serving.intake.posts import Posted

pytestmark = pytest.mark.kafka


def messages(broker, topic, count):
    """What is in a topic, once `count` messages are, and nothing more a second later."""
    reader = confluent.Consumer(
        {"bootstrap.servers": broker.address, "group.id": "g", "auto.offset.reset": "earliest"}
    )
    reader.assign([confluent.TopicPartition(topic, 0, 0)])
    found = []
    while len(found) < count:
        (one,) = reader.consume(1, 20) or [None]
        assert one is not None, f"only {len(found)} of {count} messages came"
        found.append(json.loads(one.value()))
    assert not reader.consume(1, 1)
    reader.close()
    return found


def test_each_key_is_sent_once(broker, topic):
    name = topic(broker, [])
    intake = KafkaIntake(broker.address, name, IntakeColumns())
    posts = [Posted(n, n + 1, 3.5, 7) for n in range(100)]
    done = [intake.put([(f"k{n}", [posts[n]])]) for n in range(100)]
    again = [intake.put([(f"k{n}", [posts[n]])]) for n in range(50)]
    many = intake.put([("many", posts[:3])])
    assert not any(one.result(30)[0].repeated for one in done)
    assert all(one.result(30)[0].repeated for one in again)
    assert not many.result(30)[0].repeated
    # one key that is taken, and none of the request is sent
    for taken in ([("k1", [posts[2]])], [("new", [posts[5]]), ("k1", [posts[2]])]):
        with pytest.raises(KeyTakenError):
            intake.put(taken).result(30)
    found = messages(broker, name, 103)
    intake.close()
    assert found[0] == {
        "user": 0, "item": 1, "rating": 3.5, "timestamp": 7, "eventId": "k0#0/1"
    }  # fmt: skip
    assert len({one["eventId"] for one in found}) == 103


def test_what_a_broker_does_not_take_is_not_acknowledged(topic):
    with Broker() as broker:
        name = topic(broker, [])
        intake = KafkaIntake(broker.address, name, IntakeColumns(), seconds=4.0)
        assert not intake.put([("a", [Posted(1, 1, 3.0, 0)])]).result(30)[0].repeated
        broker.kill()
        lost = intake.put([("b", [Posted(2, 2, 3.0, 0)])])
        with pytest.raises(OSError, match="Kafka did not take"):
            lost.result(30)
        broker.start()
        # the same key may be sent again
        assert not intake.put([("b", [Posted(2, 2, 3.0, 0)])]).result(60)[0].repeated
        assert {one["eventId"] for one in messages(broker, name, 2)} == {"a#0/1", "b#0/1"}
        intake.close()


def test_no_broker():
    with pytest.raises(ConnectionError, match="No Kafka at"):
        KafkaIntake("127.0.0.1:1", "t", IntakeColumns(), seconds=2.0)
