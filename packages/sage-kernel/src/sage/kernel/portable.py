"""Which operators may run on workers: the rules of `parallelism`, `resources` and `scale`."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from typing import Any

from sage.common.errors import SageError
from sage.kernel.modes import Mode, mode_for
from sage.kernel.options import Use
from sage.kernel.plan import Iterate, Node, Plan
from sage.kernel.registry import Registry
from sage.kernel.services import service_calls

__all__ = ["misfits", "problems"]

_STATELESS = ("map", "flatmap", "filter", "map_batch")


def problems(plan: Plan, registry: Registry) -> Iterator[str]:
    """What is wrong with where operators of the plan are to run; factories are loaded and not called."""
    for node in plan.nodes:
        provision = node.provision
        parallel, scale = provision.parallelism, provision.scale
        if parallel and scale and not scale.min <= parallel.n <= scale.max:
            yield f"{node.name!r} begins with {parallel.n} workers, which its {scale} does not allow"
        if parallel and node.call.cache is not None:
            yield f"{node.name!r} runs on workers, whose results no cache keeps: take cache= or parallelism="
        if not isinstance(node.fn, Use):  # what a factory makes is seen when it is made
            yield from misfits(node, mode_for(node.verb, node.fn))
        if parallel and parallel.kind == "process" and node.verb in _STATELESS:
            yield from _stays(node, registry)
        if isinstance(node.fn, Iterate):
            yield from problems(node.fn.body, registry)


def misfits(node: Node, mode: Mode) -> Iterator[str]:
    """What an operator whose code is called that way cannot have."""
    parallel, scale = node.provision.parallelism, node.provision.scale
    if parallel and node.verb not in _STATELESS:
        yield f"{node.name!r} is a {node.verb}: only {', '.join(_STATELESS)} keep no state and run on workers"
    elif parallel and mode != "sync":
        yield f"{node.name!r} is asynchronous and needs no workers: give it concurrency=, not parallelism="
    elif scale and mode != "sync":
        yield f"{node.name!r} is asynchronous: scale= counts workers; concurrency= is its own bound"
    elif scale and not parallel:
        yield f"{node.name!r} has scale= and no workers to count: give it parallelism= as well"


def _stays(node: Node, registry: Registry) -> Iterator[str]:
    """Why the code of a node cannot be sent to another process."""
    if isinstance(node.fn, Use):
        try:
            what: Any = registry.get(node.fn.name, "function").factory
        except SageError:
            return  # the registry reports it itself
        spelled = f"the factory of {node.fn.name!r}"
    else:
        what, spelled = node.fn, f"{node.fn!r}"
        for name in sorted({call.name for call in service_calls(node.fn)}):
            yield (
                f"{node.name!r} runs in processes, where there are no services, and calls {name!r}: run it "
                "in threads: Parallel(n, 'thread')"
            )
    try:
        data = pickle.dumps(what, 5)
    except Exception as error:
        yield (
            f"{node.name!r} runs in processes, and {spelled} cannot be sent there ({error}): move it to the "
            "top level of a module, or run it in threads: Parallel(n, 'thread')"
        )
        return
    if b"__main__" in data and not hasattr(sys.modules["__main__"], "__file__"):
        yield (
            f"{node.name!r} runs in processes, and {spelled} was made in an interactive session: move it to "
            "a module, or run it in threads: Parallel(n, 'thread')"
        )
