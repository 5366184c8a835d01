"""Records as messages of a Kafka topic, an epoch in a transaction; `brokers` has the clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Literal

from sage.common.errors import BadRequestError, ConflictError, SageError, UnreachableError, UsageError
from sage.common.ids import new_id
from sage.kernel.connectors.brokers import WAIT, Brokers
from sage.kernel.connectors.held import Held, Keyed
from sage.kernel.connectors.plain import Form, as_mapping, as_message, to_json

__all__ = ["KafkaSink"]


class KafkaSink:
    """Sends records to a topic, as JSON or as the text or bytes that they are; a `Transactional` sink.

    An epoch is a transaction that begins and ends at its commit: Kafka's clients cannot go on with one that
    another process left. Until then the epoch is held in memory, `max_bytes` at most, and is part of the
    checkpoint. The transaction also sets the offset of a group of the run's own to the number of the epoch,
    so a run that goes on sees whether it was committed. With `at="write"` records are sent as they come,
    at least once. `key`: the field whose value is the message's key. `id`: the transactional.id, which
    is otherwise a new one for each run. `servers`, `options`, `timeout`: see `Brokers`.
    """

    def __init__(
        self,
        servers: str,
        topic: str,
        format: Form = "json",
        key: str = "",
        at: Literal["commit", "write"] = "commit",
        id: str = "",
        options: dict[str, str] | None = None,
        timeout: float = 10.0,
        *,
        max_bytes: int = 64 << 20,
    ) -> None:
        self._brokers = Brokers(servers, options, timeout)
        self._topic, self._format, self._key, self._at = topic, format, key, at
        self._given = id
        self._id = id or new_id("sage")
        self._life = ""  # the group whose offset is the last epoch of this process
        self._held = Held(max_bytes)
        self._producer: Any = None
        self._groups: dict[str, Any] = {}  # consumers, which are needed to name a group
        self._lost: SageError | None = None  # why a message was not delivered

    async def setup(self) -> None:
        """Connect; raises NotFoundError for an unknown topic, UnreachableError."""
        await asyncio.to_thread(self._connect)

    async def write(self, epoch: int, items: Sequence[Any]) -> None:
        """Hold the messages, or send them; raises OverloadedError where an epoch is more than `max_bytes`."""
        messages = [(self._key_of(item), as_message(item, self._format)) for item in items]
        if self._at == "commit":
            self._held.add(epoch, messages)
        else:
            await asyncio.to_thread(self._send, messages)

    async def prepare(self, epoch: int) -> dict[str, Any]:
        """The messages of this epoch; those that were sent have arrived."""
        if self._at == "write":
            await asyncio.to_thread(self._flush)
        messages = [[_text(key), _text(body)] for key, body in self._held.of(epoch)]
        return {"id": self._id, "life": self._life, "messages": messages}

    async def commit(self, epoch: int) -> None:
        """Send the messages of this epoch, all or none of them."""
        if self._at == "write":
            await asyncio.to_thread(self._flush)
        elif messages := self._held.of(epoch):
            await asyncio.to_thread(self._transact, self._life, epoch, messages)
            self._held.drop(epoch)

    async def recover(self, epoch: int, prepared: Any) -> None:
        """Send what was prepared, unless its transaction was committed."""
        if epoch:
            self._id = self._given or prepared["id"]
        self._life = new_id(f"{self._id}-life")
        if self._at == "commit" and (epoch or self._given):
            # At once: it ends what a process left that had this id, and keeps one that still runs out.
            await asyncio.to_thread(self._transactional)
        if epoch and prepared["messages"]:
            messages = [(_bytes(key), _bytes(body) or b"") for key, body in prepared["messages"]]
            if not await asyncio.to_thread(self._was_committed, prepared["life"], epoch):
                await asyncio.to_thread(self._transact, prepared["life"], epoch, messages)

    async def close(self) -> None:
        """Disconnect; what was not committed is not sent."""
        await asyncio.to_thread(self._close)

    def _connect(self) -> None:
        client = self._brokers.producer()
        self._brokers.partitions(client, self._topic)
        if self._at == "write":
            self._producer = client

    def _close(self) -> None:
        for consumer in self._groups.values():
            consumer.close()
        self._groups.clear()
        if self._producer is not None:
            self._producer.purge()
            self._producer = None

    def _opened(self) -> Any:
        if self._producer is None:
            raise UsageError("the Kafka sink is not set up.")
        return self._producer

    def _send(self, messages: Iterable[Keyed]) -> None:
        producer = self._opened()
        for key, body in messages:
            while True:
                try:
                    producer.produce(self._topic, body, key, on_delivery=self._delivered)
                    break
                except BufferError:  # as much is on its way as the client holds
                    producer.poll(WAIT)
                except self._brokers.failure as error:
                    raise self._brokers.error(error.args[0], doing=f"topic {self._topic!r}") from None
                self._arrived()
        producer.poll(0)
        self._arrived()

    def _delivered(self, error: Any, _message: Any) -> None:
        if error is not None and self._lost is None:
            self._lost = self._brokers.error(error, doing=f"a message for topic {self._topic!r} was lost")

    def _arrived(self) -> None:
        if self._lost is not None:
            raise self._lost

    def _flush(self) -> None:
        # Each message ends within the time limit of its own, delivered or not.
        left = self._opened().flush(self._brokers.timeout + 1)
        self._arrived()
        if left:
            raise UnreachableError(
                f"{left} messages for {self._topic!r} did not arrive within {self._brokers.timeout:g} s."
            )

    def _transactional(self) -> Any:
        if self._producer is None:
            made = self._brokers.producer(**{"transactional.id": self._id})
            self._do(made, made.init_transactions, self._brokers.timeout)
            self._producer = made
        return self._producer

    def _transact(self, life: str, epoch: int, messages: Sequence[Keyed]) -> None:
        producer = self._transactional()
        group = self._group(life).consumer_group_metadata()
        marks = [self._brokers.place(self._topic, 0, epoch)]
        limit = self._brokers.timeout
        self._do(producer, producer.begin_transaction)
        try:
            self._send(messages)
            self._do(producer, producer.send_offsets_to_transaction, marks, group, limit)
            self._do(producer, producer.commit_transaction, limit)
        except BaseException:
            with suppress(self._brokers.failure):  # the first error is the one to tell
                producer.abort_transaction(limit)
            raise

    def _was_committed(self, life: str, epoch: int) -> bool:
        reader = self._group(life)
        try:
            (found,) = reader.committed([self._brokers.place(self._topic, 0)], timeout=self._brokers.timeout)
        except self._brokers.failure as error:
            raise self._brokers.error(error.args[0], reader) from None
        return bool(found.offset >= epoch)

    def _group(self, life: str) -> Any:
        if life not in self._groups:
            self._groups[life] = self._brokers.consumer(life)
        return self._groups[life]

    def _do(self, producer: Any, call: Callable[..., object], *args: Any) -> None:
        """A step of a transaction; raises ConflictError where another process has taken the id over."""
        codes = self._brokers.codes
        try:
            call(*args)
        except self._brokers.failure as error:
            found = error.args[0]
            if found.code() in (codes._FENCED, codes.PRODUCER_FENCED, codes.INVALID_PRODUCER_EPOCH):
                raise ConflictError(
                    f"another run has taken over the transactional.id {self._id!r}.",
                    hint="One run at a time writes with it.",
                ) from None
            self._arrived()
            raise self._brokers.error(found, producer, f"the transaction {self._id!r}") from None

    def _key_of(self, item: Any) -> bytes | None:
        if not self._key:
            return None
        record = as_mapping(item)
        if self._key not in record:
            raise BadRequestError(
                f"a record has no field {self._key!r} for its key; it has {', '.join(map(str, record))}."
            )
        key = record[self._key]
        if key is None or isinstance(key, bytes):
            return key
        return (key if isinstance(key, str) else to_json(key)).encode()


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode(errors="surrogateescape")


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode(errors="surrogateescape")
