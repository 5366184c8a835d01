"""Calls that no task awaits: the native steps do what the methods do whose form they are, and leave the rest.

Two control planes take the same requests and their engines' answers, one with native steps and one without;
whatever they hold and have written is compared after each event.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, cast

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from msgspec import structs

from sage.common.config import ControlPlaneConfig
from sage.common.errors import SageError, UnavailableError
from sage.middleware import _native
from sage.middleware.control_plane.classify import Parsed
from sage.middleware.control_plane.driver import ControlPlane
from sage.middleware.control_plane.tickets import Ticket
from sage.middleware.engines.adapter import HttpEngine
from sage.middleware.engines.connection import Connection
from sage.middleware.engines.http import HttpPool
from sage.middleware.engines.passthrough import PassThroughDialect
from sage.middleware.engines.port import Capability, EngineSpec
from sage.middleware.engines.untasked import Steps
from sage.middleware.testing.bench import Bench, chat, embedding
from sage.middleware.testing.memory import Behaviour, MemorySink
from sage.middleware.testing.virtual import LoopClock, virtual

NATIVE = Steps(_native.begin_call, _native.settle_call, _native.start_call, _native.take_answer)
BODY = b'{"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}}'
VECTOR = b'{"data": [{"index": 0, "embedding": [0.5, -1e-3]}], "usage": {"prompt_tokens": 7}}'
TWO = VECTOR.replace(b"}],", b'}, {"index": 1, "embedding": [1, 2]}],')
USUAL = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
ANSWERS = {
    "usual": USUAL % len(BODY) + BODY,
    "without usage": USUAL % 15 + b'{"choices": []}',
    "other head": b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY,
    "last": b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY,
    "no JSON": USUAL % 3 + b"{,}",
    "its fault": b"HTTP/1.1 500 No\r\ncontent-length: 2\r\n\r\n{}",
    "ours": b"HTTP/1.1 400 No\r\ncontent-length: 2\r\n\r\n{}",
    "too much": USUAL % len(BODY) + BODY + b"HTTP/1.1 200 OK\r\n\r\n",
    "not HTTP": b"hello\r\n\r\n",
    "vector": USUAL % len(VECTOR) + VECTOR,
    "two vectors": USUAL % len(TWO) + TWO,
    "other index": USUAL % len(VECTOR) + VECTOR.replace(b'"index": 0', b'"index": 1'),
    "no numbers": USUAL % len(VECTOR) + VECTOR.replace(b"-1e-3", b"-1e--"),
    "no tokens": USUAL % len(VECTOR) + VECTOR.replace(b"7", b"0"),
}


class Wire(asyncio.Transport):
    """One side of a connection to the engine: keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True


class Live:
    """A control plane, its engine, and the requests begun there. `taken`: steps that were native."""

    def __init__(self, steps: Steps, wires: int) -> None:
        self.plane = ControlPlane(ControlPlaneConfig(policy="hybrid"), LoopClock())
        self.taken: Counter[str] = Counter()
        self.pool = HttpPool("http://127.0.0.1:9")
        for spec in (
            EngineSpec("e0", "openai", "memory", frozenset((Capability.CHAT,)), 3),
            EngineSpec("v0", "openai", "memory", frozenset((Capability.EMBEDDINGS,)), 4),
        ):
            self.plane.add_engine(HttpEngine(spec, PassThroughDialect(), self.pool))
        self.plane._begin = self._counted("begin", steps.begin_call)
        settle = self._counted("settle", steps.settle_call)
        self.plane._upstreams._settle = lambda *call: bool(settle(self.plane, *call))
        self.pool._start = self._counted("start", steps.start_call)
        self.connections: list[Connection] = []
        for _ in range(wires):
            connection = Connection(self.pool)
            connection.connection_made(Wire())
            connection._take = self._counted("take", steps.take_answer)
            connection.idle_since = float("inf")  # never too old
            self.connections.append(connection)
            self.pool._open.add(connection)
            self.pool._idle.append(connection)
        self.sinks: dict[str, MemorySink] = {}
        self.tickets: dict[str, Ticket] = {}
        self.ends: dict[str, str] = {}

    def _counted(self, name: str, step: Any) -> Any:
        def counted(*call: Any) -> Any:
            told = step(*call)
            self.taken[name] += bool(told)
            return told

        return counted

    def ask(self, parsed: Parsed) -> None:
        """Begin a request."""
        ident = parsed.job.id
        sink = self.sinks[ident] = MemorySink()

        def over(error: BaseException | None) -> None:
            assert ident not in self.ends
            self.ends[ident] = "done" if error is None else f"{type(error).__name__}: {error}"

        try:
            self.tickets[ident] = self.plane.begin(parsed.job, parsed.call, sink, over)
        except SageError as error:
            over(error)

    @property
    def busy(self) -> list[Connection]:
        """Connections on which an answer is awaited."""
        return [one for one in self.connections if one.busy and one.usable]

    def state(self) -> dict[str, Any]:
        """All that a caller, an engine or a scraper could see of it."""
        core, wires = self.plane.core, [cast(Any, one)._transport for one in self.connections]
        return {
            "ends": self.ends,
            "sinks": {name: (one.status, one.body, one.ended) for name, one in self.sinks.items()},
            "written": [None if wire is None else (wire.written, wire.closed) for wire in wires],
            "busy": [one.busy for one in self.connections],
            "idle": [self.connections.index(one) for one in self.pool._idle],
            "records": [structs.asdict(one) for one in core.records(100)],
            "tickets": list(self.plane._tickets),
            "running": list(self.plane._upstreams._running),
            "texts": {key: list(texts) for key, texts in self.plane._upstreams._texts._keys.items()},
            "waiting": core.waiting,
            "loads": [(one.running, one.served, one.failed, one.prefill_tokens) for one in core.engines],
            "tokens": core.books.tokens,
            "observed": len(core.books.overhead._fresh),
            "timer": self.plane._timer_due,
            "pulse": self.plane._pulse is not None,
        }


class Both:
    """The two of them."""

    def __init__(self, wires: int) -> None:
        self.native, self.plain = Live(NATIVE, wires), Live(Steps(), wires)
        self._asked = 0

    async def do(self, what: str, detail: Any) -> None:
        """One event for both; then they are the same."""
        for live in (self.native, self.plain):
            self._one(live, what, detail)
        self._asked += what in ("ask", "embed")
        assert self.native.state() == self.plain.state()
        await asyncio.sleep(0.01)  # in virtual time: tasks run, timers go off
        assert self.native.state() == self.plain.state()

    def _one(self, live: Live, what: str, detail: Any) -> None:
        busy = live.busy
        ident = f"r{self._asked}"
        if what == "ask":
            live.ask(chat(ident, stream=False, **({} if detail is None else {"max_tokens": detail})))
        elif what == "embed":
            live.ask(embedding(ident, *detail[1:], key=detail[0]))
        elif what == "cancel" and self._asked:
            ident = f"r{detail % self._asked}"
            if ident in live.tickets:
                live.plane.cancel(live.tickets[ident])
        elif what == "lose" and busy:
            connection = busy[detail % len(busy)]
            connection.connection_lost(None)
        elif what == "cut" and busy:
            usual = ANSWERS["usual"]
            place = detail % len(usual)
            for part in (usual[:place], usual[place:]):
                busy[0].data_received(part)
        elif what == "answer" and busy:
            busy[0].data_received(ANSWERS[detail])
        elif what == "silence":
            live.pool.seen = None

    async def close(self) -> None:
        """Let both end; nothing may be left."""
        await asyncio.gather(*(live.plane.close(0.5) for live in (self.native, self.plain)))
        for live in (self.native, self.plain):
            assert live.plane.core.live == 0
            assert not live.plane._tickets
            assert len(live.plane._upstreams) == 0
            assert set(live.ends) == set(live.sinks)
        assert self.native.state() == self.plain.state()


EMBEDS = ("ka", "kb", "kc", "ka", ("", "d"), ("k", "a", "b"), ("k", 'q\\"\n\u00e9'))
EVENTS = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from((None, None, 7, 10**9))),
    st.tuples(st.just("embed"), st.sampled_from(EMBEDS)),
    st.tuples(st.just("embed"), st.sampled_from(EMBEDS)),
    st.tuples(st.just("answer"), st.sampled_from(("usual", "vector"))),
    st.tuples(st.just("answer"), st.just("vector")),
    st.tuples(st.just("answer"), st.sampled_from(sorted(ANSWERS))),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
    st.tuples(st.just("lose"), st.integers(0, 3)),
    st.tuples(st.just("cut"), st.integers(1, 200)),
    st.tuples(st.just("silence"), st.none()),
)


@given(st.lists(EVENTS, max_size=24))
@settings(max_examples=150, deadline=None)
def test_with_or_without_native_steps_all_is_the_same(events: list[tuple[str, Any]]) -> None:
    @virtual
    async def compared() -> None:
        both = Both(wires=8)
        for _ in range(2):  # after these the head of an answer is known
            await both.do("ask", None)
            await both.do("answer", "usual")
            await both.do("embed", "kz")
            await both.do("answer", "vector")
        for what, detail in events:
            await both.do(what, detail)
        await both.close()

    compared()


@virtual
async def test_a_plain_chat_takes_each_native_step() -> None:
    both = Both(wires=1)
    for _ in range(5):
        await both.do("ask", None)
        await both.do("answer", "usual")
    assert both.native.ends == dict.fromkeys(["r0", "r1", "r2", "r3", "r4"], "done")
    assert both.plain.taken == Counter()
    # the first is unlike others: neither its lane nor a head of its engine is known
    assert min(both.native.taken[step] for step in ("begin", "start", "take", "settle")) >= 3
    await both.close()


@virtual
async def test_a_plain_text_takes_each_native_step() -> None:
    both = Both(wires=1)
    for number in range(5):
        await both.do("embed", ("k", f"text {number}"))
        await both.do("answer", "vector")
    assert both.native.ends == dict.fromkeys(["r0", "r1", "r2", "r3", "r4"], "done")
    assert both.native.sinks["r4"].body == VECTOR
    assert min(both.native.taken[step] for step in ("begin", "start", "take", "settle")) >= 3
    await both.close()


@virtual
async def test_a_text_that_is_computed_already_waits_for_that() -> None:
    both = Both(wires=2)
    for text in ("ka", "kb"):
        await both.do("embed", text)
        await both.do("answer", "vector")
    for _ in range(2):
        await both.do("embed", "kc")
    assert len(both.native.busy) == 1
    settled = both.native.taken["settle"]
    await both.do("answer", "vector")
    assert both.native.ends == dict.fromkeys(["r0", "r1", "r2", "r3"], "done")
    assert both.native.taken["settle"] == settled  # somebody waits for it: that is not plain
    await both.close()


@virtual
async def test_without_an_idle_connection_a_task_opens_one_and_the_text_is_nobody_s() -> None:
    both = Both(wires=1)
    for _ in range(2):
        await both.do("embed", "ka")
        await both.do("answer", "vector")
    await both.do("ask", None)
    await both.do("embed", "kb")
    for live in (both.native, both.plain):
        while "r3" not in live.ends:  # noqa: ASYNC110 - nothing listens there
            await asyncio.sleep(0.01)
        assert live.ends["r3"].startswith("UnreachableError")
        assert live.plane._upstreams._texts._keys == {}
    await both.do("answer", "usual")
    await both.close()


@pytest.mark.parametrize("answer", sorted(ANSWERS))
@pytest.mark.parametrize("asked", [("ask", None), ("embed", "ka")], ids=["chat", "text"])
@virtual
async def test_each_answer_ends_both_alike(asked: tuple[str, Any], answer: str) -> None:
    both = Both(wires=4)
    await both.do(*asked)
    await both.do("answer", "usual" if asked[0] == "ask" else "vector")
    await both.do(*asked)
    for _ in range(3):
        await both.do("answer", answer)
    await both.close()


@virtual
async def test_a_client_whose_socket_fails_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    both = Both(wires=2)
    for _ in range(3):
        await both.do("ask", None)
        await both.do("answer", "usual")
    await both.do("ask", None)
    for live in (both.native, both.plain):
        live.sinks["r3"].head(200, "")  # a second head is one too many
    settled = both.native.taken["settle"]
    await both.do("answer", "usual")
    assert both.native.ends["r3"] == "done"
    assert both.native.taken["settle"] == settled
    assert caplog.text.count("AssertionError: head was called twice") == 2
    await both.close()


@virtual
async def test_a_drain_ends_what_was_begun() -> None:
    bench = Bench()
    bench.hold()
    ends: list[BaseException | None] = []
    for ident in ("runs", "waits"):
        parsed = chat(ident, stream=False)
        bench.plane.begin(parsed.job, parsed.call, MemorySink(), ends.append)
    await bench.engines[0].until_running(1)
    await bench.plane.close(0.1)
    assert [type(end) for end in ends] == [UnavailableError, UnavailableError]
    await bench.settled()
    assert bench.engines[0].cancelled == 1
    bench.assert_idle()


@virtual
async def test_what_an_engine_holds_in_silence_is_served_by_another() -> None:
    async with Bench(2) as bench:
        silent, other = bench.engines
        silent.behaviour = Behaviour(gate=asyncio.Event())
        ends: list[BaseException | None] = []
        parsed, sink = chat("a", stream=False), MemorySink()
        bench.plane.begin(parsed.job, parsed.call, sink, ends.append)
        await silent.until_running(1)
        while not ends:  # noqa: ASYNC110 - in virtual time
            await asyncio.sleep(1.0)
        assert (ends, sink.status, silent.cancelled, other.served) == ([None], 200, 1, 1)


@pytest.mark.parametrize("argument", range(5))
def test_what_is_not_a_control_plane_is_left_alone(argument: int) -> None:
    assert NATIVE.begin_call(*[object()] * 5) is None
    assert NATIVE.settle_call(*[object()] * 3) is False
    assert NATIVE.start_call(object(), "POST", "/", object(), print, b"{}") is None
    assert NATIVE.take_answer(object(), b"") is False
    with pytest.raises(TypeError, match="takes 5 arguments"):
        NATIVE.begin_call(*[object()] * argument)
