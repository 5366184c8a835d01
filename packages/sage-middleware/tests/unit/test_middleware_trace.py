"""The trace: what is written is read back, what cannot be written is counted, and a trace replays."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sage.common.config import ControlPlaneConfig
from sage.common.errors import ConfigError, EngineError, SageError
from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.options import CoreOptions, policy_options
from sage.middleware.control_plane.policy import PolicyOptions, load_policy
from sage.middleware.control_plane.trace import Goals, Lost, PolicyChanged, TraceWriter, read_trace, replay
from sage.middleware.control_plane.types import (
    Action,
    Arrived,
    Cancel,
    Cancelled,
    Dispatch,
    EngineAdded,
    EngineChanged,
    EngineDown,
    EngineRemoved,
    EngineUp,
    Event,
    Failed,
    Finished,
    FirstByte,
    GaveUp,
    Job,
    Progress,
    Reject,
    RestartEngine,
    Slice,
    Slo,
    StartEngine,
    StopEngine,
    Tick,
)
from sage.middleware.engines.port import Capability, EngineSpec, Usage
from sage.middleware.testing.bench import Bench, chat, embedding
from sage.middleware.testing.memory import Behaviour
from sage.middleware.testing.virtual import VirtualLoop

JOB = Job(
    "r",
    "m",
    RequestClass.CHAT,
    "t",
    frozenset((Capability.CHAT,)),
    10,
    3,
    None,
    slo=Slo(ttft=0.1),
    blocks=(1, -(2**60)),
)
SPEC = EngineSpec("e", "memory", "m", frozenset(Capability), 2)

LINES: dict[type[Any], Event | Action] = {
    type(line): line
    for line in (
        Arrived(0.1 + 0.2, JOB, 3.5),
        FirstByte(1.0, 1),
        Progress(1.0, (1, 2)),
        Finished(1.0, 1, Usage(1, 2)),
        Failed(1.0, 1, "it broke", retryable=True, fault=True, refused=True),
        Cancelled(1.0, "r"),
        GaveUp(1.0, "r", "late"),
        EngineAdded(1.0, SPEC),
        EngineChanged(1.0, SPEC),
        EngineUp(1.0, SPEC),
        EngineDown(1.0, "e", "killed", crashed=True),
        EngineRemoved(1.0, "e"),
        Tick(1.0),
        PolicyChanged(1.0, "fifo"),
        Goals(1.0, {RequestClass.CHAT: Slo(ttft=0.5, tpot=0.03)}),
        Lost(1.0, 7),
        Dispatch(1, "e", (Slice("r", 0, 1), Slice("s", 2, 5)), "free", threads=2, hedge=True),
        Reject("r", 429, "full", 1.5),
        Cancel(1),
        StartEngine("e", "e-1", "load"),
        StopEngine("e", "idle"),
        RestartEngine("e", "hangs"),
    )
}


def leaves(kind: type[Any]) -> Iterator[type[Any]]:
    for one in kind.__subclasses__():
        yield one
        yield from leaves(one)


@pytest.mark.parametrize("kind", [*leaves(Event), *leaves(Action)])
def test_every_kind_of_line_is_read_back(kind: type[Any], tmp_path: Path) -> None:
    line = LINES[kind]
    path = tmp_path / "trace.ndjson"
    writer = TraceWriter(path)
    if isinstance(line, Event):
        writer.record(line, ())
    else:
        writer.record(Tick(0.0), [line])
    writer.close()
    assert list(read_trace(path))[-1] == line
    assert json.loads(path.read_bytes().splitlines()[-1])["type"] == kind.__name__


def test_a_trace_that_is_opened_again_begins_anew_and_the_one_before_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "trace.ndjson"
    for at in (1.0, 2.0, 3.0):
        writer = TraceWriter(path)
        writer.record(Tick(at), ())
        writer.close()
    assert list(read_trace(path)) == [Tick(3.0)]
    assert list(read_trace(tmp_path / "trace.ndjson.1")) == [Tick(2.0)]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["trace.ndjson", "trace.ndjson.1"]


def test_a_trace_may_go_to_what_is_no_file() -> None:
    TraceWriter(Path("/dev/null")).close()
    assert Path("/dev/null").is_char_device()


def test_more_than_fits_is_dropped_counted_and_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "trace.ndjson"
    writer = TraceWriter(path, max_waiting=0)
    for number in range(5):
        writer.record(Tick(float(number)), ())
    assert writer.dropped == 5
    writer._max_waiting = 10
    writer.record(Tick(9.0), ())
    with caplog.at_level(logging.WARNING):
        writer.close()
    assert list(read_trace(path)) == [Lost(9.0, 5), Tick(9.0)]
    assert "lacks 5 events" in caplog.text


class Full:
    """A file on a disk that is full."""

    def write(self, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_a_full_disk_ends_the_trace_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = TraceWriter(tmp_path / "trace.ndjson")
    file, writer._file = writer._file, Full()  # type: ignore[assignment]
    writer.record(Tick(1.0), ())
    writer.close()
    file.close()
    writer.record(Tick(2.0), ())
    assert writer.dropped >= 1
    assert "No space left" in caplog.text


def test_a_folder_that_is_not_there_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        TraceWriter(tmp_path / "none" / "trace.ndjson")


def test_a_line_cut_off_by_a_crash_is_left_out_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trace.ndjson"
    path.write_bytes(b'{"type":"Tick","at":1.0}\n{"type":"Ti')
    assert list(read_trace(path)) == [Tick(1.0)]
    path.write_bytes(b'{"type":"Tick","at":1.0}\n{"type":"Tock","at":1.0}\n')
    with pytest.raises(SageError, match=r"trace.ndjson:2 is no line of a trace.*Tock"):
        list(read_trace(path))
    path.write_bytes(b'{"type":"Cancel","attempt":1}\n{"type":"Tick","at":1.0}\n')
    with pytest.raises(SageError, match=r":1 is an action without an event"):
        replay(path, load_policy("fifo"))


# ---- replay ----


def recorded(path: Path, policy: str = "hybrid") -> ControlPlaneConfig:
    """A run with retries, cancels, a change of policy and embedding calls, traced to `path`."""
    config = ControlPlaneConfig(policy=policy, trace=path, queue_max_wait_s=1000.0)

    async def run() -> None:
        async with Bench(2, slots=2, policy=policy, trace=path, queue_max_wait_s=1000.0) as bench:
            for engine in bench.engines:
                engine.behaviour = Behaviour(every_s=0.01)
                engine.next_behaviours.append(Behaviour(fault=EngineError("it broke")))
            tasks = []
            for number in range(40):
                ident = f"r{number}"
                request = chat(ident) if number % 2 else embedding(ident, f"text {number}", "same")
                tasks.append(bench.start(request))
                await asyncio.sleep(0.002)
                if number == 20:
                    bench.plane.set_policy("least_load")
                if number % 10 == 9:
                    tasks[-1].cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert results.count("done") >= 10

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(run())
    return config


@pytest.mark.parametrize("policy", ["fifo", "hybrid"])
def test_a_live_run_replays_to_the_same_decisions(policy: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.ndjson"
    config = recorded(path, policy)
    options = policy_options(config)
    found = replay(path, load_policy(policy, options), CoreOptions.of(config), policy_options=options)
    assert found.difference is None
    assert found.same
    assert found.lost == 0
    assert found.events > 100
    assert found.actions >= 20


def test_another_policy_differs_and_the_event_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trace.ndjson"
    recorded(path, "fifo")
    found = replay(path, load_policy("round_robin", PolicyOptions()))
    assert not found.same
    assert found.difference is not None
    assert found.difference.recorded != found.difference.replayed
    lines = list(read_trace(path))
    events = [line for line in lines if isinstance(line, Event)]
    assert events[found.difference.number - 1] == found.difference.event


def test_a_changed_trace_differs_where_it_was_changed(tmp_path: Path) -> None:
    path = tmp_path / "trace.ndjson"
    config = recorded(path, "fifo")
    lines = list(read_trace(path))
    at = next(index for index, line in enumerate(lines) if isinstance(line, Dispatch))
    dispatch = lines[at]
    assert isinstance(dispatch, Dispatch)
    lines[at] = msgspec.structs.replace(dispatch, reason="another")
    path.write_bytes(msgspec.json.Encoder().encode_lines(lines))
    found = replay(path, load_policy("fifo"), CoreOptions.of(config))
    assert found.difference is not None
    assert found.difference.recorded[-1] == lines[at]


def test_what_was_lost_is_told(tmp_path: Path) -> None:
    path = tmp_path / "trace.ndjson"
    path.write_bytes(
        b'{"type":"PolicyChanged","at":0.0,"policy":"fifo"}\n{"type":"Lost","at":0.0,"events":3}\n'
    )
    found = replay(path, load_policy("fifo"))
    assert (found.same, found.lost, found.events, found.actions) == (True, 3, 2, 0)
