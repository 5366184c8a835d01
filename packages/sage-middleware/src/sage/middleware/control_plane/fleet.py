"""One configured engine and its replicas, as the autoscaler sees them and remembers them."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import Final, Literal

import msgspec

from sage.common.api import EngineState
from sage.common.errors import ConfigError

__all__ = ["AutoscaleOptions", "Demand", "Fleet", "Replica", "StartTime", "Template"]

PATIENCE_S: Final = 5.0  # until a start that was ordered must be under way
FIRST_RETRY_S: Final = 10.0  # after a start that failed; doubles
LONGEST_RETRY_S: Final = 300.0
LONGEST_FACTOR: Final = 16.0
SMOOTHING_S: Final = 10.0  # time constant of the load: one busy moment is no busy engine
START_FLOOR: Final = 0.1  # of a start time: what is left of a start that takes longer than it should


class AutoscaleOptions(msgspec.Struct, frozen=True):
    """When to act. Times in seconds.

    `start_after_s`: how long pressure lasts before one more is started. `cool_down_s`: how long a surplus
    lasts before one is drained, and the least time between a change and the next drain. `move_after_s`: how
    long an engine idles before another template may have its cores. `sleep_after_s`: how long the last
    replica of a template with `min_replicas` 0 idles. `attainment`: predicted share of the queued work that
    meets its goals, below which there is pressure. `low`: share of the remaining slots in use, up to which
    one is too many.
    """

    start_after_s: float = 3.0
    cool_down_s: float = 60.0
    move_after_s: float = 10.0
    sleep_after_s: float = 300.0
    attainment: float = 0.95
    low: float = 0.5


class Template(msgspec.Struct, frozen=True):
    """A configured engine, of which there may be more.

    `group`: the device that it shares. `cores`: how many one replica computes on; 0 = it is not bounded by
    them. `start_s`: how long a start takes, as long as none was seen.
    """

    name: str
    model: str
    task: Literal["generate", "embed", "rerank"]
    min_replicas: int = 1
    max_replicas: int = 1
    group: str = ""
    cores: int = 0
    start_s: float = 30.0

    def __post_init__(self) -> None:
        """Raises ConfigError for bounds that leave nothing."""
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise ConfigError(
                f"Engine {self.name}: min_replicas is {self.min_replicas}, max_replicas {self.max_replicas}; "
                "valid is 0 <= min_replicas <= max_replicas and max_replicas >= 1."
            )

    def names(self) -> Iterator[str]:
        """Names of all its replicas: its own, then `.2` and so on."""
        yield self.name
        for number in range(2, self.max_replicas + 1):
            yield f"{self.name}.{number}"


class Replica(msgspec.Struct, frozen=True):
    """One engine of a template: `running` of its `slots` attempts are in use."""

    name: str
    state: EngineState
    running: int = 0
    slots: int = 1


class Demand(msgspec.Struct, frozen=True):
    """What is asked of one template, and what it has.

    `queued`: requests that wait for it. `backlog_s`: predicted seconds until it has served them. `goal_s`:
    the tightest goal among their classes. `attainment`: predicted share of them that meet their goals.
    `shed`: requests refused for lack of capacity since the last look. `idle_since`: when it last had work;
    None = it has some now.
    """

    template: str
    replicas: tuple[Replica, ...] = ()
    queued: int = 0
    backlog_s: float = 0.0
    goal_s: float = inf
    attainment: float = 1.0
    shed: int = 0
    idle_since: float | None = None


class StartTime:
    """How long starts take, learned as TCP learns its round trips: mean plus twice the mean deviation.

    Jacobson, "Congestion avoidance and control", SIGCOMM 1988; gains 1/4 as starts are rare.
    """

    def __init__(self, prior: float) -> None:
        self._mean = prior
        self._deviation = 0.0
        self._known = False

    @property
    def seconds(self) -> float:
        """What to count on."""
        return self._mean + 2 * self._deviation

    def learn(self, seconds: float) -> None:
        """A start took so long. The first one replaces the prior."""
        if self._known:
            self._deviation += (abs(seconds - self._mean) - self._deviation) / 4
            self._mean += (seconds - self._mean) / 4
        else:
            self._mean, self._deviation, self._known = seconds, seconds / 4, True


class _Start(msgspec.Struct):
    """A start under way. `begun`: it was seen to start. `timed`: we know since when."""

    since: float
    begun: bool
    timed: bool


class Fleet:
    """A template's replicas over time. `look` takes the newest demand; everything else answers from it."""

    def __init__(self, template: Template, options: AutoscaleOptions) -> None:
        self.template = template
        self.demand = Demand(template.name)
        self.pressure = 0.0  # seconds that it lasted, less half of those without; up to `start_after_s`
        self.low_since: float | None = None  # one replica too many since then
        self.start_time = StartTime(template.start_s)
        self._options = options
        self._starts: dict[str, _Start] = {}
        self._load = 0.0  # running attempts, smoothed
        self._changed = -inf
        self._drained = -inf
        self._factor = 1.0  # of the cool-down: grows when a drain was regretted
        self._failures = 0
        self._retry_at = -inf

    # ---- what there is ---------------------------------------------------------------------------------

    @property
    def processes(self) -> set[str]:
        """Names of those that have a process, or will."""
        alive = {one.name for one in self.demand.replicas if one.state not in ("stopped", "failed")}
        return alive | set(self._starts)

    @property
    def serving(self) -> set[str]:
        """Those of them that are not on their way out."""
        return self.processes - {one.name for one in self.demand.replicas if one.state == "draining"}

    @property
    def ready(self) -> list[Replica]:
        """Those that may be sent work."""
        return [one for one in self.demand.replicas if one.state == "ready"]

    @property
    def draining(self) -> bool:
        """Whether one is on its way out."""
        return len(self.serving) < len(self.processes)

    @property
    def starting(self) -> bool:
        """Whether a start is under way."""
        return bool(self._starts)

    @property
    def asked_for(self) -> bool:
        """Whether anybody wants it."""
        return self.demand.queued > 0 or self.demand.shed > 0

    @property
    def pressed(self) -> str:
        """Why what it has is not enough; empty = it is."""
        demand = self.demand
        if demand.shed:
            return f"{demand.shed} request(s) refused for lack of capacity"
        if demand.queued and demand.attainment < self._options.attainment:
            return f"{demand.attainment:.0%} of {demand.queued} queued would meet their goals"
        if demand.queued and demand.backlog_s > demand.goal_s:
            return f"a backlog of {demand.backlog_s:.1f} s, and a goal of {demand.goal_s:g} s"
        return ""

    def may_start(self, now: float) -> bool:
        """Whether its bounds and its last failures allow one more."""
        return len(self.processes) < self.template.max_replicas and now >= self._retry_at

    def may_drain(self, now: float, low_s: float) -> bool:
        """Whether there has been one too many for `low_s` seconds, and nothing changed lately."""
        return (
            self.low_since is not None
            and now - self.low_since >= low_s * self._factor
            and now - self._changed >= self._options.cool_down_s * self._factor
            and not self.draining
            and len(self.ready) > self.template.min_replicas
        )

    def wake_s(self, now: float) -> float:
        """Seconds until one of them can serve."""
        usual = self.start_time.seconds
        if self.ready:
            return 0.0
        if not self._starts:
            return usual + max(0.0, self._retry_at - now)
        return max(START_FLOOR * usual, min(one.since for one in self._starts.values()) + usual - now)

    # ---- what happens ----------------------------------------------------------------------------------

    def look(self, demand: Demand, now: float, passed: float, *, first: bool) -> None:
        """Take in the state of things, `passed` seconds after the last look."""
        self.demand = demand
        if first:
            self._changed = now
        self._follow_starts(now, first=first)
        limit = self._options.start_after_s
        step = min(passed, limit / 2)  # a long gap between two looks says nothing of what was between
        # It goes half as fast as it comes: refusals are seen in some looks only, and are pressure still.
        self.pressure = min(limit, max(0.0, self.pressure + (step if self.pressed else -step / 2)))
        running = sum(one.running for one in self.ready)
        self._load += (running - self._load) * min(1.0, passed / SMOOTHING_S)
        if not self._too_many():
            self.low_since = None
        elif self.low_since is None:
            self.low_since = now

    def started(self, now: float) -> str:
        """One more is being started: the name it gets."""
        name = next(name for name in self.template.names() if name not in self.processes)
        regretted = now - self._drained < 2 * self._factor * self._options.cool_down_s
        self._factor = min(LONGEST_FACTOR, max(1.0, self._factor * (2.0 if regretted else 0.5)))
        self._starts[name] = _Start(now, begun=False, timed=True)
        self._changed = now
        self.pressure = 0.0
        self.low_since = None
        return name

    def drained(self, now: float) -> str:
        """One is being drained: which. The least busy one, the newest of those."""
        order = {name: place for place, name in enumerate(self.template.names())}
        chosen = min(self.ready, key=lambda one: (one.running, -order.get(one.name, 0)))
        leaving = msgspec.structs.replace(chosen, state="draining")
        rest = (leaving if one is chosen else one for one in self.demand.replicas)
        self.demand = msgspec.structs.replace(self.demand, replicas=tuple(rest))
        self._changed = self._drained = now
        self.low_since = None
        return chosen.name

    def _too_many(self) -> bool:
        ready = self.ready
        if self.pressed or self.demand.queued or len(ready) <= self.template.min_replicas:
            return False
        if len(ready) == 1:
            return self.demand.idle_since is not None
        rest = sum(one.slots for one in ready) - min(one.slots for one in ready)
        return self._load <= self._options.low * rest

    def _follow_starts(self, now: float, *, first: bool) -> None:
        states = {one.name: one.state for one in self.demand.replicas}
        for name, state in states.items():
            if state == "starting":
                start = self._starts.setdefault(name, _Start(now, begun=True, timed=not first))
                start.begun = True
        for name, start in list(self._starts.items()):
            state = states.get(name, "stopped")
            if state == "starting":
                continue
            if state in ("stopped", "failed"):
                if not start.begun and now - start.since < PATIENCE_S:
                    continue  # the order has not got there yet
                self._failures += 1
                self._retry_at = now + min(FIRST_RETRY_S * 2.0 ** (self._failures - 1), LONGEST_RETRY_S)
            elif state == "ready":
                self._failures = 0
                if start.timed:
                    self.start_time.learn(now - start.since)
            del self._starts[name]
