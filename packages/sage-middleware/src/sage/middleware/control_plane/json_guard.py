"""Strict reading of a JSON object from outside: bounded, no duplicate keys, no NaN, no lone surrogate."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from sage.common.errors import BadRequestError
from sage.common.telemetry import Bound

__all__ = ["strict_object"]

MAX_DEPTH: Final = 64
MAX_KEYS: Final = 10_000
MAX_CONTAINERS: Final = 32_768
MAX_STRINGS: Final = 65_536

_OTHER: Final = bytes(set(range(256)) - set(b"{}[]:"))


def strict_object(body: bytes) -> dict[str, Any]:
    """Decode a JSON object.

    Raises BadRequestError saying what is wrong and where: not JSON, not an object, a key twice at the top
    level, too deep, too many keys or containers, NaN, a lone surrogate, bytes that are not UTF-8.
    """
    top_level_keys = _check_shape(body)
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise BadRequestError(f"The body is not valid JSON: {_where(exc)}.") from None
    if not isinstance(value, dict):
        raise BadRequestError("The body is JSON, but not an object.", hint='Send an object: {"model": …}.')
    if len(value) != top_level_keys:
        raise BadRequestError(
            "The body has the same key twice at its top level.", hint="Send each field once."
        )
    return value


def _where(exc: Exception) -> str:
    text = str(exc) or "unexpected end"
    return text.removeprefix("JSON is malformed: ")


def _check_shape(body: bytes) -> int:
    """Bound depth, keys and containers before anything recursive reads the body; count the top-level keys."""
    parts = body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"', 2 * MAX_STRINGS)
    if len(parts) > 2 * MAX_STRINGS:
        raise BadRequestError(f"The body has more than {MAX_STRINGS} strings.", bound=Bound.JSON_STRINGS)
    marks = b"".join(parts[::2]).translate(None, _OTHER)  # every second part is outside of strings
    if marks.count(b":") > MAX_KEYS:
        raise BadRequestError(f"The body has more than {MAX_KEYS} keys.", bound=Bound.JSON_KEYS)
    if marks.count(b"[") + marks.count(b"{") > MAX_CONTAINERS:
        raise BadRequestError(
            f"The body has more than {MAX_CONTAINERS} arrays and objects.", bound=Bound.JSON_CONTAINERS
        )
    depth = top_level_keys = 0
    for mark in marks:
        if mark in b"{[":
            depth += 1
            if depth > MAX_DEPTH:
                raise BadRequestError(
                    f"The body is nested deeper than {MAX_DEPTH} levels.", bound=Bound.JSON_DEPTH
                )
        elif mark == 0x3A:
            top_level_keys += depth == 1
        else:
            depth -= 1
    return top_level_keys
