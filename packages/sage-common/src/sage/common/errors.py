"""One hierarchy of errors: each has a code, an HTTP status, an exit code, a message and a hint.

The message names the thing, what was found and what would be valid. The hint says what to do.
Exit codes: 0 ok, 1 failed, 2 usage, 3 unreachable, 4 unauthorised, 5 not found, 130 interrupted.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sage.common.telemetry import Bound

__all__ = [
    "BadRequestError",
    "ConfigError",
    "ConflictError",
    "EngineError",
    "ForbiddenError",
    "MediaTypeError",
    "ModelNotFoundError",
    "NotFoundError",
    "OverloadedError",
    "QuarantinedError",
    "RequestTooLargeError",
    "SageError",
    "TimedOutError",
    "UnauthorizedError",
    "UnavailableError",
    "UnreachableError",
    "UsageError",
]


class SageError(Exception):
    """Something failed in a way that a user can read about.

    `param` names the offending field of a request; `retry_after` is in seconds; `bound` is the one that was
    met, if it was one.
    """

    code: ClassVar[str] = "internal_error"
    type: ClassVar[str] = "server_error"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        param: str | None = None,
        retry_after: float | None = None,
        bound: Bound | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.param = param
        self.retry_after = retry_after
        self.bound = bound

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()

    @property
    def final(self) -> bool:
        """Whether it is in vain, or does harm, to send the same once more."""
        return False

    def to_openai(self) -> dict[str, Any]:
        """The OpenAI error body: `{"error": {"message", "type", "param", "code"}}`."""
        return {"error": {"message": str(self), "type": self.type, "param": self.param, "code": self.code}}


class BadRequestError(SageError):
    """The request cannot be served as it is, whatever the state of the system."""

    code = "invalid_request"
    type = "invalid_request_error"
    status = 400
    exit_code = 2


class UsageError(BadRequestError):
    """A command was called with arguments that do not fit."""

    code = "usage"


class ConfigError(SageError):
    """The configuration names file, line and key of what is wrong."""

    code = "config_error"
    exit_code = 2


class UnauthorizedError(SageError):
    """No key, or one that nobody issued."""

    code = "invalid_api_key"
    type = "authentication_error"
    status = 401
    exit_code = 4


class ForbiddenError(SageError):
    """The key, host or origin is known and not allowed here."""

    code = "forbidden"
    type = "permission_error"
    status = 403
    exit_code = 4


class NotFoundError(SageError):
    """The named thing does not exist; the message lists what does."""

    code = "not_found"
    type = "invalid_request_error"
    status = 404
    exit_code = 5


class ModelNotFoundError(NotFoundError):
    """No engine serves a model of that name; the code is the one that OpenAI's clients know."""

    code = "model_not_found"


class ConflictError(SageError):
    """Something else holds what is needed: a port, a state directory, a name."""

    code = "conflict"
    type = "invalid_request_error"
    status = 409


class RequestTooLargeError(BadRequestError):
    """A body or a part of it is over its limit."""

    code = "request_too_large"
    status = 413


class MediaTypeError(BadRequestError):
    """The body is not of a type that the route takes."""

    code = "unsupported_media_type"
    status = 415


class OverloadedError(SageError):
    """Shed by admission: come back after `retry_after` seconds."""

    code = "overloaded"
    type = "rate_limit_error"
    status = 429


class UnavailableError(SageError):
    """No engine can serve this now: starting, stopping or dead."""

    code = "engine_unavailable"
    type = "server_error"
    status = 503
    exit_code = 3


class EngineError(SageError):
    """An engine failed while it served a request."""

    code = "engine_error"
    status = 502


class QuarantinedError(EngineError):
    """Engines died, as it seems, of a request: nobody is to send it to another one."""

    @property
    def final(self) -> bool:
        """Always."""
        return True


class UnreachableError(SageError):
    """Nothing answers at an address."""

    code = "unreachable"
    status = 502
    exit_code = 3


class TimedOutError(SageError):
    """A deadline passed."""

    code = "timeout"
    status = 504
