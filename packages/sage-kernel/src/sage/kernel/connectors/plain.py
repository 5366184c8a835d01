"""Records as plain data: JSON texts, and mappings of column to value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from sage.common.errors import BadRequestError

__all__ = ["Form", "as_mapping", "as_message", "json_lines", "of_message", "to_json"]

Form: TypeAlias = Literal["json", "text", "bytes"]


def to_json(item: Any) -> str:
    """One line of JSON; dataclasses become objects, paths strings. Raises TypeError for other objects."""
    return _encode(item)


def json_lines(items: Any) -> bytes:
    """These items, each a line of JSON, in UTF-8."""
    text = "".join([f"{_encode(item)}\n" for item in items])
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can say
        return "".join([f"{_escape(item)}\n" for item in items]).encode()


def as_mapping(item: Any) -> Mapping[str, Any]:
    """A mapping as it is, a dataclass by its fields; raises BadRequestError for a record without columns."""
    if isinstance(item, Mapping):
        return item
    if is_dataclass(item) and not isinstance(item, type):
        return {field.name: getattr(item, field.name) for field in fields(item)}
    raise BadRequestError(
        f"a record is {type(item).__name__}, which has no columns.", hint="Map it to a dict or a dataclass."
    )


def as_message(item: Any, form: Form) -> bytes:
    """A record as the body of a message; raises BadRequestError for one that is not of this form."""
    if form == "json":
        return json_lines([item])[:-1]
    wanted = str if form == "text" else bytes
    if not isinstance(item, wanted):
        raise BadRequestError(f"a record is {type(item).__name__}, not {form}.", hint="Say format: json.")
    return item.encode() if isinstance(item, str) else item


def of_message(body: bytes, form: Form, *where: object) -> Any:
    """The body of a message as a record; raises BadRequestError that says `where` it is, if it cannot be."""
    try:
        return json.loads(body) if form == "json" else body.decode() if form == "text" else body
    except ValueError as error:
        raise BadRequestError(f"{' '.join(map(str, where))} is not {form}: {error}.") from error


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, set | frozenset):
        return list(value)
    # NumPy's scalars and arrays, without importing it.
    if callable(to_list := getattr(value, "tolist", None)):
        return to_list()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON; map it to plain data before the sink")


_encode = json.JSONEncoder(ensure_ascii=False, default=_plain, allow_nan=False).encode
_escape = json.JSONEncoder(default=_plain, allow_nan=False).encode
