"""A typed client of the admin API, for everything on this machine that looks after a running stack.

Synchronous and on the standard library: a command that asks one question needs no event loop.
"""

from __future__ import annotations

import http.client
import json
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, ValidationError

from sage.common.api import Decision, DecisionList, EngineList, PolicyStatus, RunInfo, StackStatus
from sage.common.errors import (
    BadRequestError,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    SageError,
    UnauthorizedError,
    UnavailableError,
    UnreachableError,
)

__all__ = ["AdminClient"]

_Answer = TypeVar("_Answer", bound=BaseModel)

_PREFIX = "/admin/v1"
_BY_STATUS: dict[int, type[SageError]] = {
    cls.status: cls
    for cls in (
        BadRequestError,
        UnauthorizedError,
        ForbiddenError,
        NotFoundError,
        ConflictError,
        UnavailableError,
    )
}


class AdminClient:
    """Calls `/admin/v1` of one running stack. `timeout` is in seconds and bounds each call.

    Every method raises UnreachableError when nothing answers, UnauthorizedError for a wrong token, and the
    server's own error otherwise.
    """

    def __init__(self, run: RunInfo, token: str, *, timeout: float = 10.0) -> None:
        self._url = run.admin_url
        self._token = token
        self._timeout = timeout

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

    def decisions(self, limit: int = 100) -> DecisionList:
        """The newest decisions, newest first, at most `limit`."""
        return self._call("GET", f"/decisions?limit={limit}", DecisionList)

    def decision(self, request_id: str) -> Decision:
        """What was decided for one request. Raises NotFoundError for an id that is unknown or too old."""
        return self._call("GET", f"/decisions/{quote(request_id, safe='')}", Decision)

    def _call(self, method: str, path: str, answer: type[_Answer], body: Any = None) -> _Answer:
        status, raw = self._send(method, path, None if body is None else json.dumps(body).encode())
        if status != http.HTTPStatus.OK:
            raise _error(status, raw)
        try:
            return answer.model_validate_json(raw)
        except ValidationError as exc:
            raise SageError(
                f"The stack at {self._url} answered {path} in a form this version does not know"
                f" ({exc.error_count()} problems).",
                hint="Its packages are probably of another version: `sage down`, then `sage up`.",
            ) from exc

    def _send(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        url = urlsplit(self._url)
        # Not urllib: it follows proxy variables, and loopback must not go through a proxy.
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=self._timeout)
        headers = {"Authorization": f"Bearer {self._token}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, _PREFIX + path, body=body, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as exc:
            raise UnreachableError(
                f"Nothing answers at {self._url} ({str(exc) or type(exc).__name__}).",
                hint="`sage doctor` says what is wrong; `sage up` starts a stack.",
            ) from exc
        finally:
            connection.close()


def _error(status: int, raw: bytes) -> SageError:
    try:
        message = str(json.loads(raw)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"The admin API answered {status}: {raw[:200].decode(errors='replace')}"
    return _BY_STATUS.get(status, SageError)(message)
