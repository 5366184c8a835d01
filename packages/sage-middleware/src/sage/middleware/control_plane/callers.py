"""For whom a pipeline calls models: carried with its request into every call that it makes."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from sage.common.telemetry import HEADER_CLASS, HEADER_PARENT, HEADER_PRIORITY, RequestClass
from sage.middleware.engines.port import CHAT, EMBEDDINGS, Route, Usage

__all__ = ["CALLER", "NOBODY", "Caller"]

_LOWER: Final = {CHAT: RequestClass.BATCH.value, EMBEDDINGS: RequestClass.EMBED_BULK.value}


def _unused(_usage: Usage) -> None:
    """Nobody counts."""


@dataclass(frozen=True, slots=True)
class Caller:
    """One request that a pipeline answers. Its calls share its deadline, by `request_id`.

    `lowered`: it goes behind interactive requests, and so do they. `max_tokens`: no text that is generated
    for it is longer. `used` is told what each call has taken. `within`: the pipelines that it is in, the
    outermost first.
    """

    tenant: str = "pipeline"
    request_id: str = ""
    lowered: bool = False
    priority: int = 0
    max_tokens: int | None = None
    used: Callable[[Usage], None] = _unused
    within: tuple[str, ...] = ()

    def headers(self, route: Route, *, bulk: bool = False) -> dict[str, str]:
        """What a call of it says of itself. `bulk`: nobody waits for that one."""
        found: dict[str, str] = {}
        if self.request_id:
            found[HEADER_PARENT] = self.request_id
        if (bulk or self.lowered) and route in _LOWER:
            found[HEADER_CLASS] = _LOWER[route]
        if self.priority:
            found[HEADER_PRIORITY] = str(self.priority)
        return found

    def cap(self, asked: int | None) -> int | None:
        """The most tokens of one answer, where a pipeline asks for `asked`."""
        bounds = [bound for bound in (asked, self.max_tokens) if bound is not None]
        return min(bounds, default=None)


NOBODY: Final = Caller()
CALLER: Final[ContextVar[Caller]] = ContextVar("sage_caller", default=NOBODY)
