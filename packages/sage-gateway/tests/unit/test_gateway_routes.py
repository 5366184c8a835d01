"""The table of routes is what the applications serve."""

from __future__ import annotations

from fastapi.routing import APIRoute

from sage.common.api import SCOPES as ALL_SCOPES
from sage.gateway.app import data_app
from sage.gateway.routes import HOT, ROUTES, SCOPES, UPLOADS, on_listener
from sage.gateway.testing import idle_handlers
from sage.gateway.watch import Watch
from sage.middleware.engines.port import Route


def test_the_data_application_serves_its_entries_and_nothing_else() -> None:
    app = data_app(list, others=idle_handlers(), met=Watch().met)
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    served = {(method, route.path) for route in routes for method in route.methods or ()}
    assert served == {(entry.method, entry.path) for entry in on_listener("data")}
    assert len(app.routes) == len(routes)


def test_every_engine_route_is_hot() -> None:
    assert set(HOT.values()) == set(Route)
    assert all(entry.method == "POST" for entry in ROUTES if entry.hot is not None)


def test_every_entry_needs_a_scope_but_the_index() -> None:
    assert [entry.path for entry in ROUTES if not entry.scope] == ["/"]
    assert {entry.scope for entry in ROUTES if entry.listener == "admin"} == {"admin"}
    assert {entry.scope for entry in ROUTES} == {"", *ALL_SCOPES}
    assert set(SCOPES) == set(Route)


def test_no_entry_is_there_twice() -> None:
    keys = [(entry.listener, entry.method, entry.path) for entry in ROUTES]
    assert len(keys) == len(set(keys))
    names = [(entry.listener, entry.name) for entry in ROUTES]
    assert len(names) == len(set(names))


def test_only_a_file_is_taken_in_as_it_comes() -> None:
    assert {(b"POST", b"/v1/files")} == UPLOADS
