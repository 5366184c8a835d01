"""The one table of routes: the protocol, both FastAPI applications and the test of default deny read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from sage.common.api import Scope
from sage.middleware.engines.port import Route

__all__ = ["HOT", "ROUTES", "SCOPES", "UPLOADS", "Entry", "on_listener"]

Listener = Literal["data", "admin"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One method on one path. `hot` routes are served in the protocol, the others by FastAPI.

    `scope`: what a key needs for it; only that of the index is empty, which any key may call. `upload`: its
    body goes on as it comes.
    """

    listener: Listener
    method: str
    path: str
    name: str
    scope: Scope | Literal[""]
    hot: Route | None = None
    upload: bool = False


def _admin(method: str, path: str, name: str) -> Entry:
    return Entry("admin", method, path, name, "admin")


_SCOPE_OF: Final[dict[Route, Scope]] = {
    Route.CHAT: "chat",
    Route.COMPLETIONS: "completions",
    Route.MESSAGES: "chat",
    Route.COUNT_TOKENS: "chat",
    Route.RESPONSES: "chat",
    Route.EMBEDDINGS: "embeddings",
    Route.RERANK: "rerank",
    Route.SCORE: "rerank",
    Route.TOKENIZE: "tokens",
    Route.DETOKENIZE: "tokens",
    Route.SPEECH: "audio",
    Route.TRANSCRIPTIONS: "audio",
    Route.TRANSLATIONS: "audio",
    Route.IMAGES: "images",
    Route.IMAGE_EDITS: "images",
}


ROUTES: Final[tuple[Entry, ...]] = (
    *(
        Entry("data", "POST", f"/v1/{route.value}", route.name.lower(), _SCOPE_OF[route], route)
        for route in Route
    ),
    Entry("data", "GET", "/", "index", ""),
    Entry("data", "GET", "/openapi.json", "openapi", "models"),
    Entry("data", "GET", "/v1/models", "list_models", "models"),
    Entry("data", "GET", "/v1/models/{model:path}", "get_model", "models"),
    Entry("data", "GET", "/v1/responses/{response_id}", "get_response", "chat"),
    Entry("data", "DELETE", "/v1/responses/{response_id}", "delete_response", "chat"),
    Entry("data", "GET", "/v1/responses/{response_id}/input_items", "response_items", "chat"),
    Entry("data", "POST", "/v1/files", "upload_file", "files", upload=True),
    Entry("data", "GET", "/v1/files", "list_files", "files"),
    Entry("data", "GET", "/v1/files/{file_id}", "get_file", "files"),
    Entry("data", "GET", "/v1/files/{file_id}/content", "file_content", "files"),
    Entry("data", "DELETE", "/v1/files/{file_id}", "delete_file", "files"),
    Entry("data", "POST", "/v1/batches", "create_batch", "batches"),
    Entry("data", "GET", "/v1/batches", "list_batches", "batches"),
    Entry("data", "GET", "/v1/batches/{batch_id}", "get_batch", "batches"),
    Entry("data", "POST", "/v1/batches/{batch_id}/cancel", "cancel_batch", "batches"),
    _admin("GET", "/admin/v1/openapi.json", "openapi"),
    _admin("GET", "/admin/v1/status", "status"),
    _admin("GET", "/admin/v1/engines", "engines"),
    _admin("GET", "/admin/v1/policy", "policy"),
    _admin("PUT", "/admin/v1/policy", "set_policy"),
    _admin("GET", "/admin/v1/queues", "queues"),
    _admin("GET", "/admin/v1/metrics", "metrics"),
    _admin("GET", "/metrics", "exposition"),
    _admin("GET", "/admin/v1/decisions", "decisions"),
    _admin("GET", "/admin/v1/decisions/{request_id}", "decision"),
    _admin("GET", "/admin/v1/keys", "list_keys"),
    _admin("POST", "/admin/v1/keys", "create_key"),
    _admin("GET", "/admin/v1/keys/{key_id}", "get_key"),
    _admin("PATCH", "/admin/v1/keys/{key_id}", "change_key"),
    _admin("DELETE", "/admin/v1/keys/{key_id}", "revoke_key"),
    _admin("POST", "/admin/v1/keys/{key_id}/rotate", "rotate_key"),
    _admin("GET", "/admin/v1/jobs", "list_jobs"),
    _admin("POST", "/admin/v1/jobs", "submit_job"),
    _admin("GET", "/admin/v1/jobs/{job_id}", "get_job"),
    _admin("DELETE", "/admin/v1/jobs/{job_id}", "delete_job"),
    _admin("POST", "/admin/v1/jobs/{job_id}/pause", "pause_job"),
    _admin("POST", "/admin/v1/jobs/{job_id}/resume", "resume_job"),
    _admin("POST", "/admin/v1/jobs/{job_id}/stop", "stop_job"),
    _admin("GET", "/admin/v1/jobs/{job_id}/gates", "job_gates"),
    _admin("POST", "/admin/v1/jobs/{job_id}/gates/{item_id}", "decide_job"),
    _admin("GET", "/admin/v1/jobs/{job_id}/logs", "job_logs"),
    _admin("GET", "/admin/v1/jobs/{job_id}/events", "job_events"),
    _admin("GET", "/admin/v1/usage", "usage"),
    _admin("GET", "/admin/v1/config", "config"),
    _admin("POST", "/admin/v1/config/reload", "reload_config"),
    _admin("GET", "/admin/v1/nodes", "nodes"),
)

HOT: Final[dict[str, Route]] = {entry.path: entry.hot for entry in ROUTES if entry.hot is not None}
SCOPES: Final[dict[Route, str]] = {entry.hot: entry.scope for entry in ROUTES if entry.hot is not None}
UPLOADS: Final = frozenset((entry.method.encode(), entry.path.encode()) for entry in ROUTES if entry.upload)


def on_listener(listener: Listener) -> tuple[Entry, ...]:
    """The entries that FastAPI serves on one listener."""
    return tuple(entry for entry in ROUTES if entry.listener == listener and entry.hot is None)
