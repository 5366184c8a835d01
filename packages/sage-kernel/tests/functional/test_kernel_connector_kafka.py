"""Kafka as a source and a sink. "mock" is librdkafka's mock cluster, "real" the one that SAGE_KAFKA names."""

from __future__ import annotations

import json
import logging
from contextlib import aclosing, closing
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from sage.common.errors import (
    BadRequestError,
    ConfigError,
    ConflictError,
    NotFoundError,
    OverloadedError,
    UnreachableError,
    UsageError,
)
from sage.common.ids import new_id
from sage.kernel import Checkpoints, Flow, LocalEnvironment, OperatorError, Pane, Window, use
from sage.kernel.connectors import KafkaMessage, KafkaSink, KafkaSource, kafka_timestamp
from sage.kernel.testing.kafka import KafkaCluster, mock_cluster


def bodies(*values: Any) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


async def read(source: KafkaSource, position: Any = None) -> list[Any]:
    try:
        return [record async for _, records in source.read(position) for record in records]
    finally:
        await source.close()


async def test_all_partitions_are_read_each_in_order_and_a_run_ends_where_it_was_to_end(
    kafka: KafkaCluster,
) -> None:
    topic = kafka.topic()
    for number in range(3):
        kafka.put(topic, bodies(*((number, n) for n in range(100))), number)
    source = KafkaSource(kafka.servers, topic, end="latest")
    async with aclosing(source.read(None)) as pairs:
        position, nothing = await anext(pairs)
        assert nothing == []
        kafka.put(topic, bodies([0, 100]))  # after the run has begun
        found = [record async for _, records in pairs for record in records]
    await source.close()
    for number in range(3):
        assert [record for record in found if record[0] == number] == [[number, n] for n in range(100)]
    assert position == {
        "topic": topic,
        "offsets": {str(n): 0 for n in range(4)},
        "ends": {"0": 100, "1": 100, "2": 100, "3": 0},
    }
    assert sorted(await read(KafkaSource(kafka.servers, topic), position)) == sorted(found)


async def test_start_and_end_by_offset_and_partitions_shared_out(kafka: KafkaCluster) -> None:
    topic = kafka.topic()
    for number in range(4):
        kafka.put(topic, bodies(*range(10 * number, 10 * number + 10)), number)
    chosen = KafkaSource(kafka.servers, topic, start={"1": 8}, end={"1": 10, "3": 1}, partitions=[1, 3])
    assert sorted(await read(chosen)) == [18, 19, 30]
    assert await read(KafkaSource(kafka.servers, topic, start="latest", end="latest")) == []
    # A topic is shared out by several sources, each with some of its partitions.
    flow, found = Flow("shared"), list[int]()
    some = [
        flow.source(use("kafka", servers=kafka.servers, topic=topic, end="latest", partitions=part))
        for part in ([0, 1], [2, 3])
    ]
    some[0].merge(some[1]).sink(found.append)
    await LocalEnvironment().run(flow)
    assert sorted(found) == list(range(40))


async def test_whole_messages_and_their_event_time(kafka: KafkaCluster) -> None:
    topic = kafka.topic()
    for at, value in ((1.5, b"a"), (2.0, None), (12.0, b"c")):
        kafka.put(topic, [value], key=b"k\xff", timestamp=int(at * 1000), headers=[("h", b"1"), ("n", None)])
    flow, found = Flow("whole"), list[KafkaMessage]()
    whole = flow.source(KafkaSource(kafka.servers, topic, "text", end="latest", whole=True))
    whole.sink(found.append)
    panes: list[Pane[str, int]] = []
    timed = whole.event_time(kafka_timestamp())
    timed.keyby(lambda message: message.topic).window(Window(10)).reduce(int, lambda n, _: n + 1).sink(
        panes.append
    )
    await LocalEnvironment().run(flow)
    first = KafkaMessage("a", "k\udcff", 1.5, topic, 0, 0, {"h": "1", "n": ""})
    assert found[0] == first
    assert [(message.value, message.offset) for message in found] == [("a", 0), (None, 1), ("c", 2)]
    assert panes == [Pane(topic, 0, 10, 2), Pane(topic, 10, 20, 1)]


async def test_an_endless_source_gives_what_comes_and_stops_when_it_is_asked(kafka: KafkaCluster) -> None:
    topic = kafka.topic()
    source = KafkaSource(kafka.servers, topic, "bytes", start="latest")
    pairs = source.read(None)
    await anext(pairs)
    for n in range(3):
        kafka.put(topic, [b"%d" % n])
        records: list[bytes] = []
        while not records:  # a pair may tell only that a partition has no more
            position, records = await anext(pairs)
        assert records == [b"%d" % n]
    await pairs.aclose()
    await source.close()
    assert (position["offsets"]["0"], position["ends"]) == (3, None)


async def test_offsets_are_shown_to_a_group_that_is_named(kafka: KafkaCluster) -> None:
    topic, group = kafka.topic(), new_id("group")
    kafka.put(topic, bodies(1, 2, 3))
    flow = Flow("shown")
    flow.source(KafkaSource(kafka.servers, topic, end="latest", options={"group.id": group})).sink(
        lambda _: None
    )
    await LocalEnvironment().run(flow)
    with closing(kafka.reader(group)) as consumer:
        (found,) = consumer.committed([TopicPartition(topic, 0)], timeout=20)
    assert found.offset == 3
    again: list[int] = []
    flow = Flow("shown")
    flow.source(KafkaSource(kafka.servers, topic, end="latest", options={"group.id": group})).sink(
        again.append
    )
    await LocalEnvironment().run(flow)
    assert again == [1, 2, 3]  # a group's offsets are never where a run begins


async def test_a_message_that_cannot_be_read_is_told_with_its_place(kafka: KafkaCluster) -> None:
    topic = kafka.topic()
    kafka.put(topic, [b"1", b"{"], 2)
    with pytest.raises(BadRequestError, match=f"message 1 of partition 2 of {topic} is not json: Expecting"):
        await read(KafkaSource(kafka.servers, topic, end="latest"))


async def test_what_is_not_there(kafka: KafkaCluster) -> None:
    topic = kafka.topic()
    with pytest.raises(NotFoundError, match=f"has no topic '{topic}x'; did you mean '{topic}'"):
        await read(KafkaSource(kafka.servers, f"{topic}x"))
    with pytest.raises(NotFoundError, match=f"has no topic '{topic}x'"):
        await KafkaSink(kafka.servers, f"{topic}x").setup()
    with pytest.raises(NotFoundError, match="has no partition 4; it has 0, 1, 2, 3"):
        await read(KafkaSource(kafka.servers, topic, partitions=[0, 4]))
    with pytest.raises(BadRequestError, match="start has an offset of partition 7, which is not read"):
        await read(KafkaSource(kafka.servers, topic, start={"7": 0}))
    with pytest.raises(BadRequestError, match="end has no offset of partition 1"):
        await read(KafkaSource(kafka.servers, topic, end={"0": 0}))


async def test_a_position_that_does_not_fit(kafka: KafkaCluster) -> None:
    topic = kafka.topic()
    kafka.put(topic, bodies(1, 2))
    position = {"topic": topic, "offsets": {"0": 3}, "ends": None}
    with pytest.raises(ConflictError, match="has messages 0 to 1 in partition 0, and 3 is to be read next"):
        await read(KafkaSource(kafka.servers, topic), position)
    with pytest.raises(ConflictError, match=f"taken of topic 'other', and this is '{topic}'"):
        await read(KafkaSource(kafka.servers, topic), {**position, "topic": "other"})


async def test_nobody_there_is_an_error_within_the_time_limit() -> None:
    said = r"no broker of 127\.0\.0\.1:1 answered within 0\.3 s; at last: .*Connection refused"
    with pytest.raises(UnreachableError, match=said):
        await read(KafkaSource("127.0.0.1:1", "t", timeout=0.3))
    with pytest.raises(UnreachableError, match=said):
        await KafkaSink("127.0.0.1:1", "t", timeout=0.3).setup()


async def test_brokers_that_go_away_are_an_error_within_the_time_limit() -> None:
    with mock_cluster() as cluster:
        topic = cluster.topic()
        source = KafkaSource(cluster.servers, topic, timeout=0.3)
        pairs = source.read(None)
        await anext(pairs)
        sinks = [KafkaSink(cluster.servers, topic, at=at, timeout=0.3) for at in ("write", "commit")]
        for sink in sinks:
            await sink.setup()
            await sink.recover(0, None)
    with pytest.raises(UnreachableError, match=r"no broker of .* answered within 0\.3 s"):
        [pair async for pair in pairs]
    await source.close()
    for sink in sinks:
        await sink.write(1, [1])
        with pytest.raises(UnreachableError, match=r"answered within 0\.3 s"):
            await sink.commit(1)
        await sink.close()


async def test_secrets_are_in_no_message(kafka: KafkaCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"'sasl\.password' needs the environment variable NO_SUCH, which"):
        await read(KafkaSource(kafka.servers, "t", options={"sasl.password": "${NO_SUCH}"}))
    monkeypatch.setenv("KAFKA_SECRET", "hunter2")
    for name in ("security.protocol", "no.such.hunter2"):
        with pytest.raises(BadRequestError, match=r"the options for Kafka: .*…") as caught:
            await KafkaSink(
                kafka.servers, "t", options={"sasl.password": "hunter2", name: "${KAFKA_SECRET}"}
            ).setup()
        assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is None
    with pytest.raises(BadRequestError, match=r"the option 'transactional\.id' is the connector's own"):
        KafkaSink(kafka.servers, "t", options={"transactional.id": "x"})
    for wrong in ({"timeout": 0.0}, {"batch": 0}):
        with pytest.raises(BadRequestError):
            KafkaSource(kafka.servers, "t", **wrong)


async def test_a_flow_writes_with_keys(kafka: KafkaCluster) -> None:
    topic = kafka.topic()
    flow = Flow("keys")
    records = [{"user": user, "n": n} for n in range(20) for user in ("ann", 0, None, b"\xff")]
    plain = [record for record in records if record["user"] != b"\xff"]
    flow.source(plain).sink(use("kafka", servers=kafka.servers, topic=topic, key="user"))
    await LocalEnvironment().run(flow)
    found = kafka.messages(topic)
    for key, user in ((b"ann", "ann"), (b"0", 0)):
        mine = [message for message in found if message.key() == key]
        assert [json.loads(message.value() or b"")["n"] for message in mine] == list(range(20))
        assert len({message.partition() for message in mine}) == 1, user
    assert len(found) == 60
    flow = Flow("keys")
    flow.source([{"n": 1}]).sink(KafkaSink(kafka.servers, topic, key="user"))
    with pytest.raises(BadRequestError, match="no field 'user' for its key; it has n"):
        await LocalEnvironment().run(flow)
    assert len(kafka.messages(topic)) == 60


async def test_bytes_that_are_no_text_outlive_a_checkpoint(kafka: KafkaCluster) -> None:
    topic = kafka.topic()
    sink = KafkaSink(kafka.servers, topic, "bytes")
    await sink.recover(0, None)
    await sink.write(1, [b"\xff\x00", b"\xc3\xa4"])
    prepared = json.loads(json.dumps(await sink.prepare(1)))
    with pytest.raises(BadRequestError, match="a record is str, not bytes"):
        await sink.write(2, ["text"])
    await sink.close()
    other = KafkaSink(kafka.servers, topic, "bytes")
    await other.setup()
    await other.recover(1, prepared)
    await other.close()
    assert sorted(message.value() or b"" for message in kafka.messages(topic)) == [b"\xc3\xa4", b"\xff\x00"]


@pytest.mark.parametrize(("offset", "sent"), [(None, 1), (1, 1), (2, 0), (3, 0)])
async def test_an_epoch_whose_mark_is_there_is_not_sent_again(
    kafka: KafkaCluster, offset: int | None, sent: int
) -> None:
    topic, life = kafka.topic(), new_id("life")
    if offset is not None:
        with closing(Consumer({"bootstrap.servers": kafka.servers, "group.id": life})) as consumer:
            consumer.commit(offsets=[TopicPartition(topic, 0, offset)], asynchronous=False)
    sink = KafkaSink(kafka.servers, topic)
    await sink.setup()
    await sink.recover(2, {"id": new_id("sage"), "life": life, "messages": [[None, "1"]]})
    await sink.close()
    assert len(kafka.messages(topic)) == sent


async def test_a_run_that_was_taken_over_commits_nothing(kafka: KafkaCluster) -> None:
    if kafka.mock:
        pytest.skip("the mock cluster lets two producers have one transactional.id")
    topic = kafka.topic()
    old = KafkaSink(kafka.servers, topic, id=new_id("fixed"))
    await old.setup()
    await old.recover(0, None)
    await old.write(1, [1])
    new = KafkaSink(kafka.servers, topic)
    await new.setup()
    await new.recover(1, await old.prepare(1))
    with pytest.raises(ConflictError, match=r"another run has taken over the transactional\.id 'fixed-"):
        await old.commit(1)
    await old.close()
    await new.close()
    if kafka.hides:
        assert len(kafka.messages(topic)) == 1


async def test_what_is_held_is_bounded_and_what_is_not_set_up(kafka: KafkaCluster) -> None:
    sink = KafkaSink(kafka.servers, kafka.topic(), max_bytes=10)
    await sink.write(1, ["1234"])
    with pytest.raises(OverloadedError, match="are more than 10 bytes"):
        await sink.write(1, ["1234"])
    with pytest.raises(UsageError, match="not set up"):
        await KafkaSink(kafka.servers, "t", at="write").write(1, [1])


async def test_a_message_that_is_too_large(kafka: KafkaCluster) -> None:
    topic = kafka.topic()
    sink = KafkaSink(kafka.servers, topic, options={"message.max.bytes": "2000"})
    await sink.setup()
    await sink.recover(0, None)
    await sink.write(1, ["small", "x" * 4000])
    with pytest.raises(BadRequestError, match=f"topic '{topic}': .*Message size too large"):
        await sink.commit(1)
    await sink.close()


async def test_a_run_goes_on_from_its_checkpoint(kafka: KafkaCluster, tmp_path: Any) -> None:
    topic, out = kafka.topic(), kafka.topic()
    for number in range(4):
        kafka.put(topic, bodies(*({"n": 100 * number + n} for n in range(100))), number)

    def build(broken: bool) -> Flow:
        async def same(record: dict[str, int]) -> dict[str, int]:
            if broken and record["n"] == 350:
                raise ValueError("broken")
            return record

        flow = Flow("resumed")
        records = flow.source(KafkaSource(kafka.servers, topic, end="latest", batch=10), name="in")
        records.map(same, order="input", name="same").sink(KafkaSink(kafka.servers, out), name="out")
        return flow

    environment = LocalEnvironment(checkpoints=Checkpoints(tmp_path, every=0.001))
    with pytest.raises(OperatorError, match="broken"):
        await environment.run(build(True))
    await environment.run(build(False))
    found = [json.loads(message.value() or b"")["n"] for message in kafka.messages(out)]
    assert sorted(set(found)) == list(range(400))
    if kafka.remembers:
        assert len(found) == 400


async def test_offsets_that_cannot_be_shown_are_a_warning(
    kafka: KafkaCluster, caplog: pytest.LogCaptureFixture
) -> None:
    source = KafkaSource(kafka.servers, kafka.topic(), options={"group.id": "g"})
    pairs = source.read(None)
    position, _ = await anext(pairs)
    with caplog.at_level(logging.WARNING, "sage.kafka"):
        await source.committed({**position, "offsets": {"99": -5}})
    await pairs.aclose()
    await source.close()
    assert "were not written" in caplog.text
