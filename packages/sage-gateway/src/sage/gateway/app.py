"""The FastAPI side of the data plane: models and index; and the error answers of both applications."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from sage.common.errors import (
    BadRequestError,
    ModelNotFoundError,
    NotFoundError,
    SageError,
    UnavailableError,
)
from sage.common.version import VERSION
from sage.gateway.edge import MethodError
from sage.gateway.keys import Principal
from sage.gateway.openapi import describe
from sage.gateway.reply import error_headers
from sage.gateway.routes import ROUTES, Entry, Listener, on_listener
from sage.middleware.engines.dialects.envelopes import envelope_at

__all__ = ["Handlers", "Met", "data_app", "make_app", "principal_of"]

log = logging.getLogger("sage.gateway")

Handlers = dict[str, Callable[..., Any]]
Met = Callable[[SageError], None]


def make_app(title: str, listener: Listener, handlers: Handlers, met: Met) -> FastAPI:
    """An application with exactly the entries of one listener; `handlers` are by entry name.

    `met` is told each error that the application answers with: it may name a bound.
    """
    app = FastAPI(title=title, version=VERSION, docs_url=None, redoc_url=None, openapi_url=None)

    async def openapi() -> dict[str, Any]:
        return describe(app, listener)

    handlers = {**handlers, "openapi": openapi}
    for entry in on_listener(listener):
        app.add_api_route(
            entry.path,
            handlers[entry.name],
            methods=[entry.method],
            name=entry.name,
            dependencies=[Depends(_needs(entry.scope))],
        )
    app.add_exception_handler(SageError, _answering(met))
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(Exception, _answer_fault)
    return app


def _needs(scope: str) -> Callable[[Request], Awaitable[None]]:
    """What refuses a key without this scope; who asks was found out by the protocol."""

    async def check(request: Request) -> None:
        principal_of(request).check_scope(scope)

    return check


def principal_of(request: Request) -> Principal:
    """Who asks, as the protocol found out."""
    found = request.state.principal
    assert isinstance(found, Principal)
    return found


def data_app(
    models: Callable[[], Iterable[dict[str, Any]]],
    known: Callable[[], Iterable[str]] = tuple,
    *,
    others: Handlers,
    met: Met,
) -> FastAPI:
    """What the data plane serves beside the hot routes.

    `models` gives the OpenAI model objects of now; `known` the ids of those too that no engine serves yet;
    `others` serve the entries of files, batches and stored responses. `met`: see `make_app`.
    """

    async def index() -> dict[str, Any]:
        return {
            "name": "sage",
            "version": VERSION,
            "routes": [_line(e) for e in ROUTES if e.listener == "data"],
        }

    async def list_models(request: Request) -> dict[str, Any]:
        may_use = principal_of(request).may_use
        return {"object": "list", "data": [entry for entry in models() if may_use(entry["id"])]}

    async def get_model(model: str, request: Request) -> dict[str, Any]:
        principal = principal_of(request)
        principal.check_model(model)
        ready = {entry["id"]: entry for entry in models()}
        if model in ready:
            return ready[model]
        every = sorted(filter(principal.may_use, {*ready, *known()}))
        if model in every:  # as a request for it is answered
            raise UnavailableError(
                f"No engine of the model {model!r} is ready.", param="model", retry_after=1.0
            )
        raise ModelNotFoundError(
            f"There is no model {model!r}; there are: {', '.join(every) or 'none'}.", param="model"
        )

    own: Handlers = {"index": index, "list_models": list_models, "get_model": get_model}
    return make_app("SAGE", "data", {**own, **others}, met)


def _line(entry: Entry) -> str:
    return f"{entry.method} {entry.path}"


def _json(request: Request, error: SageError, status: int | None = None) -> Response:
    """The error as its path tells it."""
    body = envelope_at(request.url.path.encode(), request.state.request_id).body(error)
    headers = dict(error_headers(error))
    return Response(body, status or error.status, headers, media_type="application/json")


def _answering(met: Met) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def answer_sage(request: Request, error: Exception) -> Response:
        assert isinstance(error, SageError)
        met(error)
        return _json(request, error)

    return answer_sage


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        valid = "; ".join(_line(entry) for entry in ROUTES)
        return _json(
            request,
            NotFoundError(f"There is no {request.method} {request.url.path}.", hint=f"Valid: {valid}."),
        )
    kind = MethodError if error.status_code == 405 else BadRequestError
    response = _json(
        request, kind(f"{request.method} {request.url.path}: {error.detail}."), error.status_code
    )
    response.headers.update(error.headers or {})
    return response


async def _answer_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    return _json(request, BadRequestError(f"{where or 'body'}: {first['msg']}.", param=where or None))


async def _answer_fault(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _json(request, SageError("The gateway failed to serve this request."))
