"""The engines' side of a simulated world: processes that start, die and hang, and the calls they serve."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from sage.middleware.control_plane.simulator.agenda import Agenda
from sage.middleware.control_plane.simulator.embedding import EmbedSim
from sage.middleware.control_plane.simulator.engines import NEVER, Device, SimEngine, Work
from sage.middleware.control_plane.simulator.fleet import EmbedEngine, Fleet, LlmEngine, engine_spec
from sage.middleware.control_plane.simulator.llm import LlmSim
from sage.middleware.control_plane.simulator.types import EngineResult
from sage.middleware.control_plane.types import (
    EngineAdded,
    EngineDown,
    EngineRemoved,
    EngineUp,
    Event,
    Failed,
    Finished,
    FirstByte,
    Progress,
    Slice,
)
from sage.middleware.engines.port import Usage

__all__ = ["Call", "Cluster", "Member"]

ANSWER_S: Final = 0.001  # until a refusal is back
REPORT_S: Final = 5.0  # between two reports that streams move

Feed = Callable[[Event, tuple[Slice, ...]], None]


class Call(Work, eq=False, gc=False, kw_only=True):
    """One attempt: which engine has it, and for which slices."""

    member: Member
    slices: tuple[Slice, ...]


class Member:
    """An engine of the cluster through all of its lives. Windows of faults are given by their ends."""

    __slots__ = (
        "brownout",
        "calls",
        "cancelled",
        "failed",
        "finished",
        "handover_s",
        "hang_until",
        "life",
        "mute_until",
        "output_tokens",
        "peers",
        "refuse_until",
        "reporting",
        "sent",
        "sim",
        "slow_until",
        "spec",
        "starts",
        "state",
    )

    def __init__(self, sim: SimEngine, template: str) -> None:
        self.sim = sim
        self.spec = engine_spec(sim.name, sim.model, template)
        self.state = "loading"
        self.life = 0  # number of its process: what was planned for an earlier one is void
        self.calls: dict[int, Call] = {}
        self.peers: list[Member] = []  # on its device
        self.reporting = False
        self.handover_s = sim.model.handover_s if isinstance(sim.model, EmbedEngine) else 0.0
        self.refuse_until = self.hang_until = self.mute_until = self.slow_until = 0.0
        self.brownout = (0.0, 0.0, 0.0)  # its end, the share of calls, seconds until the error
        self.sent = self.finished = self.failed = self.cancelled = self.starts = 0
        self.output_tokens = 0

    def result(self) -> EngineResult:
        """What became of it."""
        sim = self.sim
        return EngineResult(
            sim.name,
            sim.model.kind,
            self.state,
            sim.busy,
            self.sent,
            self.finished,
            self.failed,
            self.cancelled,
            sim.computed,
            sim.cached,
            self.output_tokens,
            sim.preemptions,
            self.starts,
        )


class Cluster:
    """All engines. `feed` tells the core of an event that may end the requests of these slices.

    It is not called while the core's actions are carried out: what follows from one goes on the agenda.
    """

    def __init__(self, fleet: Fleet, seed: int, agenda: Agenda, feed: Feed) -> None:
        self.members: dict[str, Member] = {}
        self._seed = seed
        self._agenda = agenda
        self._feed = feed
        self._calls: dict[int, Call] = {}
        self._touched: list[Member] = []
        self._random = Random(f"{seed}:calls")  # noqa: S311
        self._devices = {name: Device(model) for name, model in fleet.devices.items()}
        self._fleet = dict(fleet.instances())

    def open(self) -> None:
        """Bring up the fleet: those that start up are ready, the others load."""
        for name, model in self._fleet.items():
            member = self._make(name, model, "")
            if model.starts_up:
                self.up_in(member, 0.0)
            else:
                self._load(member, model.cold_start_s)

    # ---- calls ---------------------------------------------------------------------------------------

    def send(self, call: Call) -> None:
        """Carry out a Dispatch."""
        member = call.member
        self._calls[call.attempt] = member.calls[call.attempt] = call
        member.sent += 1
        now = self._agenda.now
        until, share, after = member.brownout
        if member.state != "up" or now < member.refuse_until:
            self._agenda.at(now + ANSWER_S, self._refused, call)
        elif now < until and self._random.random() < share:
            self._agenda.at(now + after, self._broken, call)
        elif not member.sim.fits(call):
            self._agenda.at(now + ANSWER_S, self._too_long, call)
        else:
            member.sim.submit(call)
            self._touched.append(member)
            if member.sim.generates and not member.reporting:
                member.reporting = True
                self._agenda.at(now + REPORT_S, self._report, member)

    def cancel(self, attempt: int) -> None:
        """Carry out a Cancel. The call may have ended at this very moment."""
        call = self._calls.pop(attempt, None)
        if call is not None:
            member = call.member
            del member.calls[attempt]
            member.cancelled += 1
            member.sim.cancel(call, self._agenda.now)
            self._touched.append(member)

    @property
    def names(self) -> list[str]:
        """The engines of the fleet."""
        return list(self._fleet)

    def touch(self, member: Member) -> None:
        """Something about its engine changed."""
        self._touched.append(member)

    def settle(self) -> None:
        """Let every engine that something happened to go on; done once all of this moment is known."""
        now = self._agenda.now
        for member in self._touched:
            member.sim.resume(now)
            for peer in member.peers:
                sim = peer.sim
                if sim.due != sim.scheduled:
                    sim.scheduled = sim.due
                    if sim.due != NEVER:
                        self._agenda.at(sim.due, self._due, peer)
        self._touched.clear()

    def _due(self, member: Member) -> None:
        """A step of an engine ends, if it was not cut short or put off meanwhile."""
        now = self._agenda.now
        if member.sim.due != now:
            return
        firsts, ends = member.sim.advance(now)
        self._touched.append(member)
        for call in firsts:
            if call.stream and call.attempt in self._calls:
                self._feed(FirstByte(now, call.attempt), ())
        if len(ends) > 1 and member.handover_s:
            for number, call in enumerate(ends):
                self._agenda.at(now + number * member.handover_s, self._answered, call)
            return
        for call in ends:
            self._answered(call)

    def _answered(self, call: Work) -> None:
        """The whole answer of a call is here, if it was not broken off meanwhile."""
        ended = self._forget(call.attempt)
        if ended is not None:
            member = ended.member
            member.finished += 1
            member.output_tokens += call.output
            self._feed(
                Finished(self._agenda.now, call.attempt, Usage(call.prompt, call.output)), ended.slices
            )

    def _report(self, member: Member) -> None:
        """Tell which streams move."""
        now = self._agenda.now
        member.reporting = bool(member.calls)
        if not member.reporting:
            return
        self._agenda.at(now + REPORT_S, self._report, member)
        if not member.sim.frozen and now >= member.mute_until:
            moving = tuple(work.attempt for work in member.sim.streaming() if work.stream and not work.gone)
            if moving:
                self._feed(Progress(now, moving), ())

    def _forget(self, attempt: int) -> Call | None:
        call = self._calls.pop(attempt, None)
        if call is not None:
            del call.member.calls[attempt]
        return call

    def _fail(self, call: Call, reason: str, *, retryable: bool, fault: bool, refused: bool = False) -> None:
        if self._forget(call.attempt) is not None:
            call.member.failed += 1
            event = Failed(self._agenda.now, call.attempt, reason, retryable, fault, refused)
            self._feed(event, call.slices)

    def _refused(self, call: Call) -> None:
        self._fail(call, "connection refused", retryable=True, fault=True, refused=True)

    def _broken(self, call: Call) -> None:
        self._fail(call, "the engine answered 500", retryable=True, fault=True)

    def _too_long(self, call: Call) -> None:
        need = call.prompt + call.output - 1
        self._fail(call, f"{need} tokens are more than the engine can keep", retryable=False, fault=False)

    # ---- lives of engines ----------------------------------------------------------------------------

    def start(self, template: str, name: str) -> None:
        """Carry out a StartEngine: it loads, then it is up."""
        model = self._fleet[template]
        member = self.members.get(name)
        if member is None:
            member = self._make(name, model, template if template != name else "")
        self._load(member, model.cold_start_s)

    def stop(self, name: str) -> None:
        """Carry out a StopEngine: its process ends at once, as nothing runs there.

        A configured engine sleeps from then on, one of the others is forgotten.
        """
        member = self.members[name]
        now = self._agenda.now
        member.life += 1
        member.state = "stopped"
        member.sim.drop(now)
        self._touched.append(member)
        if member.spec.template:
            self._agenda.at(now, self._tell, EngineRemoved(now, name))
        else:
            self._agenda.at(now, self._tell, EngineAdded(now, member.spec))
            self._agenda.at(now, self._tell, EngineDown(now, name, "asleep"))

    def restart(self, name: str) -> None:
        """Carry out a RestartEngine."""
        self._agenda.at(self._agenda.now, self._do_restart, self.members[name])

    def die(self, member: Member, reason: str, *, crashed: bool, noticed_after: float = 0.0) -> None:
        """Its process ends: what ran there fails, and new connects are refused. Called by the agenda only."""
        if member.state in ("down", "stopped"):
            return
        now = self._agenda.now
        member.life += 1
        member.state = "down"
        member.sim.drop(now)
        self._touched.append(member)
        lost = list(member.calls.values())
        down = EngineDown(now + noticed_after, member.sim.name, reason, crashed)
        if noticed_after:
            self._agenda.at(now + noticed_after, self._tell, down)
        else:
            self._feed(down, ())
        for call in lost:
            begun = call.stream and call.emitted > 0
            self._fail(call, f"the connection broke: {reason}", retryable=not begun, fault=True)

    def up_in(self, member: Member, seconds: float) -> None:
        """Its process is started and will be ready."""
        self._agenda.at(self._agenda.now + seconds, self._up, (member, member.life))

    def _load(self, member: Member, seconds: float) -> None:
        member.life += 1
        member.state = "loading"
        now = self._agenda.now
        self._agenda.at(now, self._tell, EngineAdded(now, member.spec))
        self.up_in(member, seconds)

    def _do_restart(self, member: Member) -> None:
        if member.state == "up":
            self.die(member, "it was restarted because it hung", crashed=False)
            self.up_in(member, member.sim.model.cold_start_s)

    def _up(self, planned: tuple[Member, int]) -> None:
        member, life = planned
        if member.life == life:
            member.state = "up"
            member.starts += 1
            if self._agenda.now < member.hang_until:
                member.sim.freeze(self._agenda.now)
            self._feed(EngineUp(self._agenda.now, member.spec), ())

    def _tell(self, event: Event) -> None:
        self._feed(event, ())

    def _make(self, name: str, model: LlmEngine | EmbedEngine, template: str) -> Member:
        device = self._devices.setdefault(model.group, Device()) if model.group else Device()
        random = Random(f"{self._seed}:{name}")  # noqa: S311
        sim = (
            LlmSim(name, model, device, random)
            if isinstance(model, LlmEngine)
            else EmbedSim(name, model, device, random)
        )
        member = self.members[name] = Member(sim, template)
        beside = [one for one in self.members.values() if one.sim.device is device]
        for one in beside:
            one.peers = beside
        return member
