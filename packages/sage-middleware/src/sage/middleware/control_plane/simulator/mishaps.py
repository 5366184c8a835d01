"""How faults are put into a run: each kind as what it does to the cluster, and what ends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sage.common.errors import UsageError
from sage.middleware.control_plane.simulator.agenda import Agenda
from sage.middleware.control_plane.simulator.cluster import Cluster, Member
from sage.middleware.control_plane.simulator.faults import (
    Brownout,
    Fault,
    Hang,
    Kill,
    Mute,
    Refuse,
    Reload,
    Slow,
)

__all__ = ["plan"]


def plan(faults: Sequence[Fault], cluster: Cluster, agenda: Agenda) -> None:
    """Put faults on the agenda. Raises UsageError for an engine that the fleet does not have."""
    mishaps = _Mishaps(cluster, agenda)
    for fault in faults:
        if fault.engine not in cluster.names:
            raise UsageError(
                f"A fault strikes the engine {fault.engine!r}; the fleet has {', '.join(cluster.names)}."
            )
        agenda.at(fault.at, mishaps.strike, fault)


class _Mishaps:
    def __init__(self, cluster: Cluster, agenda: Agenda) -> None:
        self._cluster = cluster
        self._agenda = agenda
        self._kinds: dict[type[Fault], Callable[[Any, Member], None]] = {
            Kill: self._kill,
            Reload: self._reload,
            Slow: self._slow,
            Brownout: self._brownout,
            Refuse: self._refuse,
            Hang: self._hang,
            Mute: self._mute,
        }

    def strike(self, fault: Fault) -> None:
        """It happens now."""
        self._kinds[type(fault)](fault, self._cluster.members[fault.engine])

    def _kill(self, fault: Kill, member: Member) -> None:
        if member.state in ("up", "loading"):
            self._cluster.die(
                member, "its process was killed", crashed=True, noticed_after=fault.noticed_after
            )
            if fault.restart_after is not None:
                self._cluster.up_in(member, fault.restart_after)

    def _reload(self, fault: Reload, member: Member) -> None:
        if member.state in ("up", "loading"):
            self._cluster.die(member, "it is loading", crashed=False)
            self._cluster.up_in(member, fault.for_s)

    def _slow(self, fault: Slow, member: Member) -> None:
        member.slow_until = max(member.slow_until, fault.at + fault.for_s)
        self._pace(member, fault.factor)
        self._agenda.at(fault.at + fault.for_s, self._no_longer_slow, member)

    def _no_longer_slow(self, member: Member) -> None:
        if self._agenda.now >= member.slow_until:
            self._pace(member, 1.0)

    def _pace(self, member: Member, factor: float) -> None:
        member.sim.slow = factor
        member.sim.cut(self._agenda.now)
        self._cluster.touch(member)

    def _brownout(self, fault: Brownout, member: Member) -> None:
        member.brownout = (fault.at + fault.for_s, fault.share, fault.after)

    def _refuse(self, fault: Refuse, member: Member) -> None:
        member.refuse_until = max(member.refuse_until, fault.at + fault.for_s)

    def _mute(self, fault: Mute, member: Member) -> None:
        member.mute_until = max(member.mute_until, fault.at + fault.for_s)

    def _hang(self, fault: Hang, member: Member) -> None:
        member.hang_until = max(member.hang_until, fault.at + fault.for_s)
        if member.state == "up":
            member.sim.freeze(self._agenda.now)
            self._cluster.touch(member)
        self._agenda.at(fault.at + fault.for_s, self._thaw, member)

    def _thaw(self, member: Member) -> None:
        if self._agenda.now >= member.hang_until and member.sim.frozen:
            member.sim.thaw(self._agenda.now)
            self._cluster.touch(member)
