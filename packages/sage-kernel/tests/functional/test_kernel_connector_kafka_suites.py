"""Kafka as a source and a sink passes the suites. For "mock" and "real" see the fixture `kafka`."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sage.kernel.connectors import KafkaSink, KafkaSource
from sage.kernel.testing.connectors import LiveSink, LiveSource, SinkConformance, SourceConformance
from sage.kernel.testing.kafka import KafkaCluster

VALUES: list[Any] = [{"n": 0}, "", None, 0, [], "ä\n", {"n": 6}]


async def dead(made: Any) -> None:
    """The connections of a process end with it."""
    await made.close()


class TestKafkaSource(SourceConformance):
    @pytest.fixture
    def fresh(self, kafka: KafkaCluster) -> Callable[[], Awaitable[LiveSource]]:
        topic = kafka.topic()
        kafka.put(topic, [json.dumps(value).encode() for value in VALUES])
        live = LiveSource(lambda: KafkaSource(kafka.servers, topic, end="latest", batch=2), VALUES, dead)

        async def make() -> LiveSource:
            return live

        return make


class Sinks(SinkConformance):
    """Records with one key, so that one partition has them in order."""

    @pytest.fixture
    def fresh(self, kafka: KafkaCluster) -> Callable[[], Awaitable[LiveSink]]:
        async def make() -> LiveSink:
            topic = kafka.topic()
            records = [{"k": 0, "n": n, "text": text} for n, text in enumerate(["a", "", "ü", "\n", "e"])]

            async def written() -> list[Any]:
                return [json.loads(message.value() or b"") for message in kafka.messages(topic)]

            return LiveSink(
                lambda: self.sink(kafka.servers, topic), records, written, self.exact(kafka), killed=dead
            )

        return make

    def sink(self, servers: str, topic: str) -> KafkaSink:
        raise NotImplementedError

    def exact(self, kafka: KafkaCluster) -> bool:
        raise NotImplementedError


class TestTransactions(Sinks):
    def sink(self, servers: str, topic: str) -> KafkaSink:
        return KafkaSink(servers, topic, key="k")

    def exact(self, kafka: KafkaCluster) -> bool:
        return kafka.remembers


@pytest.mark.slow
class TestAtOnce(Sinks):
    def sink(self, servers: str, topic: str) -> KafkaSink:
        return KafkaSink(servers, topic, key="k", at="write")

    def exact(self, kafka: KafkaCluster) -> bool:
        return False


del Sinks  # it is no suite of its own
