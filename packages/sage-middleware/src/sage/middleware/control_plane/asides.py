"""Calls that no model computes: tokens of a text, text of tokens. They take no slot and wait in no queue.

Such a call costs an engine's front a fraction of a millisecond and its model nothing. In the queue of an LLM
it would wait behind prefills, take a slot from a generation and teach the cost model what is not so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from sage.common.errors import (
    EngineError,
    OverloadedError,
    SageError,
    TimedOutError,
    UnavailableError,
    UnreachableError,
)
from sage.common.telemetry import Bound
from sage.middleware.engines.port import COUNT_TOKENS, DETOKENIZE, TOKENIZE, Call, Engine, Sink

__all__ = ["ASIDES", "MOST", "Asides"]

ASIDES: Final = frozenset((TOKENIZE, DETOKENIZE, COUNT_TOKENS))
MOST: Final = 64  # at a time: what is more is refused, as nothing else bounds it
LONGEST_S: Final = 10.0
ATTEMPTS: Final = 2
BACK_S: Final = 1.0


class Asides:
    """Sends such calls to the engines that it is given, the next one where the first is at fault.

    Belongs to one event loop. `goodbye` makes the error for those that are open at the end.
    """

    def __init__(self, goodbye: Callable[[], SageError]) -> None:
        self._goodbye = goodbye
        self._open: dict[asyncio.Timeout, bool] = {}  # whether it was ended by us

    def __len__(self) -> int:
        return len(self._open)

    async def serve(self, call: Call, sink: Sink, engines: Sequence[Engine], deadline: float | None) -> None:
        """Serve one call into `sink` within `deadline` seconds.

        Raises OverloadedError when too many are open, UnavailableError without engines, TimedOutError, and
        what the last engine raises.
        """
        if len(self._open) >= MOST:
            raise OverloadedError(
                f"Refused: {MOST} calls about tokens are open.", retry_after=BACK_S, bound=Bound.TOKEN_CALLS
            )
        if not engines:
            raise UnavailableError("No engine that counts tokens is ready now.", retry_after=BACK_S)
        allowed = min(LONGEST_S, LONGEST_S if deadline is None else deadline)
        limit = asyncio.timeout(allowed)
        try:
            async with limit:
                self._open[limit] = False
                await self._send(call, sink, engines)
        except TimeoutError as exc:
            if self._open[limit]:
                raise self._goodbye() from exc
            raise TimedOutError(
                f"The answer was not complete within {allowed:g} s.", bound=Bound.DEADLINE
            ) from exc
        finally:
            self._open.pop(limit, None)

    @staticmethod
    async def _send(call: Call, sink: Sink, engines: Sequence[Engine]) -> None:
        *others, last = engines[:ATTEMPTS]
        for engine in others:
            try:
                await engine.send(call, sink)
                return
            except (EngineError, UnreachableError):
                continue  # nothing of a whole answer has reached the sink
        await last.send(call, sink)

    def close(self) -> None:
        """End those that are open."""
        now = asyncio.get_running_loop().time()
        for limit in self._open:
            self._open[limit] = True
            limit.reschedule(now)
