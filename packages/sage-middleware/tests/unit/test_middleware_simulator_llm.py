"""The LLM model that jumps against one that takes every iteration by itself."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from random import Random
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from sage.middleware.control_plane.simulator.engines import NEVER, Device, Work
from sage.middleware.control_plane.simulator.fleet import LlmEngine
from sage.middleware.control_plane.simulator.llm import LlmSim
from sage.middleware.testing.simulated import llm_engine

Times = dict[int, tuple[float, float]]


@dataclass(eq=False)
class Sequence:
    """A request of the reference. `held`: tokens whose keys and values it keeps."""

    number: int
    at: float
    prompt: int
    output: int
    leaves: float = math.inf
    left: int = 0
    held: int = 0
    emitted: int = 0
    first: float = math.inf
    share: int = 0


@dataclass
class Reference:
    """Continuous batching, one iteration after the other, nothing clever."""

    model: LlmEngine
    now: float = 0.0
    coming: deque[Sequence] = field(default_factory=deque)
    waiting: deque[Sequence] = field(default_factory=deque)
    running: list[Sequence] = field(default_factory=list)
    times: Times = field(default_factory=dict)
    preemptions: int = 0

    def run(self, sequences: list[Sequence]) -> Times:
        self.coming = deque(sorted(sequences, key=lambda one: one.at))
        while self.coming or self.waiting or self.running:
            if not (self.waiting or self.running):
                self.now = max(self.now, self.coming[0].at)
            while self.coming and self.coming[0].at <= self.now:
                self.waiting.append(self.coming.popleft())
            self.iterate()
        return self.times

    def iterate(self) -> None:
        decoding = [one for one in self.running if not one.left]
        preempted = self.make_room()
        decoding = [one for one in self.running if not one.left]
        budget = self.model.chunk
        for one in self.running:
            one.share = min(one.left, budget)
            budget -= one.share
        if not preempted:
            budget = self.admit(budget, len(decoding))
        tokens = self.model.chunk - budget
        if not (tokens or decoding):
            return
        for one in decoding:
            one.held += 1
        self.now += self.model.a + self.model.b * len(decoding) + self.model.c * tokens
        for one in list(self.running):
            self.end_of_iteration(one, one in decoding)

    def end_of_iteration(self, one: Sequence, decoded: bool) -> None:
        one.left -= one.share
        if decoded or (one.share and not one.left):
            one.emitted += 1
            one.first = min(one.first, self.now)
            if one.emitted == one.output:
                self.running.remove(one)
                if one.leaves >= self.now:
                    self.times[one.number] = (one.first, self.now)
                return
        if one.leaves <= self.now:
            self.running.remove(one)

    def make_room(self) -> bool:
        preempted = False
        while True:
            held = sum(one.held for one in self.running)
            if held + sum(not one.left for one in self.running) <= self.model.kv_tokens:
                return preempted
            last = self.running.pop()
            last.held = last.left = 0
            self.waiting.appendleft(last)
            self.preemptions += 1
            preempted = True

    def admit(self, budget: int, decoding: int) -> int:
        while self.waiting and budget and len(self.running) < self.model.max_running:
            one = self.waiting[0]
            if one.leaves <= self.now:
                self.waiting.popleft()
                continue
            need = one.prompt + one.emitted
            if sum(other.held for other in self.running) + decoding + need > self.model.kv_tokens:
                break
            self.waiting.popleft()
            one.held = one.left = need
            one.share = min(need, budget)
            budget -= one.share
            self.running.append(one)
        return budget


def engine(**changes: Any) -> LlmSim:
    model = LlmEngine.model_validate(llm_engine(**changes))
    return LlmSim("llm", model, Device(), Random(0))  # noqa: S311


def drive(sim: LlmSim, sequences: list[Sequence]) -> Times:
    """Feed the model as the world does, and note the times of what is not cancelled."""
    works = {one.number: Work(one.number, one.prompt, one.output, stream=True) for one in sequences}
    happenings = [(one.at, 0, one.number) for one in sequences]
    happenings += [(one.leaves, 1, one.number) for one in sequences if one.leaves < math.inf]
    happenings.sort(reverse=True)
    firsts: dict[int, float] = {}
    times: Times = {}
    while happenings or sim.due != NEVER:
        if happenings and happenings[-1][0] < sim.due:
            now, cancels, number = happenings.pop()
            if not cancels:
                sim.submit(works[number])
            elif number not in times:
                sim.cancel(works[number], now)
        else:
            now = sim.due
            begun, ended = sim.advance(now)
            firsts.update({work.attempt: now for work in begun})
            times.update({work.attempt: (firsts[work.attempt], now) for work in ended})
        sim.resume(now)
    return times


@st.composite
def workloads(draw: st.DrawFn) -> list[Sequence]:
    # Times that no sum of iterations hits, so that nothing happens at the very end of one.
    moments = st.integers(0, 3000).map(lambda n: n * 0.000917 + 0.0000313)
    sequences = []
    for number in range(draw(st.integers(1, 14))):
        at = draw(moments) + number * 1.3e-7
        leaves = at + draw(moments) if draw(st.booleans()) and draw(st.booleans()) else math.inf
        sequences.append(Sequence(number, at, draw(st.integers(1, 300)), draw(st.integers(1, 80)), leaves))
    return sequences


@settings(max_examples=300, deadline=None)
@given(
    sequences=workloads(),
    chunk=st.sampled_from([16, 64, 2048]),
    kv_tokens=st.sampled_from([400, 700, 10_000]),
    max_running=st.sampled_from([1, 3, 8]),
)
def test_jumping_gives_the_times_of_one_iteration_after_the_other(
    sequences: list[Sequence], chunk: int, kv_tokens: int, max_running: int
) -> None:
    sim = engine(chunk=chunk, kv_tokens=kv_tokens, max_running=max_running)
    ours = drive(sim, [Sequence(one.number, one.at, one.prompt, one.output, one.leaves) for one in sequences])
    reference = Reference(sim.model)  # type: ignore[arg-type]  # an LLM's model is an LlmEngine
    expected = reference.run(sequences)
    assert set(ours) == set(expected)
    for number, times in ours.items():
        assert times == pytest.approx(expected[number], abs=1e-6)
    assert sim.preemptions == reference.preemptions
    assert (sim._kv, sim._decoding, len(sim._active), len(sim.waiting)) == (0, 0, 0, 0)
