"""What a request is: from its route, a few fields of its body and its headers. Pure.

The body itself goes on unchanged; it is judged strictly first, so that no engine sees bytes that it might
read in another way than we did (duplicate keys, NaN, lone surrogates, deep nesting).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.bodies import read_body
from sage.middleware.control_plane.facts import DecodeTokens, Facts, Parsed, ParseLimits
from sage.middleware.control_plane.media_bodies import read_media
from sage.middleware.control_plane.plain import read_plain
from sage.middleware.control_plane.types import Job
from sage.middleware.control_plane.wishes import Wishes, read_wishes, request_id
from sage.middleware.engines.port import CHAT, COMPLETIONS, EMBEDDINGS, GENERATES, MEDIA, Call, Route

__all__ = ["DecodeTokens", "ParseLimits", "Parsed", "parse"]


EMBED_INTERACTIVE: Final = RequestClass.EMBED_INTERACTIVE


def parse(
    route: Route,
    body: bytes,
    *,
    limits: ParseLimits,
    tenant: str,
    headers: Mapping[str, str],
    ident: str = "",
    decode_tokens: DecodeTokens | None = None,
    blocks: bool = False,
) -> Parsed:
    """Judge a body and say what it asks for. `headers` have lower-case names; `tenant` is whose key it is.

    A form is read by its `content-type` there. `ident`: the id of the request, where it is known to be good;
    else it is looked for in the headers. `decode_tokens` turns token ids into text (embedding input may
    be ids) and raises ValueError for an id that it does not know. `blocks`: hash the prompt for a policy that
    looks for cached prefixes. Raises BadRequestError with `param` naming the field or header.
    """
    facts = read_plain(route, body, limits, blocks=blocks)
    if facts is None and route in MEDIA:
        facts = read_media(route, body, headers.get("content-type", ""))
    elif facts is None:
        facts = read_body(route, body, limits, decode_tokens, blocks=blocks)
    wishes = read_wishes(route, headers, tenant=tenant, tenants=limits.tenants)
    ident = ident or request_id(headers)
    request_class = _request_class(route, facts, limits, wishes)
    # in the order of the fields: by name it would take twice as long
    job = Job(
        ident,
        facts.model,
        request_class,
        wishes.tenant,
        facts.needs,
        len(facts.body),
        facts.prompt_tokens,
        facts.max_tokens,
        facts.texts,
        facts.prompt_bytes,
        wishes.slo,
        wishes.priority,
        facts.blocks,
        facts.batch_key,
        facts.stream,
        request_class is EMBED_INTERACTIVE,
        wishes.parent,
        wishes.explain,
    )
    call = Call(ident, route, facts.body, facts.stream, facts.include_usage, content_type=facts.content_type)
    return Parsed(job, call, wishes.deadline)


def _request_class(route: Route, facts: Facts, limits: ParseLimits, wishes: Wishes) -> RequestClass:
    """The class by route and size. A caller may lower it by a header; a higher one is not granted."""
    if route is CHAT or route in GENERATES:
        natural = RequestClass.COMPLETION if route is COMPLETIONS else RequestClass.CHAT
        return RequestClass.BATCH if wishes.lowered else natural
    if route in MEDIA:
        return RequestClass.BATCH if wishes.lowered else RequestClass.COMPLETION
    if route is not EMBEDDINGS:
        return RequestClass.RERANK  # the core never sees the class of an aside
    large = facts.texts > limits.bulk_texts or facts.prompt_tokens > limits.bulk_tokens
    if wishes.lowered or (large and wishes.deadline is None):
        return RequestClass.EMBED_BULK
    return RequestClass.EMBED_INTERACTIVE
