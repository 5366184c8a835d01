"""Calls to a stack on this machine over the standard library: what a short command needs, no event loop.

Pipelines and servers use `sage.middleware.client`, which is asynchronous and keeps connections.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from sage.common.errors import (
    BadRequestError,
    ConflictError,
    EngineError,
    ForbiddenError,
    NotFoundError,
    OverloadedError,
    RequestTooLargeError,
    SageError,
    TimedOutError,
    UnauthorizedError,
    UnavailableError,
    UnreachableError,
)
from sage.common.telemetry import HEADER_REQUEST_ID

__all__ = ["Rest", "read_answer"]

Answer = TypeVar("Answer", bound=BaseModel)

_PIECE: Final = 256 * 1024
_BY_STATUS: dict[int, type[SageError]] = {
    cls.status: cls
    for cls in (
        BadRequestError,
        UnauthorizedError,
        ForbiddenError,
        NotFoundError,
        ConflictError,
        RequestTooLargeError,
        OverloadedError,
        EngineError,
        UnavailableError,
        TimedOutError,
    )
}


class Rest:
    """One server and one bearer token. `timeout` is in seconds and bounds each wait for bytes.

    `request_id` is that of the last answer, for `sage explain`; empty when the server gave none.
    Calls raise UnreachableError when nothing answers, and the server's own error for any status but 200.
    """

    def __init__(self, url: str, token: str, *, timeout: float = 10.0) -> None:
        self.url = url.rstrip("/")
        self._token = token
        self._timeout = timeout
        self.request_id = ""

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        """The whole answer."""
        with self._answer(method, path, body) as response:
            return response.read()

    def upload(self, path: str, file: Path, fields: Mapping[str, str]) -> bytes:
        """POST a form with `fields` and the file, which is sent as it is read; the whole answer.

        Raises NotFoundError for a file that cannot be read.
        """
        boundary = secrets.token_hex(16)
        head = "".join(f"{_part(boundary, name)}\r\n\r\n{value}\r\n" for name, value in fields.items())
        quoted = file.name.replace("\\", "\\\\").replace('"', '\\"')
        before = f'{head}{_part(boundary, "file")}; filename="{quoted}"\r\n\r\n'.encode()
        after = f"\r\n--{boundary}--\r\n".encode()
        try:
            opened = file.open("rb")
        except OSError as exc:
            raise NotFoundError(f"Cannot read {file}: {exc.strerror}.") from exc
        with opened:
            size = os.fstat(opened.fileno()).st_size
            form = _Form(f"multipart/form-data; boundary={boundary}", len(before) + size + len(after))
            pieces = chain((before,), iter(lambda: opened.read(_PIECE), b""), (after,))
            with self._answer("POST", path, None, (form, pieces)) as response:
                return response.read()

    def chunks(self, path: str) -> Iterator[bytes]:
        """GET, piece by piece."""
        with self._answer("GET", path, None) as response:
            while piece := response.read1(_PIECE):
                yield piece

    def events(self, path: str, body: dict[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """POST, or GET without a body, and yield each server-sent event's JSON, up to `[DONE]`.

        Raises EngineError for an error event and for a stream that ends without `[DONE]`.
        """
        with self._answer("GET" if body is None else "POST", path, body) as response:
            for line in response:
                if not line.startswith(b"data:"):
                    continue
                data = line[len(b"data:") :].strip()
                if data == b"[DONE]":
                    return
                event: dict[str, Any] = json.loads(data)
                if "error" in event:
                    raise EngineError(str(event["error"].get("message", event["error"])))
                yield event
        raise EngineError("The answer broke off before its end.")

    @contextmanager
    def _answer(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        form: tuple[_Form, Iterable[bytes]] | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        url = urlsplit(self.url)
        # Not urllib: it follows proxy variables, and loopback must not go through a proxy.
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=self._timeout)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        raw: bytes | Iterable[bytes] | None = None if body is None else json.dumps(body).encode()
        if form is not None:
            (media, size), raw = form
            headers |= {"Content-Type": media, "Content-Length": str(size)}
        try:
            connection.request(method, url.path + path, body=raw, headers=headers)
            response = connection.getresponse()
            self.request_id = response.headers.get(HEADER_REQUEST_ID, "")
            if response.status != http.HTTPStatus.OK:
                raise _error(response.status, response.read())
            yield response
        except (OSError, http.client.HTTPException) as exc:
            raise UnreachableError(
                f"Nothing answers at {self.url} ({str(exc) or type(exc).__name__}).",
                hint="`sage doctor` says what is wrong; `sage up` starts a stack.",
            ) from exc
        finally:
            connection.close()


def read_answer(raw: bytes, to: type[Answer]) -> Answer:
    """An answer as what it should be. Raises SageError when it is something else."""
    try:
        return to.model_validate_json(raw)
    except ValidationError as exc:
        raise SageError(
            f"The server's answer does not fit: {exc.errors()[0]['msg']}.",
            hint="Are command and server of the same version?",
        ) from exc


class _Form(NamedTuple):
    """What a form is and how large."""

    media: str
    size: int


def _part(boundary: str, name: str) -> str:
    return f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"'


def _error(status: int, raw: bytes) -> SageError:
    try:
        message = str(json.loads(raw)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"The server answered {status}: {raw[:200].decode(errors='replace')}"
    return _BY_STATUS.get(status, SageError)(message)
