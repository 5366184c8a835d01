"""The standard output, and a list written in a plan itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from sage.kernel.connectors.plain import to_json

__all__ = ["Stdout", "items"]


def items(values: list[Any]) -> list[Any]:
    """A list that is written in the plan itself."""
    return values


class Stdout:
    """Writes each record as one line of JSON to standard output, at least once."""

    async def write(self, _epoch: int, items: Sequence[Any]) -> None:
        """Write and flush a batch."""
        sys.stdout.write("".join(f"{to_json(item)}\n" for item in items))
        sys.stdout.flush()

    async def commit(self, _epoch: int) -> None:
        """Everything is out already."""
