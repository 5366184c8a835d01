"""The studio's HTTP application: a page, its live data, and the guard around both."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http.cookies import CookieError, SimpleCookie
from importlib import resources
from typing import TYPE_CHECKING, Final

from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse, RedirectResponse, StreamingResponse
from starlette.datastructures import Headers, MutableHeaders

from sage.studio.feed import Feed, Snapshot
from sage.studio.session import Gate

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Guard", "cookie_name", "make_app"]

HEADERS: Final = {
    "content-security-policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
STATIC: Final = {
    "": ("index.html", "text/html; charset=utf-8"),
    "studio.css": ("studio.css", "text/css; charset=utf-8"),
    "studio.js": ("studio.js", "text/javascript; charset=utf-8"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}
USED: Final = "This login link is wrong or was used before. Run `sage studio` again for a new one.\n"
LOCKED: Final = "Open the login link that `sage studio` printed.\n"


def cookie_name(port: int) -> str:
    """Cookies ignore ports, so the name carries it: two studios do not log each other out."""
    return f"sage_studio_{port}"


def make_app(feed: Feed, gate: Gate, *, port: int) -> ASGIApp:
    """The application that listens on 127.0.0.1:`port`. Everything but the login needs its cookie."""
    app = FastAPI(title="SAGE studio", docs_url=None, redoc_url=None, openapi_url=None)

    async def login(token: str = "") -> Response:
        session = gate.redeem(token)
        if session is None:
            return PlainTextResponse(USED, status_code=403)
        answer = RedirectResponse("/", status_code=303)
        answer.set_cookie(cookie_name(port), session, httponly=True, samesite="strict", path="/")
        return answer

    async def snapshot() -> Snapshot:
        return (await feed.latest())[1]

    async def events() -> StreamingResponse:
        return StreamingResponse(feed.stream(), media_type="text/event-stream")

    app.add_api_route("/login", login, methods=["GET"])
    app.add_api_route("/api/snapshot", snapshot, methods=["GET"])
    app.add_api_route("/api/events", events, methods=["GET"])
    for path, (name, media_type) in STATIC.items():
        app.add_api_route(f"/{path}", _file(name, media_type), methods=["GET"])
    return Guard(app, gate, port=port)


def _file(name: str, media_type: str) -> Callable[[], Awaitable[Response]]:
    body = resources.files("sage.studio").joinpath("static", name).read_bytes()

    async def serve() -> Response:
        return Response(body, media_type=media_type)

    return serve


class Guard:
    """Host, then method, then session; and the security headers on every answer, refusals included."""

    def __init__(self, app: ASGIApp, gate: Gate, *, port: int) -> None:
        self._app = app
        self._gate = gate
        self._cookie = cookie_name(port)
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self._refusal(scope["method"], scope["path"], Headers(scope=scope))
        await (refusal or self._app)(scope, receive, send_guarded)

    def _refusal(self, method: str, path: str, headers: Headers) -> Response | None:
        if headers.getlist("host") not in [[host] for host in self._hosts]:
            return PlainTextResponse("This host name is not served here.\n", status_code=403)
        if method not in ("GET", "HEAD"):
            return PlainTextResponse("Only GET is served here.\n", status_code=405, headers={"allow": "GET"})
        if path == "/login" or self._gate.admits(self._session(headers)):
            return None
        return PlainTextResponse(LOCKED, status_code=401)

    def _session(self, headers: Headers) -> str | None:
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return None
        return morsel.value if morsel else None
