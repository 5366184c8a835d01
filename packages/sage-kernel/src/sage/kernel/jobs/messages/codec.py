"""Messages as lines of JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any, Final, cast, get_args

from sage.common.errors import BadRequestError
from sage.kernel.jobs.messages.orders import Order, Source
from sage.kernel.jobs.messages.words import Word

__all__ = ["LONGEST", "decode_order", "decode_word", "encode"]

LONGEST: Final = 4 * 1024 * 1024
"""Bytes of a line; a plan and the counts of its operators are far smaller."""


def encode(message: Order | Word) -> bytes:
    """One line."""
    return json.dumps({"is": type(message).__name__, **asdict(message)}).encode() + b"\n"


def decode_order(line: bytes) -> Order:
    """What `encode` made of an order. Raises BadRequestError for anything else."""
    found = cast("Order", _decode(line, get_args(Order)))
    if isinstance(source := getattr(found, "source", None), dict):
        return type(found)(**{**_fields(found), "source": Source(**_tuples(source))})
    return found


def decode_word(line: bytes) -> Word:
    """What `encode` made of a word. Raises BadRequestError for anything else."""
    return cast("Word", _decode(line, get_args(Word)))


def _decode(line: bytes, kinds: tuple[type, ...]) -> Any:
    try:
        data = json.loads(line)
        kind = {one.__name__: one for one in kinds}[data.pop("is")]
        return kind(**_tuples(data))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        valid = ", ".join(one.__name__ for one in kinds)
        raise BadRequestError(f"{line[:80]!r} is no message; valid is one of {valid}.") from error


def _fields(message: Any) -> dict[str, Any]:
    return {one.name: getattr(message, one.name) for one in fields(message)}


def _tuples(data: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
