"""The process of one job: `python -m sage.kernel.jobs.worker FD`, where FD is its line to the manager."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
import traceback
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from sage.common.errors import BadRequestError, SageError, UnavailableError
from sage.kernel.jobs.demand import demand_of
from sage.kernel.jobs.line import Line
from sage.kernel.jobs.messages import (
    Beat,
    Begin,
    Check,
    Checked,
    Decide,
    Drain,
    Failed,
    Finished,
    Gates,
    Order,
    Pause,
    Paused,
    Running,
    Saved,
    Word,
)
from sage.kernel.jobs.parked import answer
from sage.kernel.jobs.sources import check, load, services_of
from sage.kernel.options import Checkpoints
from sage.kernel.registry import default_registry
from sage.kernel.runtime.local import LocalEnvironment
from sage.kernel.runtime.report import OperatorReport
from sage.kernel.runtime.run import Run

__all__ = ["main"]

_PULSE_S = 0.25  # between two looks at whether the event loop moves


class _Work:
    """One run of a flow, ordered and told about over the line."""

    def __init__(self, order: Begin, line: Line) -> None:
        self._order = order
        self._line = line
        self._orders: asyncio.Queue[Order] = asyncio.Queue()
        self._moved = time.monotonic()
        self._run: Run | None = None
        self._gates: dict[str, int] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._cut = False  # its end is ours, behind a checkpoint
        self._saved: int | None = None  # the newest checkpoint that was told; None = it has not begun

    async def run(self) -> Word:
        """Until its end; the last word."""
        flow = load(self._order.source)
        services = services_of(self._order.source)
        check(flow, default_registry(), services)
        loop = asyncio.get_running_loop()
        pulse = asyncio.create_task(self._pulse())
        self._line.beat = self._beat

        def hand_over(order: Order) -> None:
            loop.call_soon_threadsafe(self._orders.put_nowait, order)

        self._line.listen(hand_over)
        checkpoints = Checkpoints(self._order.checkpoints, self._order.every)
        environment = LocalEnvironment(checkpoints=checkpoints)
        for name, factory in services.items():
            environment.register_service(name, factory)
        self._run = run = await environment.start(flow)
        obeying = asyncio.create_task(self._obey(run))
        ending = asyncio.create_task(_ended(run))
        try:
            if await run.started():
                self._saved, _ = run.epochs
                self._line.say(Running(self._saved or None))
            await asyncio.wait({obeying, ending}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.gather(*self._answering)  # the run is over, so that they end
            return await obeying if self._cut or obeying.done() else ending.result()
        finally:
            for task in (pulse, obeying, ending):
                task.cancel()

    async def _obey(self, run: Run) -> Word:
        """Follow orders until one of them has ended the run."""
        while True:
            order = await self._orders.get()
            if isinstance(order, Gates | Decide):
                task = asyncio.create_task(self._answer(run, order))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
            elif isinstance(order, Drain):
                await run.stop()
            elif isinstance(order, Pause):
                with contextlib.suppress(UnavailableError):  # it has come to its end meanwhile
                    await run.pause()
                    await run.checkpoint()
                    self._tell_saved(run)
                    self._cut = True
                    await run.stop(drain=False)
                    return Paused()

    async def _answer(self, run: Run, order: Gates | Decide) -> None:
        self._line.say(await answer(run, order))

    async def _pulse(self) -> None:
        while True:
            self._moved = time.monotonic()
            if self._run is not None:
                self._tell_saved(self._run)
                self._gates = self._run.inboxes.waiting()
            await asyncio.sleep(_PULSE_S)

    def _tell_saved(self, run: Run) -> None:
        newest = run.epochs[1]
        if self._saved is not None and newest > self._saved:
            self._saved = newest
            self._line.say(Saved(newest, time.time()))

    def _beat(self) -> Beat:
        stuck = time.monotonic() - self._moved
        reports = self._run.reports() if self._run else ()
        return Beat(round(stuck, 3) if stuck > 2 * _PULSE_S else 0.0, plain(reports), self._gates)


async def _ended(run: Run) -> Word:
    """Its last word when it has come to its end, or was drained. Raises what it failed with."""
    report = await run.wait()
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return Finished(plain(report.operators))


def plain(reports: Iterable[OperatorReport]) -> tuple[dict[str, Any], ...]:
    """The counts as messages carry them."""
    return tuple(asdict(report) for report in reports)


def failed(error: Exception) -> Failed:
    """The word for an error; the log has the whole of it."""
    traceback.print_exception(error)
    if isinstance(error, SageError):
        return Failed(error.message, error.hint, error.code)
    return Failed(f"{type(error).__name__}: {error}")


def _answer(order: Order | None, line: Line) -> Word:
    if isinstance(order, Check):
        flow = load(order.source)
        plans = check(flow, default_registry(), services_of(order.source))
        return Checked(flow.name, demand_of(plans))
    if isinstance(order, Begin):
        return asyncio.run(_Work(order, line).run())
    raise BadRequestError(f"The first order is {order}; valid is one to check or to begin.")


def main(argv: list[str]) -> int:
    """Obey one order; 0 unless it failed."""
    sock = socket.socket(fileno=int(argv[0]))
    sock.set_inheritable(False)
    line = Line(sock)
    try:
        word = _answer(line.next_order(), line)
    except Exception as error:
        word = failed(error)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    line.say(line.beat())  # the last counts
    line.say(word)
    line.close()
    return 1 if isinstance(word, Failed) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
