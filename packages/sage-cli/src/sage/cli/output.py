"""What a command says: data on stdout, talk on stderr. It has no colour, so `NO_COLOR` is always honoured."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

    from sage.common.errors import SageError

__all__ = ["Talk", "columns", "emit", "emit_line", "report"]


@dataclass(frozen=True, slots=True)
class Talk:
    """The options that every command shares."""

    quiet: bool = False

    def say(self, text: str) -> None:
        """One line for a person, on stderr."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """Something is not as it was asked for, on stderr, with `--quiet` too."""
        print(f"warning: {text}", file=sys.stderr, flush=True)


def emit(value: BaseModel | dict[str, Any] | list[Any]) -> None:
    """One JSON document on stdout, indented."""
    print(_json(value, indent=2))


def emit_line(value: BaseModel | dict[str, Any]) -> None:
    """One line of NDJSON on stdout, at once."""
    print(_json(value), flush=True)


def columns(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows under their heads, each column as wide as its widest cell."""
    cells = [tuple(head), *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in cells)


def report(error: SageError) -> None:
    """What failed and what to do about it, on stderr."""
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


def _json(value: BaseModel | dict[str, Any] | list[Any], *, indent: int | None = None) -> str:
    import json

    plain = value if isinstance(value, dict | list) else value.model_dump(mode="json")
    return json.dumps(plain, indent=indent, ensure_ascii=False)
