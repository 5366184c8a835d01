"""Messages of a Kafka topic as records; `brokers` has the client."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

from sage.common.errors import BadRequestError, ConflictError, NotFoundError, SageError, UsageError
from sage.kernel.connectors.brokers import WAIT, Brokers
from sage.kernel.connectors.plain import Form, of_message

__all__ = ["KafkaMessage", "KafkaSource", "kafka_timestamp"]

log = logging.getLogger("sage.kafka")


@dataclass(frozen=True, slots=True)
class KafkaMessage:
    """A message with all that belongs to it; `timestamp` is in seconds, None where the topic has none."""

    value: Any
    key: str | None
    timestamp: float | None
    topic: str
    partition: int
    offset: int
    headers: dict[str, str]


def kafka_timestamp() -> Callable[[KafkaMessage], float]:
    """The time of a `KafkaMessage`, for `event_time`."""
    return attrgetter("timestamp")


class KafkaSource:
    """The messages of a topic, or of some of its `partitions`.

    The position is the offset of each partition, in the checkpoint; the offsets of a consumer group are
    written after a checkpoint, for monitoring, if `options` name a `group.id`, and are never read.
    `start`: where partitions without a position begin; a dict has offsets by partition. `end`: "latest" is
    what was there when the first run began. `whole`: records are `KafkaMessage`s. `servers`, `options`,
    `timeout`: see `Brokers`.
    """

    def __init__(
        self,
        servers: str,
        topic: str,
        format: Form = "json",
        start: Literal["earliest", "latest"] | dict[str, int] = "earliest",
        end: Literal["never", "latest"] | dict[str, int] = "never",
        partitions: list[int] | None = None,
        whole: bool = False,
        options: dict[str, str] | None = None,
        timeout: float = 10.0,
        *,
        batch: int = 1000,
    ) -> None:
        if batch < 1:
            raise BadRequestError(f"batches of {batch} messages are none; valid is 1 or more.")
        options = dict(options or {})
        self._shown = "group.id" in options
        self._group = options.pop("group.id", "sage")
        self._brokers = Brokers(servers, options, timeout)
        self._topic, self._format, self._whole = topic, format, whole
        self._start, self._end, self._partitions = start, end, partitions
        self._batch = batch
        self._lock = threading.Lock()  # held by the thread that polls
        self._consumer: Any = None
        self._offsets: dict[int, int] = {}  # of the next message, by partition
        self._ends: dict[int, int] | None = None
        self._open: set[int] = set()  # partitions that have not come to their ends

    async def read(self, position: Any | None) -> AsyncGenerator[tuple[dict[str, Any], list[Any]], None]:
        """Records and the offsets behind them.

        Raises NotFoundError for an unknown topic or partition, UnreachableError where no broker answers in
        time, ConflictError where messages behind the position are gone, BadRequestError for one that cannot
        be read.
        """
        await asyncio.to_thread(self._begin, position)
        if position is None:
            # At once: "latest" is to be the same moment for a run that is resumed before the first message.
            position = self._position()
            yield position, []
        while self._open:
            messages = await asyncio.to_thread(self._take)
            records = [record for message in messages for record in self._records(message)]
            if (behind := self._position()) != position:
                position = behind
                yield position, records

    async def committed(self, position: Any) -> None:
        """Write the offsets for those who watch the group."""
        if not self._shown or self._consumer is None:
            return
        offsets = position["offsets"].items()
        places = [self._brokers.place(self._topic, int(number), offset) for number, offset in offsets]
        try:
            await asyncio.to_thread(self._consumer.commit, offsets=places, asynchronous=False)
        except self._brokers.failure as error:
            # They are for monitoring: no reason to end a run.
            why = self._brokers.error(error.args[0])
            log.warning("the offsets of topic %s were not written: %s", self._topic, why)

    async def close(self) -> None:
        """Disconnect, once the thread that polls is done."""
        if self._consumer is not None:
            await asyncio.to_thread(self._close)

    def _close(self) -> None:
        with self._lock:
            self._consumer.close()
            self._consumer = None

    def _begin(self, position: Any | None) -> None:
        properties = {"auto.offset.reset": "error", "enable.partition.eof": True}
        self._consumer = self._brokers.consumer(self._group, **properties)
        if position and position["topic"] != self._topic:
            raise ConflictError(
                f"the checkpoint was taken of topic {position['topic']!r}, and this is {self._topic!r}.",
                hint="Read that one, or begin anew.",
            )
        there = self._brokers.partitions(self._consumer, self._topic)
        for number in self._partitions or ():
            if number not in there:
                raise NotFoundError(
                    f"topic {self._topic!r} has no partition {number}; it has {', '.join(map(str, there))}."
                )
        chosen = there if self._partitions is None else self._partitions
        bounds = {number: self._bounds(number) for number in chosen}
        if position:
            known = {int(number): offset for number, offset in position["offsets"].items()}
            ends = position["ends"]
            self._ends = None if ends is None else {int(number): end for number, end in ends.items()}
            if self._ends is not None:  # partitions that came later are behind the end
                bounds = {number: found for number, found in bounds.items() if number in self._ends}
        else:
            known, self._ends = self._first(bounds)
        # A partition that is new since the checkpoint is read from its beginning.
        self._offsets = {number: known.get(number, low) for number, (low, _) in bounds.items()}
        for number, (low, high) in bounds.items():
            self._check(number, self._offsets[number], low, high)
        self._open = {number for number in self._offsets if not self._done(number)}
        self._consumer.assign(
            [self._brokers.place(self._topic, number, self._offsets[number]) for number in sorted(self._open)]
        )

    def _bounds(self, number: int) -> tuple[int, int]:
        place = self._brokers.place(self._topic, number)
        try:
            found = self._consumer.get_watermark_offsets(place, timeout=self._brokers.timeout)
        except self._brokers.failure as error:
            raise self._brokers.error(error.args[0], self._consumer) from None
        low, high = found
        return low, high

    def _first(self, bounds: dict[int, tuple[int, int]]) -> tuple[dict[int, int], dict[int, int] | None]:
        """Where a first run begins and ends."""
        given = {"start": self._start, "end": self._end}
        for name, value in given.items():
            strange = [key for key in value if int(key) not in bounds] if isinstance(value, dict) else []
            if strange:
                raise BadRequestError(f"{name} has an offset of partition {strange[0]}, which is not read.")
        start: dict[int, int] = {}
        if self._start == "latest":
            start = {number: high for number, (_, high) in bounds.items()}
        elif isinstance(self._start, dict):
            start = {int(number): offset for number, offset in self._start.items()}
        if self._end == "never":
            return start, None
        if self._end == "latest":
            return start, {number: high for number, (_, high) in bounds.items()}
        ends = {int(number): offset for number, offset in self._end.items()}
        missing = sorted(bounds.keys() - ends.keys())
        if missing:
            raise BadRequestError(
                f"end has no offset of partition {missing[0]}.", hint="Name all of them, or `partitions`."
            )
        return start, ends

    def _check(self, number: int, offset: int, low: int, high: int) -> None:
        if not low <= offset <= high:
            raise ConflictError(
                f"topic {self._topic!r} has messages {low} to {high - 1} in partition {number}, "
                f"and {offset} is to be read next.",
                hint="What was not read is gone, or the topic was made anew: begin anew.",
            )

    def _take(self) -> list[Any]:
        """What is there, after a short while at most."""
        with self._lock:
            if self._consumer is None:
                raise UsageError("the source is closed.")
            first = self._consumer.poll(WAIT)
            if first is None:
                if self._brokers.unreachable:
                    self._brokers.partitions(self._consumer, self._topic)  # raises where nobody answers still
                return []
            more = self._consumer.consume(self._batch - 1, 0) if self._batch > 1 else []
            return [first, *more]

    def _records(self, message: Any) -> Iterable[Any]:
        """The record of a message; none of what only tells that there is no more now."""
        number, offset = message.partition(), message.offset()
        error = message.error()
        if error is not None and error.code() != self._brokers.codes._PARTITION_EOF:
            raise self._broken(error, number)
        if number not in self._open:
            return
        if self._ends is not None and offset >= self._ends[number]:
            self._offsets[number] = self._ends[number]
        elif error is not None:
            self._offsets[number] = offset  # behind the marks of transactions, which are no messages
        else:
            self._offsets[number] = offset + 1
            yield self._record(message)
        if self._done(number):
            self._open.discard(number)
            self._consumer.pause([self._brokers.place(self._topic, number)])

    def _record(self, message: Any) -> Any:
        number, offset, value = message.partition(), message.offset(), message.value()
        if value is not None:
            where = ("message", offset, "of partition", number, "of", self._topic)
            value = of_message(value, self._format, *where)
        if not self._whole:
            return value
        kind, at = message.timestamp()
        key = message.key()
        return KafkaMessage(
            value,
            None if key is None else key.decode(errors="surrogateescape"),
            at / 1000 if kind else None,
            self._topic,
            number,
            offset,
            {name: (text or b"").decode(errors="surrogateescape") for name, text in message.headers() or ()},
        )

    def _broken(self, error: Any, number: int) -> SageError:
        codes = self._brokers.codes
        if error.code() in (codes._AUTO_OFFSET_RESET, codes.OFFSET_OUT_OF_RANGE):
            return ConflictError(
                f"topic {self._topic!r} has message {self._offsets[number]} of partition {number} no more.",
                hint="It was removed before it was read: let the topic keep messages longer, and begin anew.",
            )
        return self._brokers.error(error, doing=f"partition {number} of topic {self._topic!r}")

    def _done(self, number: int) -> bool:
        return self._ends is not None and self._offsets[number] >= self._ends[number]

    def _position(self) -> dict[str, Any]:
        ends = None if self._ends is None else {str(number): end for number, end in self._ends.items()}
        offsets = {str(number): offset for number, offset in self._offsets.items()}
        return {"topic": self._topic, "offsets": offsets, "ends": ends}
