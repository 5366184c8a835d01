"""A typed client of the admin API, for everything on this machine that looks after a running stack."""

from __future__ import annotations

from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from sage.common.api import (
    Decision,
    DecisionList,
    EngineList,
    MetricList,
    PolicyStatus,
    RunInfo,
    StackStatus,
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

    def metrics(self) -> MetricList:
        """All metrics, by the names of `sage.common.telemetry`."""
        return self._call("GET", "/metrics", MetricList)

    def decisions(self, limit: int = 100) -> DecisionList:
        """The newest decisions, newest first, at most `limit`."""
        return self._call("GET", f"/decisions?limit={limit}", DecisionList)

    def decision(self, request_id: str) -> Decision:
        """What was decided for one request. Raises NotFoundError for an id that is unknown or too old."""
        return self._call("GET", f"/decisions/{quote(request_id, safe='')}", Decision)

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
