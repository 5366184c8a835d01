"""What the scheduler speaks of: demands, nodes, units of work, and what was decided about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from typing import NamedTuple

from sage.common.errors import BadRequestError, UsageError
from sage.kernel.scheduler.sizes import format_short, parse_bytes

__all__ = [
    "WHOLE",
    "InfeasibleError",
    "Labels",
    "Missing",
    "Need",
    "Node",
    "Placement",
    "Resources",
    "Unit",
    "Wait",
    "Withdrawal",
    "amounts",
    "milli",
]

Labels = tuple[tuple[str, str], ...]

WHOLE = 1000  # a core and a device are a thousand parts: sums of whole numbers come out even


@dataclass(frozen=True, init=False)
class Resources:
    """What one unit takes of one node as long as it runs.

    `cpu`: cores, in steps of 0.001. `gpu`: whole devices, or below 1 a share of one. `memory`: bytes of the
    node. `gpu_memory`: bytes that each device must have for it; a share without it takes the same share of
    the device's memory. `labels`: what the node's labels must say. Raises UsageError listing what is wrong.
    """

    cpu: float
    gpu: float
    memory: int
    gpu_memory: int
    labels: Labels

    def __init__(
        self,
        cpu: float = 1.0,
        gpu: float = 0.0,
        memory: int | str = 0,
        gpu_memory: int | str = 0,
        labels: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    ) -> None:
        set_field = object.__setattr__
        set_field(self, "cpu", cpu)
        set_field(self, "gpu", gpu)
        set_field(self, "memory", parse_bytes(memory, "Resources.memory"))
        set_field(self, "gpu_memory", parse_bytes(gpu_memory, "Resources.gpu_memory"))
        set_field(self, "labels", _sorted_labels(labels))
        if problems := _problems(self):
            raise UsageError(f"Resources: {'; '.join(problems)}.")

    @cached_property
    def need(self) -> Need:
        """The same in whole numbers."""
        gpu = milli(self.gpu)
        gpus, share = (0, gpu) if gpu < WHOLE else (gpu // WHOLE, 0)
        return Need(milli(self.cpu), self.memory, gpus, share, self.gpu_memory, self.labels)


@dataclass(frozen=True, slots=True)
class Node:
    """One machine and all that units may use of it.

    `gpus`: bytes of memory of each device; a device's number is its place there. A node that is not `alive`
    gets nothing.
    """

    name: str
    cpus: float
    memory: int = 0
    gpus: tuple[int, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    alive: bool = True

    def __post_init__(self) -> None:
        if not self.name or not _thousandths(self.cpus) or min((self.memory, *self.gpus)) < 0:
            raise UsageError(
                f"Node {self.name!r} has cpus={self.cpus!r}, memory={self.memory!r}, gpus={self.gpus!r}; "
                "valid is a name, cores in steps of 0.001, and bytes that are not negative."
            )


@dataclass(frozen=True, slots=True)
class Unit:
    """One piece of work that runs on one node: an operator's replica, an engine.

    `arrival`: when it came, in seconds on any one clock. `priority`: more is more urgent. `group`: the units
    of one group start together or not at all. `near`: names of nodes that hold its data, the best first.
    `spread`: units of the same key go to different nodes where that can be. The last two are wishes.
    """

    id: str
    resources: Resources = field(default_factory=Resources)
    priority: int = 0
    arrival: float = 0.0
    group: str = ""
    near: tuple[str, ...] = ()
    spread: str = ""

    def __post_init__(self) -> None:
        if not self.id or not isfinite(self.arrival):
            raise UsageError(
                f"Unit {self.id!r} has arrival={self.arrival!r}; valid is an id and a finite number."
            )


@dataclass(frozen=True, slots=True)
class Placement:
    """`unit` goes to `node`, on the devices of these numbers; `reason` says why there.

    `number` counts placements: it is one more than the newest that was there.
    """

    unit: Unit
    node: str
    devices: tuple[int, ...] = ()
    number: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing has room for it now; `reason` says what is short."""

    reason: str


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """`unit` is not on `node` any more: the node was lost, or its job waits whole again."""

    unit: Unit
    node: str
    reason: str


class InfeasibleError(BadRequestError):
    """No node could run it, even if all were empty; the message names what is missing on which nodes."""

    code = "infeasible"


class Missing(NamedTuple):
    """What a node lacks for a unit: `Missing("cpu", "4", "2.5", 0.625)`.

    `part`: found by wanted, 0 where that is no number.
    """

    what: str
    wanted: str
    found: str
    part: float = 0.0

    def __str__(self) -> str:
        return f"{self.what} {self.wanted} (has {self.found})"


class Need(NamedTuple):
    """Resources in whole numbers: thousandths of cores and of a device, bytes."""

    cpu: int
    memory: int
    gpus: int  # whole devices
    share: int  # thousandths of one device, 0 where whole ones are wanted
    gpu_memory: int
    labels: Labels


def amounts(what: str, wanted: int, found: int) -> tuple[str, str]:
    """Both in the words of users: `what` is counted in bytes where it is a memory, else in thousandths."""
    if what.endswith("memory"):
        return format_short(wanted, found)
    return f"{wanted / WHOLE:.10g}", f"{found / WHOLE:.10g}"


def milli(amount: float) -> int:
    """Thousandths, of what is known to be a number of them."""
    return round(amount * WHOLE)


def _thousandths(amount: float) -> bool:
    return isfinite(amount) and amount >= 0 and abs(amount * WHOLE - round(amount * WHOLE)) < 1e-6


def _sorted_labels(labels: Mapping[str, str] | Iterable[tuple[str, str]]) -> Labels:
    return tuple(sorted(dict(labels).items()))


def _problems(resources: Resources) -> list[str]:
    cpu, gpu = resources.cpu, resources.gpu
    problems = []
    if not _thousandths(cpu):
        problems.append(f"cpu is {cpu!r}; valid are cores from 0 in steps of 0.001")
    if not _thousandths(gpu) or (gpu > 1 and gpu != int(gpu)):
        problems.append(
            f"gpu is {gpu!r}; valid are whole devices, or a share of one from 0 to 1 in steps of 0.001"
        )
    if resources.gpu_memory and not gpu:
        problems.append(f"gpu_memory is {resources.gpu_memory} where gpu is 0; valid is gpu above 0")
    return problems
