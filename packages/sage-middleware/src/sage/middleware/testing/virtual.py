"""An event loop in virtual time: timers fire in their order and nobody waits for them."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Final, ParamSpec

__all__ = ["LoopClock", "VirtualLoop", "virtual"]

P = ParamSpec("P")

EPOCH: Final = 1_700_000_000.0


class _Selector(selectors.DefaultSelector):
    """Instead of waiting for a timer it moves the time on."""

    waited = 0.0

    def select(self, timeout: float | None = None) -> Any:
        """Look what is ready; wait in earnest only where no timer would end it (for another thread)."""
        if timeout is not None and timeout > 0:
            self.waited += timeout
            timeout = 0
        return super().select(timeout)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its time starts at 0 and jumps to the next timer whenever nothing else is to be done.

    For what happens within one process: what waits for a socket finds that its timeout has passed.
    """

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Virtual seconds."""
        return self._virtual.waited


class LoopClock:
    """The time of the running loop as a `Clock`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def now(self) -> float:
        """The loop's seconds."""
        return self._loop.time()

    def wall(self) -> float:
        """The same, as Unix seconds."""
        return EPOCH + self._loop.time()


def virtual(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an asynchronous test on a `VirtualLoop`."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run
