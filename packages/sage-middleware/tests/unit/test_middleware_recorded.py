"""A recorded trace put together again: what each request met, and the same arrivals for another run."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import msgspec
import pytest

from sage.common.errors import ConfigError, SageError
from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.simulator.recorded import Recording, read_recording
from sage.middleware.control_plane.simulator.replayed import options, requests
from sage.middleware.control_plane.trace import Goals, PolicyChanged
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
    Reject,
    Slice,
    Slo,
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


def test_the_goals_of_the_run_decide_its_replay(tmp_path: Path, lines: list[Event | Action]) -> None:
    assert read(tmp_path, lines).slos == {}
    goals = {RequestClass.CHAT: Slo(ttft=0.5)}
    found = options(read(tmp_path, [*lines, Goals(99.0, goals)]))
    assert found.slos[RequestClass.CHAT] == Slo(ttft=0.5)
    assert found.slos.keys() == set(RequestClass), "classes that are not named have the default's goals"


def test_the_policy_is_that_of_the_first_request(tmp_path: Path, lines: list[Event | Action]) -> None:
    changed = [lines[0], PolicyChanged(99.5, "fifo"), *lines[1:], PolicyChanged(110.0, "edf")]
    assert read(tmp_path, changed).policy == "fifo"


def test_a_request_ends_with_its_last_call_or_refusal(tmp_path: Path, lines: list[Event | Action]) -> None:
    more: list[Event | Action] = [Arrived(104.0, chat("c")), Reject("c", 429, "full", 1.0)]
    found = read(tmp_path, lines + more).requests
    assert [found[one].ended for one in ("a", "b", "c")] == [102.0, 103.0, 104.0]


def storm(workers: int = 2, calls: int = 6) -> list[Event | Action]:
    """Clients that ask again 2 ms after an answer that takes 1 s; the second begins 0.3 s after the first."""
    made: list[tuple[float, int, Event | Action]] = []
    for worker in range(workers):
        for call in range(calls):
            number, at = worker * calls + call, 10.0 + 0.3 * worker + 1.002 * call
            made.append((at, 0, Arrived(at, texts(f"s{number}", 64, 2000))))
            made.append((at, 1, Dispatch(number, "mini", (Slice(f"s{number}", 0, 64),), "free")))
            made.append((at + 1.0, 2, Finished(at + 1.0, number, Usage(2000, 0))))
    ordered = sorted(made, key=lambda one: one[:2])
    return [EngineUp(0.0, EMBED), *(line for _, _, line in ordered)]


def test_what_was_sent_on_an_answer_waits_for_that_answer(tmp_path: Path) -> None:
    first, second = requests(read(tmp_path, storm()))
    assert (first.job.id, second.job.id) == ("s0", "s6")
    assert (first.at, second.at) == pytest.approx((0.0, 0.3))
    assert first.client is not None
    assert second.client is not None
    assert first.client.until == pytest.approx(5 * 1.002 + 1.0), "the end of its last request"
    turns = list(islice(first.client.turns, 8))
    assert [one.job.id for one in turns] == ["s1", "s2", "s3", "s4", "s5", "s0~2", "s1~2", "s2~2"]
    assert [one.at for one in turns] == pytest.approx([0.002] * 8)
    assert {one.prompt_tokens for one in turns} == {2000}
