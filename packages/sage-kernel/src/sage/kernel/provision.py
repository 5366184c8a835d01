"""On what an operator runs: how many workers beside the event loop, and what each of them takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from sage.common.errors import UsageError
from sage.kernel.options import Order

if TYPE_CHECKING:  # the scheduler is imported when a plan asks for resources
    from sage.kernel.scheduler import Resources

__all__ = ["Parallel", "Provision", "Scale", "WorkerKind", "provisioned"]

WorkerKind: TypeAlias = Literal["process", "thread"]


@dataclass(frozen=True, slots=True)
class Parallel:
    """Run on `n` workers beside the event loop; neighbours of equal setting run there together.

    Processes compute at the same time. Threads do so where the code gives up the interpreter lock, and need
    no importable function. Results come in the order of their records, or, with `order="any"`, as they come.
    """

    n: int = 1
    kind: WorkerKind = "process"
    order: Order = "input"

    def __post_init__(self) -> None:
        if type(self.n) is not int or self.n < 1 or self.kind not in ("process", "thread"):
            raise UsageError(f"{self} needs a whole n >= 1 and a kind 'process' or 'thread'.")
        if self.order not in ("input", "any"):
            raise UsageError(f"{self} needs an order 'input' or 'any'.")


@dataclass(frozen=True, slots=True)
class Scale:
    """Keep between `min` and `max` workers, more while records queue for over `target_wait` seconds."""

    min: int = 1
    max: int = 1
    target_wait: float = 0.5

    def __post_init__(self) -> None:
        whole = type(self.min) is type(self.max) is int
        if not whole or not 1 <= self.min <= self.max or self.target_wait <= 0:
            raise UsageError(f"{self} needs 1 <= min <= max and target_wait > 0.")


@dataclass(frozen=True, slots=True)
class Provision:
    """What a flow said about it; None: nothing. `resources` are those of one worker."""

    parallelism: Parallel | None = None
    resources: Resources | None = None
    scale: Scale | None = None


def provisioned(
    parallelism: int | Parallel | None, resources: Resources | None, scale: Scale | None
) -> Provision:
    """The keywords of an operator as one value; a number of workers means processes."""
    given = Parallel(parallelism) if isinstance(parallelism, int) else parallelism
    return Provision(given, resources, scale)
