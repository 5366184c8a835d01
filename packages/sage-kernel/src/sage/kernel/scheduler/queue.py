"""Jobs that wait for room and nodes that come and go: a state machine without clock, threads or I/O.

A job holds all of what its units need or nothing, so no job ever waits for another that waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from sage.common.errors import ConflictError, NotFoundError, OverloadedError
from sage.kernel.scheduler.jobs import Job, Line, Shape, new_job
from sage.kernel.scheduler.policy import Policy
from sage.kernel.scheduler.selection import require, select_group
from sage.kernel.scheduler.snapshot import Snapshot
from sage.kernel.scheduler.state import room
from sage.kernel.scheduler.types import InfeasibleError, Node, Placement, Unit, Wait, Withdrawal

__all__ = ["Change", "Queue"]

_REMEMBERED = 4096  # shapes

Change: TypeAlias = Placement | Withdrawal
"""What the caller does: start the unit there, or hold it for ended there. In the order given."""


class Queue:
    """Submitted jobs over a changing set of nodes.

    Each event returns what is to be done about it. `snapshot` is what is placed now, `policy` what decides;
    at most `limit` jobs wait.
    """

    def __init__(self, policy: Policy, nodes: Iterable[Node] = (), *, limit: int = 10_000) -> None:
        self.policy, self.limit = policy, limit
        self.snapshot = Snapshot(nodes)
        self._empty = self.snapshot  # the same nodes with nothing on them, for what could ever run
        self._verdicts: dict[Shape, str] = {}  # why a shape cannot run on them; empty = it can
        self._jobs: dict[str, Job] = {}
        self._job_of: dict[str, Job] = {}  # by the id of a unit
        self._parked: dict[str, Job] = {}  # cannot run on the nodes that are up now
        self._line = Line()  # all that wait, but for those apart
        self._lanes: dict[Shape, Line] = {}  # those of one shape, blocked together
        self._open: dict[Shape, Line] = {}  # the lanes that are not blocked
        self._kept_for: Job | None = None  # was overtaken so often that nodes are kept free for it
        self._kept: tuple[str, ...] = ()
        self._submitted = 0

    @property
    def waiting(self) -> dict[str, Wait]:
        """The jobs that wait, the most urgent first, and why."""
        jobs = [*self._line, *self._parked.values(), *filter(None, [self._kept_for])]
        jobs.sort(key=lambda job: job.order)
        return {job.name: Wait(self._why(job)) for job in jobs}

    @property
    def placed(self) -> Mapping[str, Placement]:
        """What is placed, by the unit's id; collected anew at each call."""
        return self.snapshot.placed

    def submit(self, *units: Unit) -> tuple[Change, ...]:
        """A new job: one unit, or all units of one group.

        Raises InfeasibleError where it could not run even if nothing else did, UsageError where the units are
        no job, ConflictError where the job or a unit is known already, OverloadedError where as many jobs
        wait as may. Then nothing has changed.
        """
        job = new_job(units, self.policy, self._submitted + 1)
        known = [f"unit {unit!r}" for unit in job.units if unit in self._job_of]
        known += [f"job {job.name!r}"] * (job.name in self._jobs)
        if known:
            raise ConflictError(f"Known already: {', '.join(known)}; a new job needs names of its own.")
        if self._verdict(job):
            require(self._empty, units, self.policy)
        if len(self._line) + len(self._parked) >= self.limit:
            raise OverloadedError(
                f"{self.limit} jobs wait for room, as many as may.", hint="Try again later."
            )
        self._submitted += 1
        self._jobs[job.name] = job
        self._job_of.update(dict.fromkeys(job.units, job))
        self._wait(job)
        return self._pump(())

    def release(self, *units: str) -> tuple[Change, ...]:
        """These units have ended; a job whose units have all ended is forgotten.

        Raises NotFoundError, with nothing changed, where one of them is not placed.
        """
        for unit in units:
            if unit not in self._job_of or unit not in self._job_of[unit].placed:
                raise NotFoundError(f"Unit {unit!r} is not placed; `cancel` takes jobs that wait.")
        freed = [self._end(unit) for unit in dict.fromkeys(units)]
        return self._pump(freed)

    def cancel(self, job: str) -> tuple[Change, ...]:
        """The job is not wanted any more, whether it waits or is placed; raises NotFoundError."""
        found = self._jobs.get(job)
        if found is None:
            raise NotFoundError(f"There is no job {job!r}; there are {len(self._jobs)} others.")
        freed: tuple[str, ...] = ()
        if found is self._kept_for:
            freed = self._stop_keeping()
        self._parked.pop(job, None)
        self._leave(found)
        return self._pump([*freed, *filter(None, [self._end(unit) for unit in list(found.units)])])

    def node_up(self, node: Node) -> tuple[Change, ...]:
        """A node has come, or come back. Raises ConflictError for one that is up and was something else."""
        if node.name in self.snapshot and (known := self.snapshot[node.name].node).alive:
            if known == node:
                return ()
            raise ConflictError(
                f"Node {node.name!r} is up as {known}; `node_down` comes before a change of it."
            )
        self.snapshot, self._empty = self.snapshot.join(node), self._empty.join(node)
        self._verdicts.clear()
        for job in self._parked.values():
            self._wait(job)
        self._parked.clear()
        return self._pump((node.name,))

    def node_down(self, name: str) -> tuple[Change, ...]:
        """A node was lost with all that ran there, which is placed again; raises NotFoundError.

        Where there is no room for what a job lost, it is withdrawn whole and waits, the least urgent first.
        """
        lost = list(self.snapshot[name].placed.values())
        down = replace(self.snapshot[name].node, alive=False)
        freed = list(self._stop_keeping())
        self.snapshot, self._empty = self.snapshot.join(down), self._empty.join(down)
        self._verdicts.clear()
        for placement in lost:
            del self._job_of[placement.unit.id].placed[placement.unit.id]
        self._open |= self._lanes  # each is looked at again: it may be that it cannot run at all now
        changes: list[Change] = [Withdrawal(one.unit, name, f"node {name!r} is down") for one in lost]
        hurt = {job.name: job for job in (self._job_of[one.unit.id] for one in lost)}
        changes += self._place_again(sorted(hurt.values(), key=lambda job: job.order), freed)
        return (*changes, *self._pump(freed))

    def node_gone(self, name: str) -> tuple[Change, ...]:
        """As `node_down`, and the node is forgotten."""
        changes = self.node_down(name)
        self.snapshot, self._empty = self.snapshot.leave(name), self._empty.leave(name)
        return changes

    def _pump(self, freed: Sequence[str]) -> tuple[Change, ...]:
        """Start what has room; `freed` are the nodes on which more is free than before."""
        kept, fresh = self._kept, set(self._open)
        changes: list[Change] = list(self._serve_kept(freed))
        freed = (*freed, *kept) if changes else freed
        self._unblock(freed)
        while (job := self._next()) is not None:
            if job.shape not in fresh and not self._has_room(job.shape, freed):
                del self._open[job.shape]  # others took what was freed, and nothing else has changed
                continue
            found = select_group(self.snapshot, tuple(job.units.values()), self.policy)
            if isinstance(found, Wait):
                if self._verdict(job):
                    self._leave(job)
                    self._parked[job.name] = job
                else:
                    self._open.pop(job.shape).short = found.reason
                continue
            changes += self._start(job, found)
            first = self._line.first()
            if first is not None and first.order < job.order:
                first.overtaken += 1
                self._keep_for(first)
        return tuple(changes)

    def _next(self) -> Job | None:
        """The most urgent of those that may have room; under a strict policy only the first of all."""
        if not self.policy.overtaking:
            first = self._line.first()
            return first if first is not None and first.shape in self._open else None
        heads = [job for lane in self._open.values() if (job := lane.first())]
        return min(heads, key=lambda job: job.order, default=None)

    def _unblock(self, freed: Sequence[str]) -> None:
        """Look again at the lanes of which something fits where more is free."""
        if freed:
            self._open |= {
                shape: lane
                for shape, lane in self._lanes.items()
                if shape not in self._open and self._has_room(shape, freed)
            }

    def _has_room(self, shape: Shape, names: Sequence[str]) -> bool:
        """Whether any unit of that shape would fit on any of these nodes, were none kept for another job."""
        states = [self.snapshot[name] for name in dict.fromkeys(names)]
        states = [state._replace(closed="") if state.node.alive else state for state in states]
        return any(room(state, need) is not None for state in states for need in dict.fromkeys(shape))

    def _wait(self, job: Job) -> None:
        self._line.push(job)
        lane = self._lanes.get(job.shape)
        if lane is None:
            lane = self._lanes[job.shape] = self._open[job.shape] = Line()
        lane.push(job)

    def _leave(self, job: Job) -> None:
        """It does not wait any more."""
        if job not in self._line:
            return
        self._line.drop(job)
        # A lane is one of a shape, and a job may come back in another one: nothing of it may stay there.
        lane = self._lanes[job.shape]
        lane.drop(job)
        if not lane:
            del self._lanes[job.shape]
            self._open.pop(job.shape, None)

    def _verdict(self, job: Job) -> str:
        """Why it could not run even if nothing else did; empty = it could."""
        if job.shape not in self._verdicts:
            if len(self._verdicts) >= _REMEMBERED:
                self._verdicts.clear()
            try:
                require(self._empty, tuple(job.units.values()), self.policy)
                self._verdicts[job.shape] = ""
            except InfeasibleError as error:
                self._verdicts[job.shape] = error.message
        return self._verdicts[job.shape]

    def _start(self, job: Job, placements: tuple[Placement, ...]) -> tuple[Placement, ...]:
        self._leave(job)
        for placement in placements:
            self.snapshot = self.snapshot.place(placement)
            job.placed[placement.unit.id] = placement
        job.overtaken = 0
        return placements

    def _end(self, unit: str) -> str:
        """Forget the unit; the name of the node that it was on, empty where it waited."""
        job = self._job_of.pop(unit)
        del job.units[unit]
        if not job.units:
            del self._jobs[job.name]
        placement = job.placed.pop(unit, None)
        if placement is None:
            return ""
        self.snapshot = self.snapshot.release(placement)
        return placement.node

    def _place_again(self, hurt: list[Job], freed: list[str]) -> list[Change]:
        """Place what these jobs lost, the most urgent first; withdraw the others whole, adding to `freed`."""
        changes: list[Change] = []
        while hurt:
            short: list[Job] = []
            for job in hurt:
                lost = tuple(unit for unit in job.units.values() if unit.id not in job.placed)
                found = select_group(self.snapshot, lost, self.policy)
                if isinstance(found, Wait):
                    short.append(job)
                else:
                    changes += self._start(job, found)
            if short:
                job = short.pop()
                for placement in job.placed.values():
                    self.snapshot = self.snapshot.release(placement)
                    freed.append(placement.node)
                    changes.append(
                        Withdrawal(placement.unit, placement.node, f"job {job.name!r} lost others")
                    )
                job.placed.clear()
                self._wait(job)
            hurt = short
        return changes

    def _keep_for(self, job: Job) -> None:
        """Keep nodes free for it, once it was overtaken as often as the policy allows."""
        if self._kept_for is not None or job.overtaken < self.policy.overtaking:
            return
        plan = select_group(self._empty, tuple(job.units.values()), self.policy)
        if isinstance(plan, Wait):
            return  # nodes that it needs are down
        self._kept_for, self._kept = job, tuple(dict.fromkeys(one.node for one in plan))
        self._leave(job)
        self.snapshot = self.snapshot.close(self._kept, f"is kept for {job.name!r}")

    def _stop_keeping(self) -> tuple[str, ...]:
        """Let all use the kept nodes; returns their names."""
        kept, job, self._kept, self._kept_for = self._kept, self._kept_for, (), None
        self.snapshot = self.snapshot.close(kept, "")
        if job is not None:
            self._wait(job)
        return kept

    def _serve_kept(self, freed: Sequence[str]) -> tuple[Change, ...]:
        """Start the job that nodes are kept for, if it has room: anywhere, else on these nodes alone."""
        job, kept = self._kept_for, self._kept
        if job is None or not self._has_room(job.shape, freed):
            return ()
        opened, units = self.snapshot.close(kept, ""), tuple(job.units.values())
        found = select_group(opened, units, self.policy)
        if isinstance(found, Wait):
            found = select_group(opened.only(kept), units, self.policy)
        if isinstance(found, Wait):
            return ()
        self.snapshot, self._kept_for, self._kept = opened, None, ()
        return self._start(job, found)

    def _why(self, job: Job) -> str:
        if job is self._kept_for:
            return f"it was overtaken too often; kept free for it: {', '.join(self._kept[:5])}"
        if job.name in self._parked:
            return self._verdict(job)
        if job.shape not in self._open:
            return self._lanes[job.shape].short
        first = self._line.first()
        return f"job {first.name!r} goes first" if first is not None else ""
