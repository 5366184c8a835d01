"""What a value is, in 16 bytes: the same for equal plain values, in any process."""

from __future__ import annotations

import pickle
from dataclasses import fields, is_dataclass
from enum import Enum
from hashlib import blake2b
from typing import Any

from sage.common.errors import UsageError

__all__ = ["digest"]

_PLAIN = (int, float, bool, type(None))


def digest(value: Any) -> str:
    """The hash of a value as 32 hex digits.

    The order of a dictionary and of a set does not count; 1, 1.0 and True are three values. Objects that are
    no plain data and no dataclass count by their pickle. Raises `UsageError` for what has none.
    """
    found = blake2b(digest_size=16)
    for piece in _pieces(value):
        found.update(piece)
    return found.hexdigest()


def _pieces(value: Any) -> list[bytes]:
    """The bytes of a value; each begins with a tag and a length, so that no two values have the same."""
    kind = type(value)
    if kind is str or kind is bytes:
        text = value.encode("utf-8", "surrogatepass") if kind is str else value
        return [_tag(kind.__name__, len(text)), text]
    if kind in _PLAIN:
        text = repr(value).encode()
        return [_tag(kind.__name__, len(text)), text]
    if kind is dict:
        pairs = sorted(b"".join((*_pieces(key), *_pieces(held))) for key, held in value.items())
        return [_tag("dict", len(pairs)), *pairs]
    if kind in (set, frozenset):
        items = sorted(b"".join(_pieces(item)) for item in value)
        return [_tag(kind.__name__, len(items)), *items]
    name = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, Enum):
        return [_tag(name, 1), *_pieces(value.name)]
    if is_dataclass(value):
        parts = [getattr(value, part.name) for part in fields(value)]
    elif isinstance(value, list | tuple):
        parts = list(value)
    else:
        return _pickled(name, value)
    return [_tag(name, len(parts)), *(piece for part in parts for piece in _pieces(part))]


def _tag(kind: str, length: int) -> bytes:
    return f"{kind}:{length}:".encode()


def _pickled(name: str, value: Any) -> list[bytes]:
    try:
        data = pickle.dumps(value, protocol=5)
    except Exception as error:
        raise UsageError(
            f"a {name} cannot be told from others, for it cannot be pickled ({error}).",
            hint="Say what counts with Cache(key=...), a function of the record that gives plain data.",
        ) from error
    return [_tag(name, len(data)), data]
