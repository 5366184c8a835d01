"""A Kafka cluster for tests: librdkafka's mock cluster, offline, or one that runs elsewhere.

The mock cluster speaks Kafka's protocol over real sockets, so the clients are real. It is no broker: every
topic that is asked for exists and has four partitions, messages of aborted transactions are seen, and the
offsets that a transaction sets are forgotten. `remembers` and `hides` tell what a cluster does of that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from functools import cached_property
from typing import Any

from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from sage.common.ids import new_id

__all__ = ["KafkaCluster", "mock_cluster"]

LIMIT = 20.0


class KafkaCluster:
    """A cluster by its servers, and what tests do with it beside the connectors."""

    def __init__(self, servers: str, *, mock: bool) -> None:
        self.servers, self.mock = servers, mock

    def topic(self) -> str:
        """A new topic of four partitions."""
        name = new_id("topic")
        if self.mock:
            Producer({"bootstrap.servers": self.servers}).list_topics(name, timeout=LIMIT)
        else:
            admin = AdminClient({"bootstrap.servers": self.servers})
            admin.create_topics([NewTopic(name, 4, 1)])[name].result(LIMIT)
        return name

    def put(self, topic: str, bodies: Iterable[bytes | None], partition: int = 0, **more: Any) -> None:
        """Messages at the end of a partition; `more`: see `Producer.produce`."""
        producer = Producer({"bootstrap.servers": self.servers})
        for body in bodies:
            producer.produce(topic, body, partition=partition, **more)
        if producer.flush(LIMIT):
            raise TimeoutError(f"{self.servers} did not take messages for {topic}")

    def messages(self, topic: str) -> list[Message]:
        """What a reader of committed messages finds, by partition."""
        found: dict[int, list[Message]] = {number: [] for number in range(4)}
        with closing(self.reader("reader")) as consumer:
            consumer.assign([TopicPartition(topic, number, 0) for number in found])
            ended: set[int] = set()
            while len(ended) < len(found):
                message = consumer.poll(LIMIT)
                if message is None:
                    raise TimeoutError(f"{self.servers} did not give the messages of {topic}")
                number = message.partition()
                if number is None or message.error() is None:
                    found[number or 0].append(message)
                else:
                    ended.add(number)
        return [message for messages in found.values() for message in messages]

    def reader(self, group: str) -> Consumer:
        """A consumer that tells where a partition ends."""
        return Consumer(
            {
                "bootstrap.servers": self.servers,
                "group.id": group,
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 10,
            }
        )

    @cached_property
    def remembers(self) -> bool:
        """Whether a group has the offset that a committed transaction has set."""
        topic = self.topic()
        with closing(self.reader(new_id("group"))) as consumer:
            producer = self._begun()
            group = consumer.consumer_group_metadata()
            producer.send_offsets_to_transaction([TopicPartition(topic, 0, 7)], group, LIMIT)
            producer.commit_transaction(LIMIT)
            (found,) = consumer.committed([TopicPartition(topic, 0)], timeout=LIMIT)
            return bool(found.offset == 7)

    @cached_property
    def hides(self) -> bool:
        """Whether nobody sees the messages of a transaction that was aborted."""
        topic = self.topic()
        producer = self._begun()
        producer.produce(topic, b"aborted")
        producer.flush(LIMIT)
        producer.abort_transaction(LIMIT)
        return not self.messages(topic)

    def _begun(self) -> Producer:
        producer = Producer({"bootstrap.servers": self.servers, "transactional.id": new_id("test")})
        producer.init_transactions(LIMIT)
        producer.begin_transaction()
        return producer


@contextmanager
def mock_cluster() -> Iterator[KafkaCluster]:
    """One broker of librdkafka's mock cluster, on loopback, in this process; it ends with the block."""
    keeper = Producer({"test.mock.num.brokers": 1, "log_level": "0"})
    (broker,) = keeper.list_topics(timeout=LIMIT).brokers.values()
    yield KafkaCluster(f"{broker.host}:{broker.port}", mock=True)
    keeper.flush(LIMIT)
