"""The channels that a stage writes to, its own and those of its diverted items."""

from __future__ import annotations

from time import perf_counter_ns
from typing import Any

from sage.kernel.runtime.channel import Writer
from sage.kernel.runtime.columns import Barrier, Batch, Control
from sage.kernel.runtime.kernels import Faults
from sage.kernel.runtime.report import Counters

__all__ = ["Outputs"]


class Outputs:
    """Writes to the readers of a stage: all get each batch."""

    def __init__(
        self, outs: list[Writer], diverted: list[tuple[Faults, list[Writer]]], counters: Counters
    ) -> None:
        self._outs = outs
        self._diverted = diverted
        self._counters = counters
        self._all = (*outs, *(writer for _, writers in diverted for writer in writers))
        self.any = bool(outs or diverted)

    async def send(self, items: Batch) -> None:
        """Put a batch and what was diverted meanwhile; returns once there is room for all."""
        if items:
            for writer in self._outs:
                if not writer.try_put(items):
                    await self._wait(writer, items)
        for faults, writers in self._diverted:
            if faults.failures:
                failures: list[Any] = list(faults.take())
                for writer in writers:
                    if not writer.try_put(failures):
                        await self._wait(writer, failures)

    @property
    def behind(self) -> bool:
        """Whether something was diverted that is not sent yet."""
        return any(faults.failures for faults, _ in self._diverted)

    def control(self, message: Control) -> None:
        """Send a message behind all that was put; what is diverted has no event time, and needs none."""
        assert not isinstance(message, Barrier), "a stage lets barriers pass with `Participant.take`"
        for writer in self._outs:
            writer.control(message)

    def barrier(self, barrier: Barrier) -> None:
        """Send a barrier behind all that was put, also where items are diverted."""
        for writer in self._all:
            writer.control(barrier)

    def hurry(self) -> None:
        """Let what is being put go in, room or not: behind it comes a barrier."""
        for writer in self._all:
            writer.hurry()

    def close(self) -> None:
        """End the streams."""
        for writer in self._all:
            writer.close()

    async def _wait(self, writer: Writer, items: Batch) -> None:
        start = perf_counter_ns()
        await writer.put(items)
        self._counters.wait += perf_counter_ns() - start
