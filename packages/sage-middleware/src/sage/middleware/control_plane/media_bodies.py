"""What a request for sound or pictures asks for, of JSON or of a form. Pure.

Of most fields the engine judges the values: what is read here decides where the request goes, and is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from sage.common.errors import BadRequestError
from sage.common.telemetry import Bound
from sage.middleware.control_plane.facts import Facts, bounded, convert, estimate
from sage.middleware.control_plane.json_guard import strict_object
from sage.middleware.engines.forms import Field, form_type, read_form
from sage.middleware.engines.port import FORMS, Capability, Route

__all__ = ["MAX_IMAGES", "read_media"]

MAX_IMAGES: Final = 8  # of one answer
MAX_MODEL: Final = 256
BYTES_PER_TOKEN: Final = 1024  # of a file: models read sound as 10 to 50 tokens a second
_COUNT: Final = re.compile(r"[0-9]{1,9}")
_BOOLEANS: Final = {"true": True, "1": True, "false": False, "0": False, "": False}


class _Form(NamedTuple):
    """What a route that takes a form needs. `files`: one of these parts has to be there, as a file."""

    need: Capability
    files: tuple[str, ...]


_FORMS: Final[Mapping[Route, _Form]] = {
    Route.TRANSCRIPTIONS: _Form(Capability.TRANSCRIPTION, ("file",)),
    Route.TRANSLATIONS: _Form(Capability.TRANSLATION, ("file",)),
    Route.IMAGE_EDITS: _Form(Capability.IMAGE_EDITS, ("image", "image[]")),
}


class _Speech(msgspec.Struct):
    model: str
    input: str


class _Images(msgspec.Struct):
    model: str
    prompt: str
    n: int | None = None
    stream: bool | None = None


def read_media(route: Route, body: bytes, content_type: str) -> Facts:
    """Judge a body of one of `MEDIA`. Raises BadRequestError with `param` naming the field if it is one."""
    if route in FORMS:
        return _read_form(_FORMS[route], body, content_type)
    fields = strict_object(body)
    return _speech(fields, body) if route is Route.SPEECH else _images(fields, body)


def _speech(fields: dict[str, Any], body: bytes) -> Facts:
    """Sound goes out as it comes, in whatever form it was asked for."""
    speech = convert(fields, _Speech)
    return _facts(speech.model, body, Capability.SPEECH, _text("input", speech.input), stream=True)


def _images(fields: dict[str, Any], body: bytes) -> Facts:
    images = convert(fields, _Images)
    if images.n is not None:
        bounded("n", images.n, 1, MAX_IMAGES, bound=Bound.N)
    tokens = _text("prompt", images.prompt)
    return _facts(images.model, body, Capability.IMAGES, tokens, stream=bool(images.stream))


def _read_form(form: _Form, body: bytes, content_type: str) -> Facts:
    fields = read_form(body, content_type)
    model = _value(fields, "model")
    if model is None:
        raise BadRequestError("The field 'model' is missing.", param="model")
    bounded("model", len(model), 1, MAX_MODEL, "characters")
    files = [field for field in fields if field.is_file]
    if not any(field.name in form.files and field.stop > field.start for field in files):
        name = form.files[0]
        raise BadRequestError(f"The field {name!r} is missing, or is no file, or an empty one.", param=name)
    _check_count(fields)
    size = sum(field.stop - field.start for field in files)
    text = sum(len(field.value) for field in fields if field.name == "prompt")
    tokens = max(1, size // BYTES_PER_TOKEN) + text // 4
    return _facts(
        model, body, form.need, tokens, stream=_flag(fields, "stream"), content_type=form_type(content_type)
    )


def _check_count(fields: Sequence[Field]) -> None:
    count = _value(fields, "n")
    if count is None:
        return
    if not _COUNT.fullmatch(count):
        raise BadRequestError(f"n is {count[:64]!r}; it can be 1 to {MAX_IMAGES}.", param="n")
    bounded("n", int(count), 1, MAX_IMAGES, bound=Bound.N)


def _facts(
    model: str, body: bytes, need: Capability, tokens: int, *, stream: bool, content_type: str = ""
) -> Facts:
    # without `include_usage` an option would be added by which chats tell their tokens
    return Facts(
        model=model,
        body=body,
        needs=frozenset((need,)),
        prompt_tokens=tokens,
        stream=stream,
        include_usage=True,
        content_type=content_type,
    )


def _text(param: str, value: str) -> int:
    """About how many tokens it is."""
    if not value:
        raise BadRequestError(f"{param} is an empty string.", param=param)
    return estimate(len(value.encode()))


def _value(fields: Sequence[Field], name: str) -> str | None:
    """A field of text; None where it is not there."""
    field = next((one for one in fields if one.name == name), None)
    if field is None:
        return None
    if field.is_file:
        raise BadRequestError(f"The field {name!r} is a file; it must be text.", param=name)
    try:
        return field.value.decode()
    except UnicodeDecodeError:
        raise BadRequestError(f"The field {name!r} is not UTF-8.", param=name) from None


def _flag(fields: Sequence[Field], name: str) -> bool:
    value = _value(fields, name) or ""
    if (flag := _BOOLEANS.get(value.lower())) is None:
        raise BadRequestError(f"{name} is {value[:64]!r}; it can be 'true' or 'false'.", param=name)
    return flag
