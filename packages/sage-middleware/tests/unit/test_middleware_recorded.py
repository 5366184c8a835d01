"""A recorded trace put together again: what each request met, and the same arrivals for another run."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from sage.common.errors import ConfigError, SageError
from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.simulator.recorded import Recording, read_recording
from sage.middleware.control_plane.simulator.replayed import requests
from sage.middleware.control_plane.trace import PolicyChanged
from sage.middleware.control_plane.types import (
    Action,
    Arrived,
    Cancelled,
    Dispatch,
    EngineUp,
    Event,
    Failed,
    Finished,
    FirstByte,
    Job,
    Slice,
)
from sage.middleware.engines.port import Capability, EngineSpec, Usage

SPEC = EngineSpec("llm", "vllm", "big", frozenset((Capability.CHAT,)), 8)
EMBED = EngineSpec("mini", "embedding", "small", frozenset((Capability.EMBEDDINGS,)), 8)


def chat(ident: str, *, max_tokens: int | None = 100) -> Job:
    needs = frozenset((Capability.CHAT,))
    return Job(ident, "big", RequestClass.CHAT, "t", needs, 400, 100, max_tokens, stream=True)


def texts(ident: str, number: int, tokens: int) -> Job:
    needs = frozenset((Capability.EMBEDDINGS,))
    return Job(ident, "small", RequestClass.EMBED_BULK, "t", needs, 400, tokens, None, texts=number)


def write(path: Path, lines: list[Event | Action]) -> Path:
    path.write_bytes(msgspec.json.Encoder().encode_lines(lines))
    return path


def read(tmp_path: Path, lines: list[Event | Action]) -> Recording:
    return read_recording(write(tmp_path / "run.ndjson", lines))


@pytest.fixture
def lines() -> list[Event | Action]:
    return [
        PolicyChanged(99.0, "hybrid"),
        EngineUp(99.0, SPEC),
        Arrived(100.0, chat("a"), 130.0),
        Dispatch(1, "llm", (Slice("a", 0, 1),), "free"),
        FirstByte(100.5, 1),
        Arrived(101.0, chat("b")),
        Dispatch(2, "llm", (Slice("b", 0, 1),), "free", threads=2),
        Finished(102.0, 1, Usage(120, 40)),
        Failed(102.5, 2, "died", retryable=True, fault=True),
        Dispatch(3, "llm", (Slice("b", 0, 1),), "again"),
        FirstByte(102.6, 3),
        Finished(103.0, 3, Usage(90, 20)),
    ]


def test_calls_have_their_times_and_requests_their_calls(tmp_path: Path, lines: list[Event | Action]) -> None:
    found = read(tmp_path, lines)
    assert found.policy == "hybrid"
    assert found.engines == {"llm": SPEC}
    first, second, third = found.calls.values()
    assert (first.sent, first.first, first.ended, first.usage) == (100.0, 100.5, 102.0, Usage(120, 40))
    assert (second.sent, second.threads, second.ended, second.usage) == (101.0, 2, 102.5, None)
    assert third.sent == 102.5, "an action happens at the time of its event"
    assert found.requests["b"].calls == [second, third]


def test_the_same_arrivals_come_again_with_what_was_true(tmp_path: Path, lines: list[Event | Action]) -> None:
    first, second = requests(read(tmp_path, lines))
    assert (first.at, first.prompt_tokens, first.output_tokens, first.deadline) == (0.0, 120, 40, 30.0)
    assert (second.at, second.prompt_tokens, second.output_tokens, second.deadline) == (1.0, 90, 20, None)
    assert first.job == chat("a")


def test_an_answer_that_was_never_complete_is_as_long_as_the_others(
    tmp_path: Path, lines: list[Event | Action]
) -> None:
    more: list[Event | Action] = [Arrived(104.0, chat("c")), Arrived(105.0, chat("d", max_tokens=7))]
    *_, unknown, short = requests(read(tmp_path, lines + more))
    assert (unknown.output_tokens, unknown.prompt_tokens) == (30, 100)
    assert short.output_tokens == 7


def test_a_client_that_left_leaves_again(tmp_path: Path, lines: list[Event | Action]) -> None:
    more: list[Event | Action] = [Arrived(104.0, chat("c")), Cancelled(106.5, "c")]
    assert [r.cancel_after for r in requests(read(tmp_path, lines + more))] == [None, None, 2.5]


def test_tokens_of_a_shared_call_are_shared_out_by_their_estimates(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        [
            EngineUp(0.0, EMBED),
            Arrived(1.0, texts("x", 4, 100)),
            Arrived(1.0, texts("y", 1, 50)),
            Dispatch(1, "mini", (Slice("x", 0, 2), Slice("y", 0, 1)), "together"),
            Dispatch(2, "mini", (Slice("x", 2, 4),), "the rest"),
            Finished(2.0, 1, Usage(120, 0)),
            Finished(3.0, 2, Usage(66, 0)),
        ],
    )
    x, y = requests(found)
    assert (x.prompt_tokens, x.output_tokens) == (60 + 66, 0)
    assert y.prompt_tokens == 60


def test_of_a_request_that_was_served_in_part_the_rest_is_taken_to_be_alike(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        [
            EngineUp(0.0, EMBED),
            Arrived(1.0, texts("x", 4, 100)),
            Dispatch(1, "mini", (Slice("x", 0, 1),), "one"),
            Finished(2.0, 1, Usage(30, 0)),
        ],
    )
    assert next(requests(found)).prompt_tokens == 120


def test_a_trace_without_a_request_and_one_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no request"):
        read(tmp_path, [EngineUp(0.0, SPEC)])
    (tmp_path / "bad.ndjson").write_text('{"type": "Nothing"}\n')
    with pytest.raises(SageError, match=r"bad\.ndjson:1 is no line of a trace"):
        read_recording(tmp_path / "bad.ndjson")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_recording(tmp_path / "absent.ndjson")
