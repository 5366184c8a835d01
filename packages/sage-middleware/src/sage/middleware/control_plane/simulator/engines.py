"""Models of engines: what they have in common, and the devices that they share.

An engine works in steps. The world tells it the time; it answers when its step ends (`due`) and what ended
with it. Whether a neighbour computes beside it is looked at when a step starts, not in the midst of one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable
from random import Random
from typing import Final

import msgspec

from sage.middleware.control_plane.simulator.fleet import DeviceModel, EmbedEngine, LlmEngine
from sage.middleware.control_plane.simulator.variation import Variation

__all__ = ["NEVER", "Device", "SimEngine", "Work"]

NEVER: Final = math.inf
_FREE: Final = DeviceModel()


class Work(msgspec.Struct, eq=False, gc=False):
    """One call at an engine. `prompt` and `output` are true counts of tokens; `texts` of what is embedded."""

    attempt: int
    prompt: int
    output: int
    texts: int = 1
    stream: bool = False
    blocks: tuple[int, ...] = ()
    per_block: int = 0
    threads: int = 0
    emitted: int = 0  # tokens that came out before the current run of decoding
    left: int = 0  # prompt tokens, or texts, that are not computed yet
    context: int = 0  # tokens whose keys and values were kept for it when it was admitted
    began: int = 0  # number of the step in which its current run of decoding began
    done_at: int = 0  # number of the step that gives its last token
    order: int = 0  # of admission
    decoding: bool = False
    gone: bool = False  # broken off: nobody is told of it


class Device:
    """What the engines of one group share: who computes now, and what that costs the others."""

    __slots__ = ("members", "model")

    def __init__(self, model: DeviceModel = _FREE) -> None:
        self.model = model
        self.members: list[SimEngine] = []

    def factor(self, mine: SimEngine, threads: int) -> float:
        """How many times as long a step of `mine` takes that starts now with `threads`."""
        beside, demand = False, threads
        for other in self.members:
            if other is not mine and other.computing:
                beside = beside or other.generates != mine.generates
                demand += other.threads
        factor = 1.0 + self.model.interference if beside else 1.0
        cores = self.model.cores
        if cores and demand > cores:
            factor *= 1.0 + self.model.barrier * (demand / cores - 1.0)
        return factor

    def changed(self, mine: SimEngine, now: float) -> None:
        """`mine` began or ceased to compute: the others feel it from their next step on."""
        for other in self.members:
            if other is not mine:
                other.cut(now)


class SimEngine(ABC):
    """An engine that computes in steps. `due` = when the current one ends, NEVER while there is none."""

    __slots__ = (
        "_ran",
        "_random",
        "_rest",
        "_start",
        "_variation",
        "busy",
        "cached",
        "computed",
        "computing",
        "device",
        "due",
        "frozen",
        "generates",
        "model",
        "name",
        "preemptions",
        "scheduled",
        "slow",
        "threads",
        "waiting",
    )

    def __init__(self, name: str, model: LlmEngine | EmbedEngine, device: Device, random: Random) -> None:
        self.name = name
        self.model = model
        self.device = device
        self.generates = isinstance(model, LlmEngine)
        self.due = NEVER
        self.scheduled = NEVER  # the world's note of the `due` that it waits for
        self.computing = False
        self.threads = 0  # that compute now
        self.slow = 1.0
        self.frozen = False  # it hangs
        self.waiting: deque[Work] = deque()
        self.busy = 0.0
        self.computed = self.cached = self.preemptions = 0
        self._random = random
        self._variation = Variation(model.dispersion, random) if model.dispersion else None
        self._start = 0.0
        self._ran = 0.0  # of its step, when it froze
        self._rest = NEVER
        device.members.append(self)

    def fits(self, work: Work) -> bool:  # noqa: ARG002
        """Whether it can serve such a call at all."""
        return True

    def submit(self, work: Work) -> None:
        """Take a call in; `resume` starts it."""
        self.waiting.append(work)

    def cancel(self, work: Work, now: float) -> None:
        """Break a call off: it leaves at the end of a step, and nobody is told."""
        work.gone = True
        self.cut(now)

    @abstractmethod
    def resume(self, now: float) -> None:
        """Start a step if none runs and there is work."""

    @abstractmethod
    def advance(self, now: float) -> tuple[list[Work], list[Work]]:
        """End the step that is due: the calls whose first token came, and those that are complete."""

    def cut(self, now: float) -> None:  # noqa: B027 - most engines have nothing to cut
        """Something changed: let a step that is many in one end early."""

    def streaming(self) -> Iterable[Work]:
        """The calls of which tokens come out now."""
        return ()

    def drop(self, now: float) -> None:
        """Its process died: forget all that is there, waiting or running."""
        if self.computing:
            self.busy += self._ran if self.frozen else now - self._start
        self.waiting.clear()
        self.frozen = False
        self._stop(now)

    def freeze(self, now: float) -> None:
        """Hang: the step that runs does not end."""
        if not self.frozen:
            self.frozen = True
            self._ran, self._rest = now - self._start, self.due - now
            self.due = NEVER

    def thaw(self, now: float) -> None:
        """Go on where it stood."""
        if self.frozen:
            self.frozen = False
            self._start, self.due = now - self._ran, now + self._rest

    def _begin(self, now: float, seconds: float, threads: int) -> None:
        """A step of `seconds` starts."""
        began = not self.computing
        self._start, self.due = now, now + seconds
        self.computing, self.threads = True, threads
        if began and len(self.device.members) > 1:
            self.device.changed(self, now)

    def _stop(self, now: float) -> None:
        """Nothing is left to compute, or nobody to compute it."""
        self.due = NEVER
        if self.computing:
            self.computing, self.threads = False, 0
            if len(self.device.members) > 1:
                self.device.changed(self, now)

    def _noise(self, steps: int, now: float) -> float:
        """What `steps` equal steps from `now` on take together, against the formula.

        By the engine's dispersion if it has one, else a lognormal factor of mean 1.
        """
        if self._variation is not None:
            return self._variation.at(now)
        sigma = self.model.noise
        if not sigma:
            return 1.0
        sigma /= math.sqrt(steps)
        return math.exp(sigma * self._random.gauss(0.0, 1.0) - 0.5 * sigma * sigma)
