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

from sage.common.errors import BadRequestError, SageError
from sage.kernel.jobs.line import Line
from sage.kernel.jobs.messages import (
    Beat,
    Begin,
    Check,
    Checked,
    Drain,
    Failed,
    Finished,
    Order,
    Pause,
    Running,
    Word,
)
from sage.kernel.jobs.sources import check, load
from sage.kernel.registry import default_registry
from sage.kernel.runtime.local import LocalEnvironment
from sage.kernel.runtime.report import OperatorReport

__all__ = ["main"]

_PULSE_S = 0.25  # between two looks at whether the event loop moves


class _Work:
    """One run of a flow, ordered and told about over the line."""

    def __init__(self, order: Begin, line: Line) -> None:
        self._order = order
        self._line = line
        self._stop = asyncio.Event()
        self._moved = time.monotonic()
        self._reports: tuple[OperatorReport, ...] = ()

    async def run(self) -> Word:
        """Until its end; the last word."""
        flow = load(self._order.source)
        check(flow, default_registry())
        loop = asyncio.get_running_loop()
        pulse = asyncio.create_task(self._pulse())
        self._line.beat = self._beat
        self._line.listen(lambda order: loop.call_soon_threadsafe(self._obey, order))
        environment = LocalEnvironment(on_progress=self._keep)
        self._line.say(Running(None))
        try:
            report = await environment.run(flow, stop=self._stop)
        finally:
            pulse.cancel()
        return Finished(plain(report.operators))

    def _keep(self, reports: tuple[OperatorReport, ...]) -> None:
        self._reports = reports

    def _obey(self, order: Order) -> None:
        if isinstance(order, Drain | Pause):
            self._stop.set()

    async def _pulse(self) -> None:
        while True:
            self._moved = time.monotonic()
            await asyncio.sleep(_PULSE_S)

    def _beat(self) -> Beat:
        stuck = time.monotonic() - self._moved
        return Beat(round(stuck, 3) if stuck > 2 * _PULSE_S else 0.0, plain(self._reports))


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
        check(flow, default_registry())
        return Checked(flow.name)
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
    line.say(word)
    line.close()
    return 1 if isinstance(word, Failed) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
