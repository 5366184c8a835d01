"""Fields of a request as a struct, with errors that name the one that does not fit. Pure."""

from __future__ import annotations

import re
from typing import Any, Final, TypeVar

import msgspec

from sage.common.errors import BadRequestError

__all__ = ["convert"]

_T = TypeVar("_T", bound=msgspec.Struct)

_ERROR_PATH: Final = re.compile(r"^(?P<what>.*) - at `(?:key in )?\$\.?(?P<path>[^`]*)`$", re.DOTALL)
_UNKNOWN: Final = re.compile(
    r"Object contains unknown field `(?P<name>.*?)`(?: - at `\$\.?(?P<path>[^`]*)`)?", re.DOTALL
)
_MISSING: Final = re.compile(
    r"Object missing required field `(?P<name>\w+)`(?: - at `\$\.?(?P<path>[^`]*)`)?"
)
_MAX_NAME: Final = 64
_MAX_PATH: Final = 128


def convert(fields: dict[str, Any], to: type[_T]) -> _T:
    """The fields as that struct. Raises BadRequestError with `param` naming the one that does not fit."""
    try:
        return msgspec.convert(fields, to)
    except msgspec.ValidationError as exc:
        raise _bad_field(str(exc), to) from None


def _bad_field(message: str, to: type[msgspec.Struct]) -> BadRequestError:
    missing = _MISSING.fullmatch(message)
    if missing:
        name = _within(missing["path"], missing["name"])
        return BadRequestError(f"The field '{name}' is missing.", param=name)
    unknown = _UNKNOWN.fullmatch(message)
    if unknown:
        name = _within(unknown["path"], unknown["name"][:_MAX_NAME])
        if unknown["path"]:
            return BadRequestError(f"The field '{name}' is not known here.", param=name)
        valid = ", ".join(field.encode_name for field in msgspec.structs.fields(to))
        return BadRequestError(f"The field '{name}' is not known here; valid are: {valid}.", param=name)
    found = _ERROR_PATH.match(message)
    if not found or not found["path"]:
        return BadRequestError(f"The body does not fit: {message}.")
    return BadRequestError(f"{found['path']}: {found['what'].replace('`', '')}.", param=found["path"])


def _within(path: str | None, name: str) -> str:
    return f"{path[:_MAX_PATH]}.{name}" if path else name
