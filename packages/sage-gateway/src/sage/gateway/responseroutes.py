"""The handlers of stored responses: each sees what its own key has stored, and nothing else."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec
from fastapi import Request
from fastapi.responses import Response

from sage.common.errors import BadRequestError
from sage.gateway.app import Handlers, principal_of
from sage.gateway.conversations import missing
from sage.gateway.responsestore import ResponseStore, StoredResponse

__all__ = ["response_handlers"]

_MOST: Final = 100
_NUMBER: Final = re.compile(r"[0-9]{1,3}", re.ASCII)
_PREFIXES: Final = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def response_handlers(store: ResponseStore) -> Handlers:
    """Handlers by entry name."""

    async def find(request: Request, response_id: str) -> StoredResponse:
        found = await store.get(principal_of(request).id, response_id)
        if found is None:
            raise missing(response_id)
        return found

    async def get_response(request: Request, response_id: str) -> Response:
        _check_query(request, {})
        found = await find(request, response_id)
        return Response(found.answer, media_type="application/json")

    async def delete_response(request: Request, response_id: str) -> dict[str, Any]:
        if not await store.delete(principal_of(request).id, response_id):
            raise missing(response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    async def response_items(request: Request, response_id: str) -> dict[str, Any]:
        asked = _check_query(request, {"limit": "20", "order": "desc", "after": ""})
        found = await find(request, response_id)
        return _page(_items(found), asked)

    return {
        "get_response": get_response,
        "delete_response": delete_response,
        "response_items": response_items,
    }


def _check_query(request: Request, known: dict[str, str]) -> dict[str, str]:
    """The query over the defaults. Raises BadRequestError for what would be ignored."""
    asked = dict(request.query_params)
    for name in asked:
        if name not in known:
            valid = ", ".join(known) or "none"
            raise BadRequestError(
                f"The query {name[:64]!r} is not known here; valid: {valid}.", param=name[:64]
            )
    return {**known, **asked}


def _items(found: StoredResponse) -> list[dict[str, Any]]:
    """What went in, oldest first, in the long form: each with an id, and its content as parts."""
    suffix = found.id.removeprefix("resp_")
    items = []
    for at, item in enumerate(msgspec.json.decode(found.items, type=list[dict[str, Any]])):
        kind = item.get("type") or "message"
        full = {
            "id": f"{_PREFIXES.get(kind, 'item')}_{suffix}_in{at}",
            "status": "completed",
            **item,
            "type": kind,
        }
        content = item.get("content")
        if kind == "message" and isinstance(content, str):
            part = "output_text" if item.get("role") == "assistant" else "input_text"
            full["content"] = [{"type": part, "text": content}]
        items.append(full)
    return items


def _page(items: list[dict[str, Any]], asked: dict[str, str]) -> dict[str, Any]:
    if asked["order"] not in ("asc", "desc"):
        raise BadRequestError(f"order is {asked['order'][:64]!r}; it can be 'asc' or 'desc'.", param="order")
    limit = int(asked["limit"]) if _NUMBER.fullmatch(asked["limit"]) else 0
    if not 1 <= limit <= _MOST:
        raise BadRequestError(f"limit is {asked['limit'][:64]!r}; it is from 1 to {_MOST}.", param="limit")
    if asked["order"] == "desc":
        items = items[::-1]
    if asked["after"]:
        places = [at for at, item in enumerate(items) if item["id"] == asked["after"]]
        if not places:
            raise BadRequestError(f"after is {asked['after'][:64]!r}, which is no item here.", param="after")
        items = items[places[0] + 1 :]
    data = items[:limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(items) > len(data),
    }
