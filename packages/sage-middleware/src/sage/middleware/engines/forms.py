"""A whole form: its fields read, and the model in it named anew; all other bytes stay as they are. Pure."""

from __future__ import annotations

import msgspec

from sage.common.errors import BadRequestError
from sage.common.telemetry import Bound
from sage.middleware.engines.multipart import FORM, Multipart, Part, boundary_of

__all__ = ["Field", "form_type", "read_form", "rename_form"]

MAX_PARTS = 64  # sixteen pictures, and each field that there is
MAX_VALUE = 64 * 1024  # of a field that is no file
_PIECE = 64 * 1024  # stays in the processor's cache


class Field(msgspec.Struct):
    """One part. `value` is empty where it is a file. `start`, `stop`: where its bytes are in the body."""

    name: str
    is_file: bool
    start: int
    stop: int
    value: bytes = b""


def read_form(body: bytes, content_type: str) -> list[Field]:
    """The parts in their order. Raises MediaTypeError, and BadRequestError for what is no such form.

    One value may stand for a name, but for lists, whose names end in `[]`: two programs on the way could
    each take another one.
    """
    form = Multipart(boundary_of(content_type), MAX_PARTS)
    fields: list[Field] = []
    for at in range(0, len(body), _PIECE):
        for found in form.feed(body[at : at + _PIECE]):
            if isinstance(found, Part):
                fields.append(_opened(found, fields))
            else:
                _extend(fields[-1], found)
    form.close()
    return fields


def form_type(content_type: str) -> str:
    """The type by which a form goes on: with the one boundary that it was read by. Raises MediaTypeError."""
    return f'{FORM}; boundary="{boundary_of(content_type).decode()}"'


def rename_form(body: bytes, content_type: str, model: str) -> bytes:
    """The same form with another value of its field `model`.

    Raises BadRequestError if it has none, or if that value would end the part.
    """
    own = [field for field in read_form(body, content_type) if field.name == "model"]
    if not own:
        raise BadRequestError("The field 'model' is missing.", param="model")
    if own[0].value.decode("utf-8", "replace") == model:
        return body
    value = model.encode()
    if b"\r\n--" + boundary_of(content_type) in b"\r\n" + value:
        raise BadRequestError("The boundary of the form is part of the model's name.", param="model")
    view = memoryview(body)  # so that a large file is copied once
    return b"".join((view[: own[0].start], value, view[own[0].stop :]))


def _opened(part: Part, before: list[Field]) -> Field:
    if not part.name.endswith("[]") and any(field.name == part.name for field in before):
        raise BadRequestError(f"The form has the field {part.name[:64]!r} twice.", param=part.name[:64])
    return Field(part.name, part.filename is not None, part.start, part.start)


def _extend(field: Field, data: bytes) -> None:
    field.stop += len(data)
    if field.is_file:
        return
    field.value += data
    if len(field.value) > MAX_VALUE:
        raise BadRequestError(
            f"The field {field.name[:64]!r} has more than {MAX_VALUE} bytes.",
            param=field.name[:64],
            bound=Bound.FORM_FIELD_BYTES,
        )
