"""The one table of routes: the protocol, both FastAPI applications and the test of default deny read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from sage.middleware.engines.port import Route

__all__ = ["HOT", "ROUTES", "Entry", "on_listener"]

Listener = Literal["data", "admin"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One method on one path. `hot` routes are served in the protocol, the others by FastAPI."""

    listener: Listener
    method: str
    path: str
    name: str
    hot: Route | None = None


ROUTES: Final[tuple[Entry, ...]] = (
    *(Entry("data", "POST", f"/v1/{route.value}", route.name.lower(), route) for route in Route),
    Entry("data", "GET", "/", "index"),
    Entry("data", "GET", "/v1/models", "list_models"),
    Entry("data", "GET", "/v1/models/{model:path}", "get_model"),
    Entry("admin", "GET", "/admin/v1/status", "status"),
    Entry("admin", "GET", "/admin/v1/engines", "engines"),
    Entry("admin", "GET", "/admin/v1/policy", "policy"),
    Entry("admin", "PUT", "/admin/v1/policy", "set_policy"),
    Entry("admin", "GET", "/admin/v1/queues", "queues"),
    Entry("admin", "GET", "/admin/v1/metrics", "metrics"),
    Entry("admin", "GET", "/metrics", "exposition"),
    Entry("admin", "GET", "/admin/v1/decisions", "decisions"),
    Entry("admin", "GET", "/admin/v1/decisions/{request_id}", "decision"),
    Entry("admin", "GET", "/admin/v1/config", "config"),
    Entry("admin", "GET", "/admin/v1/nodes", "nodes"),
)

HOT: Final[dict[str, Route]] = {entry.path: entry.hot for entry in ROUTES if entry.hot is not None}


def on_listener(listener: Listener) -> tuple[Entry, ...]:
    """The entries that FastAPI serves on one listener."""
    return tuple(entry for entry in ROUTES if entry.listener == listener and entry.hot is None)
