"""What a run tells of itself to a tracer: nothing here, all in `tracing`, which needs OpenTelemetry."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

from sage.kernel.runtime.chain import Chain, Step
from sage.kernel.runtime.kernels import Kernel
from sage.kernel.runtime.report import Counters

__all__ = ["HeadCall", "Runner", "Spans", "Visit"]

Runner: TypeAlias = Callable[[asyncio.TaskGroup], Coroutine[Any, Any, None]]
HeadCall: TypeAlias = Callable[[Any], Coroutine[Any, Any, list[Any]]]
Visit: TypeAlias = Callable[[Any, Any, Any], Coroutine[Any, Any, None]]


class Spans:
    """Wraps the parts of a run once, when they are made; these wrap nothing."""

    def run(self) -> AbstractContextManager[None]:
        """A finite run."""
        return nullcontext()

    def stage(self, _operators: Sequence[Counters], runner: Runner) -> Runner:
        """A stage of a finite run, with the counters of its operators."""
        return runner

    def visit(self, visit: Visit) -> Visit:
        """A request's way through the stations."""
        return visit

    def head(self, _name: str, head: HeadCall) -> HeadCall:
        """What a request waits for at a station."""
        return head

    def kernel(self, steps: Sequence[Step]) -> Kernel:
        """The operators that are fused behind it."""
        return Chain(steps).run
