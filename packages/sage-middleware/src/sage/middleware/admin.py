"""A typed client of the admin API, for everything on this machine that looks after a running stack."""

from __future__ import annotations

from datetime import date
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from pydantic import BaseModel, ValidationError

from sage.common.api import (
    Decision,
    DecisionList,
    EngineList,
    KeyChange,
    KeyInfo,
    KeyList,
    KeyRotation,
    KeySpec,
    MetricList,
    NewKey,
    PolicyStatus,
    ReloadReport,
    RunInfo,
    StackStatus,
    UsageReport,
)
from sage.common.errors import SageError
from sage.middleware.rest import Rest

__all__ = ["AdminClient"]

_Answer = TypeVar("_Answer", bound=BaseModel)


class AdminClient:
    """Calls `/admin/v1` of one running stack. `timeout` is in seconds and bounds each call.

    Every method raises UnreachableError when nothing answers, UnauthorizedError for a wrong token, and the
    server's own error otherwise.
    """

    def __init__(self, run: RunInfo, token: str, *, timeout: float = 10.0) -> None:
        self._rest = Rest(run.admin_url.rstrip("/").removesuffix("/admin/v1"), token, timeout=timeout)

    def status(self) -> StackStatus:
        """Version, uptime, policy, engines and queues."""
        return self._call("GET", "/status", StackStatus)

    def engines(self) -> EngineList:
        """Every engine, ready or not."""
        return self._call("GET", "/engines", EngineList)

    def policy(self) -> PolicyStatus:
        """The policy in force and those that could be."""
        return self._call("GET", "/policy", PolicyStatus)

    def set_policy(self, name: str) -> PolicyStatus:
        """Put another policy in force. Raises BadRequestError or NotFoundError for an unknown name."""
        return self._call("PUT", "/policy", PolicyStatus, {"name": name})

    def reload(self) -> ReloadReport:
        """Load the configuration again. Raises BadRequestError with all that is wrong with it."""
        return self._call("POST", "/config/reload", ReloadReport)

    def metrics(self) -> MetricList:
        """All metrics, by the names of `sage.common.telemetry`."""
        return self._call("GET", "/metrics", MetricList)

    def decisions(self, limit: int = 100) -> DecisionList:
        """The newest decisions, newest first, at most `limit`."""
        return self._call("GET", f"/decisions?limit={limit}", DecisionList)

    def decision(self, request_id: str) -> Decision:
        """What was decided for one request. Raises NotFoundError for an id that is unknown or too old."""
        return self._call("GET", f"/decisions/{quote(request_id, safe='')}", Decision)

    def keys(self) -> KeyList:
        """All keys, revoked ones too."""
        return self._call("GET", "/keys", KeyList)

    def key(self, ident: str) -> KeyInfo:
        """One key by its id or name. Raises NotFoundError."""
        return self._call("GET", _key(ident), KeyInfo)

    def create_key(self, spec: KeySpec) -> NewKey:
        """A new key; its secret is told this once. Raises ConflictError for a name in use."""
        return self._call("POST", "/keys", NewKey, spec.model_dump(mode="json"))

    def change_key(self, ident: str, change: KeyChange) -> KeyInfo:
        """Other settings for a key; what `change` was not given stays."""
        return self._call("PATCH", _key(ident), KeyInfo, change.model_dump(mode="json", exclude_unset=True))

    def rotate_key(self, ident: str, *, grace_s: float = 0.0) -> NewKey:
        """Another secret for a key; the former one stays good for so many seconds."""
        how = KeyRotation(grace_s=grace_s)
        return self._call("POST", _key(ident) + "/rotate", NewKey, how.model_dump(mode="json"))

    def revoke_key(self, ident: str) -> KeyInfo:
        """End a key and what runs for it."""
        return self._call("DELETE", _key(ident), KeyInfo)

    def usage(
        self,
        *,
        key: str | None = None,
        model: str | None = None,
        first: date | None = None,
        last: date | None = None,
    ) -> UsageReport:
        """What keys have used, by day, model and class; the last 30 days (UTC) if no days are given."""
        asked = {"key": key, "model": model, "from": first, "to": last}
        query = urlencode({name: str(value) for name, value in asked.items() if value is not None})
        return self._call("GET", f"/usage?{query}", UsageReport)

    def _call(
        self, method: str, path: str, answer: type[_Answer], body: dict[str, Any] | None = None
    ) -> _Answer:
        raw = self._rest.call(method, "/admin/v1" + path, body)
        try:
            return answer.model_validate_json(raw)
        except ValidationError as exc:
            raise SageError(
                f"The stack at {self._rest.url} answered {path} in a form that this version does not know"
                f" ({exc.error_count()} problems).",
                hint="Its packages are probably of another version: `sage down`, then `sage up`.",
            ) from exc


def _key(ident: str) -> str:
    return f"/keys/{quote(ident, safe='')}"
