"""What the front door checks before a body is read: pure decisions over one request's head."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from sage.common.errors import (
    BadRequestError,
    ForbiddenError,
    MediaTypeError,
    RequestTooLargeError,
    SageError,
    UnauthorizedError,
)
from sage.common.ids import new_id
from sage.common.telemetry import Bound
from sage.gateway.keys import KeyRing, Principal, presented
from sage.gateway.routes import HOT, SCOPES, UPLOADS
from sage.middleware.engines.multipart import FORM
from sage.middleware.engines.port import FORMS, Route

__all__ = [
    "DECISIVE",
    "Admission",
    "Deadlines",
    "Edge",
    "ExpectationError",
    "HeadLimits",
    "HeadersTooLargeError",
    "MethodError",
    "RequestTimeoutError",
    "check_length",
    "fold_headers",
    "request_id_of",
    "too_large",
    "too_slow",
    "trace_of",
]

SAFE_METHODS: Final = frozenset({b"GET", b"HEAD"})
# Two of one of these would let two programs on the way read two different requests.
SINGLE: Final = frozenset(
    {
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"expect",
        b"host",
        b"origin",
        b"sec-fetch-site",
        b"x-api-key",
        b"x-request-id",
    }
)
# With method, target, key and length these are all that `Edge.admit` looks at.
DECISIVE: Final = (b"host", b"origin", b"sec-fetch-site", b"content-type", b"content-encoding", b"expect")
REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
TRACE: Final = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
COLD_BODY_BYTES: Final = 64 * 1024
FORM_BYTES: Final = 64 * 1024  # of an upload, around its file


class MethodError(BadRequestError):
    """The path exists and takes another method."""

    code = "method_not_allowed"
    status = 405


class RequestTimeoutError(BadRequestError):
    """The client was too slow to send its request."""

    code = "request_timeout"
    status = 408


class ExpectationError(BadRequestError):
    """An `Expect` other than 100-continue."""

    code = "expectation_failed"
    status = 417


class HeadersTooLargeError(BadRequestError):
    """Request line or headers over a limit."""

    code = "headers_too_large"
    status = 431


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """Bytes and count of what comes before the body."""

    line: int = 8 * 1024
    header: int = 8 * 1024
    total: int = 32 * 1024
    count: int = 100

    def over_line(self) -> HeadersTooLargeError:
        """What answers a request line that is too long."""
        return HeadersTooLargeError(f"The request line is over {self.line} bytes.", bound=Bound.REQUEST_LINE)

    def over(self, header: int, total: int) -> HeadersTooLargeError:
        """What answers a head with a header of so many bytes and so many in all."""
        if header > self.header:
            return HeadersTooLargeError(f"A header is over {self.header} bytes.", bound=Bound.HEADER_BYTES)
        if total > self.total:
            return HeadersTooLargeError(
                f"The headers are over {self.total} bytes.", bound=Bound.HEADERS_BYTES
            )
        return HeadersTooLargeError(f"There are more than {self.count} headers.", bound=Bound.HEADER_COUNT)

    def refusal(self, header: int, total: int, count: int) -> HeadersTooLargeError | None:
        """What answers a header of so many bytes, the last of `count` with `total` bytes; None: it may be."""
        if header > self.header or total > self.total or count > self.count:
            return self.over(header, total)
        return None


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds. A body may take `body_total` plus one second per `body_rate` bytes."""

    head: float = 10.0
    body_idle: float = 10.0
    body_total: float = 60.0
    body_rate: int = 256 * 1024
    keep_alive: float = 75.0
    write_stall: float = 30.0

    def of_body(self, now: float, began: float, size: int) -> float:
        """When the next bytes must be here of a body that began at `began` and has `size` bytes so far."""
        return min(now + self.body_idle, began + self.body_total + size / self.body_rate)


@dataclass(frozen=True, slots=True)
class Admission:
    """A head that may go on. `route` is None for what FastAPI serves; that gets an `upload` in parts."""

    principal: Principal
    route: Route | None
    max_body: int
    expect_continue: bool
    upload: bool = False


def trace_of(headers: Mapping[bytes, bytes]) -> bytes:
    """The caller's `traceparent` (https://www.w3.org/TR/trace-context/) if it is well-formed, else empty."""
    found = headers.get(b"traceparent", b"")
    return found if found and TRACE.fullmatch(found) else b""


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The caller's `x-request-id` if it is well-formed, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
            return value.decode()
    return new_id("req")


def fold_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Headers by lower-case name; repeats are joined, but for those where that is an ambiguity."""
    folded: dict[bytes, bytes] = {}
    for name, value in headers:
        if name not in folded:
            folded[name] = value
        elif name in SINGLE:
            raise BadRequestError(
                f"The header {name.decode('latin-1')!r} was sent twice.", hint="Send it once."
            )
        else:
            folded[name] += b", " + value
    return folded


class Edge:
    """The guard of one listener: host, key, origin, route, type and length, in this order."""

    def __init__(
        self,
        keys: KeyRing,
        *,
        hosts: Iterable[str],
        bodies: Mapping[Route, int],
        admin_only: bool = False,
        hot: Mapping[str, Route] | None = None,
        max_file: int = 0,
    ) -> None:
        """`max_file`: bytes of the largest file that an upload may bring."""
        self._keys = keys
        self._changes = -1
        self.change(hosts, bodies)
        self._hot = {path.encode(): route for path, route in (HOT if hot is None else hot).items()}
        self._admin_only = admin_only
        self._max_file = max_file

    @property
    def version(self) -> int:
        """Of the keys and of what was changed here: an admission of another one is void."""
        return self._keys.version + self._changes

    def change(self, hosts: Iterable[str], bodies: Mapping[Route, int]) -> None:
        """Judge by these from now on."""
        self._hosts = frozenset(host.lower().encode() for host in hosts)
        self._bodies = dict(bodies)
        self._changes += 1

    def admit(self, method: bytes, target: bytes, headers: Mapping[bytes, bytes]) -> Admission:
        """Let a head pass, or raise the SageError that answers it."""
        self._check_host(headers.get(b"host"))
        principal = self._authenticate(headers)
        if method not in SAFE_METHODS:
            self._check_origin(headers)
        if not target.startswith(b"/"):
            raise BadRequestError(
                "The request target must begin with '/'.", hint="Send `POST /v1/… HTTP/1.1`."
            )
        path = target.partition(b"?")[0]
        route = self._hot.get(path)
        if route is not None:
            principal.check_scope(SCOPES[route])
            _check_hot(method, path, headers, FORM if route in FORMS else "application/json")
        upload = route is None and (method, path) in UPLOADS and not self._admin_only
        limit = self._max_file + FORM_BYTES if upload else COLD_BODY_BYTES
        if route is not None:
            limit = self._bodies[route]
        check_length(headers.get(b"content-length"), limit)
        return Admission(principal, route, limit, _expects_continue(headers.get(b"expect")), upload)

    def _check_host(self, host: bytes | None) -> None:
        if not host:
            raise BadRequestError("The Host header is missing.")
        if hostname(host) not in self._hosts:
            valid = ", ".join(sorted(name.decode() for name in self._hosts))
            raise ForbiddenError(
                f"The host {host[:128].decode('latin-1')!r} is not served here; allowed: {valid}.",
                hint="Add it under gateway.allowed_hosts in sage.yaml.",
            )

    def _authenticate(self, headers: Mapping[bytes, bytes]) -> Principal:
        key = presented(headers)
        if not key:
            raise UnauthorizedError("No API key.", hint="Send `Authorization: Bearer <key>`.")
        principal = self._keys.verify(key)
        if self._admin_only and not principal.admin:
            raise ForbiddenError(
                "This key may not manage the stack.",
                hint="Use the admin token, or a key with the scope admin.",
            )
        return principal

    @staticmethod
    def _check_origin(headers: Mapping[bytes, bytes]) -> None:
        """A page of another site must not act for the user, whatever key the browser would add."""
        site = headers.get(b"sec-fetch-site")
        origin = headers.get(b"origin")
        if site is not None and site not in (b"same-origin", b"none"):
            raise ForbiddenError("Calls from another site are not allowed.")
        if origin is not None and origin.lower() != b"http://" + headers[b"host"].lower():
            raise ForbiddenError("Calls from another origin are not allowed.")


def hostname(host: bytes) -> bytes:
    """The Host header's name without its port, in lower case; brackets of IPv6 stay."""
    name, colon, port = host.rpartition(b":")
    return (name if colon and port.isdigit() else host).lower()


def check_length(declared: bytes | None, limit: int) -> None:
    """Raise RequestTooLargeError if the declared length is over the limit."""
    if declared is not None and int(declared) > limit:
        raise too_large(limit)


def too_slow(*, head: bool) -> SageError:
    """What answers a request whose head or body did not come in time."""
    bound = Bound.HEAD_TIME if head else Bound.BODY_TIME
    return RequestTimeoutError("The request did not arrive in time.", bound=bound)


def too_large(limit: int) -> SageError:
    """What answers a body over its limit."""
    return RequestTooLargeError(
        f"The body is larger than the limit of {limit} bytes.",
        hint="Send it in parts.",
        bound=Bound.BODY_BYTES,
    )


def _check_hot(method: bytes, path: bytes, headers: Mapping[bytes, bytes], valid: str) -> None:
    if method != b"POST":
        raise MethodError(f"{path.decode()} takes POST, not {method.decode('latin-1')}.")
    media = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if media != valid.encode():
        found = media.decode("latin-1")[:128] or "none"
        raise MediaTypeError(f"Content-Type is {found}; it must be {valid}.")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise MediaTypeError("A compressed body is not accepted.", hint="Send it without Content-Encoding.")


def _expects_continue(expect: bytes | None) -> bool:
    if expect is None:
        return False
    if expect.lower() != b"100-continue":
        raise ExpectationError("Only `Expect: 100-continue` is understood.")
    return True
