"""The trace: every event and every action of a core as NDJSON, and the replay that checks one."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from sage.common.errors import ConfigError, SageError
from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.core import Core
from sage.middleware.control_plane.options import CoreOptions
from sage.middleware.control_plane.policy import Policy, PolicyOptions, load_policy
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
    Progress,
    Reject,
    RestartEngine,
    Slo,
    StartEngine,
    StopEngine,
    Tick,
)

__all__ = ["Difference", "Goals", "Lost", "PolicyChanged", "Replay", "TraceWriter", "read_trace", "replay"]

log: Final = logging.getLogger("sage.middleware.control_plane")

FLUSH_S: Final = 0.05
MAX_WAITING: Final = 65_536  # events that wait to be written; some tens of megabytes


class PolicyChanged(Event, frozen=True, gc=False, tag=True):
    """From `at` on this policy decides. The first line of a trace is one."""

    policy: str


class Goals(Event, frozen=True, gc=False, tag=True):
    """What each class of requests should meet, as configured: a replay must be decided by the same."""

    slos: dict[RequestClass, Slo]


class Lost(Event, frozen=True, gc=False, tag=True):
    """So many events before this one are missing, with their actions: the disk was too slow."""

    events: int


_EVENTS = (
    Arrived
    | FirstByte
    | Progress
    | Finished
    | Failed
    | Cancelled
    | GaveUp
    | EngineAdded
    | EngineChanged
    | EngineUp
    | EngineDown
    | EngineRemoved
    | Tick
    | PolicyChanged
    | Goals
    | Lost
)
_ACTIONS = Dispatch | Reject | Cancel | StartEngine | StopEngine | RestartEngine
_DECODER: Final = msgspec.json.Decoder(_EVENTS | _ACTIONS)


class TraceWriter:
    """Writes a trace to `path`, in a thread of its own.

    A file that is there already is the trace of the run before, which may have crashed: it is kept as
    `path` with `.1` behind it, in place of an older one.

    At most `max_waiting` events wait in memory; those beyond are dropped, counted and noted in the trace by
    `Lost`. Raises ConfigError if the file cannot be opened.
    """

    def __init__(self, path: Path, *, max_waiting: int = MAX_WAITING) -> None:
        try:
            if path.is_file():
                path.replace(path.with_name(f"{path.name}.1"))
            self._file = path.open("wb")
        except OSError as exc:
            raise ConfigError(
                f"The trace cannot be written to {path}: {exc.strerror}.",
                hint="Set `control_plane.trace` to a file in a folder that exists.",
            ) from exc
        self._path = path
        self._max_waiting = max_waiting
        self._waiting: deque[tuple[Event, Sequence[Action]]] = deque()
        self._encoder = msgspec.json.Encoder()
        self._unnoted = 0  # dropped since the last `Lost`
        self._closed = threading.Event()
        self._broken = False
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="trace", daemon=True)
        self._thread.start()

    def record(self, event: Event, actions: Sequence[Action]) -> None:
        """Take an event and what the core decided. Never waits."""
        if self._broken or len(self._waiting) >= self._max_waiting:
            self.dropped += 1
            self._unnoted += 1
            return
        if self._unnoted:
            self._waiting.append((Lost(event.at, self._unnoted), ()))
            self._unnoted = 0
        self._waiting.append((event, actions))

    def close(self) -> None:
        """Write what waits, and close the file. Waits for the disk: not for the event loop's thread."""
        self._closed.set()
        self._thread.join()
        if self.dropped:
            log.warning("the trace %s lacks %d events", self._path, self.dropped)

    def _run(self) -> None:
        try:
            with self._file:
                closed = False
                while not closed:
                    closed = self._closed.wait(FLUSH_S)
                    self._write()
        except OSError as exc:
            self._broken = True
            self.dropped += len(self._waiting)
            self._waiting.clear()
            log.error("the trace %s ends here: %s", self._path, exc)

    def _write(self) -> None:
        while self._waiting:
            lines: list[Event | Action] = []
            for _ in range(min(len(self._waiting), 1024)):
                event, actions = self._waiting.popleft()
                lines.append(event)
                lines += actions
            self._file.write(self._encoder.encode_lines(lines))
        self._file.flush()


def read_trace(path: Path) -> Iterator[Event | Action]:
    """The events of a trace, each followed by its actions.

    A last line that was cut off by a crash is left out. Raises SageError with the number of any other line
    that is none.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield _DECODER.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as exc:
                raise SageError(f"{path}:{number} is no line of a trace: {exc}.") from exc


class Difference(msgspec.Struct, frozen=True):
    """The first event, counted from 1, after which a replay did something else."""

    number: int
    event: Event
    recorded: tuple[Action, ...]
    replayed: tuple[Action, ...]


class Replay(msgspec.Struct, frozen=True):
    """What a replay found. `lost`: events that the trace lacks; from there on it must differ."""

    events: int
    actions: int
    lost: int
    difference: Difference | None

    @property
    def same(self) -> bool:
        """Whether the core did just what it had done."""
        return self.difference is None


def replay(
    path: Path,
    policy: Policy,
    options: CoreOptions | None = None,
    *,
    policy_options: PolicyOptions | None = None,
) -> Replay:
    """Feed a trace to a fresh core, and compare what it decides with what was decided then.

    `policy` and `options` are those of the recorded run; `policy_options` make the policies that were put in
    force while it ran. It ends at the first difference. Raises SageError for a file that is no trace.
    """
    core = Core(policy, options)
    events = actions = lost = 0
    for event, recorded in _grouped(path):
        events += 1
        actions += len(recorded)
        replayed: list[Action] = []
        if isinstance(event, Lost):
            lost += event.events
        elif isinstance(event, Goals):
            pass  # told to the core by `options`
        elif not isinstance(event, PolicyChanged):
            replayed = core.handle(event)
        elif events > 1:  # the first names the one that the core was made with
            replayed = core.set_policy(load_policy(event.policy, policy_options), event.at)
        if replayed != recorded:
            return Replay(events, actions, lost, Difference(events, event, tuple(recorded), tuple(replayed)))
    return Replay(events, actions, lost, None)


def _grouped(path: Path) -> Iterator[tuple[Event, list[Action]]]:
    """Each event with its actions."""
    event: Event | None = None
    actions: list[Action] = []
    for number, line in enumerate(read_trace(path), 1):
        if isinstance(line, Action):
            actions.append(line)
            continue
        if event is not None:
            yield event, actions
        elif actions:
            raise SageError(f"{path}:{number - 1} is an action without an event before it.")
        event, actions = line, []
    if event is not None:
        yield event, actions
