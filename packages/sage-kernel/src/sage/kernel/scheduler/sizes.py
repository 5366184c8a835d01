"""Sizes in bytes, as people write them."""

from __future__ import annotations

import re

from sage.common.errors import UsageError

__all__ = ["format_bytes", "format_short", "parse_bytes"]

_UNITS = {
    "": 1, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
}  # fmt: skip
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B|B|)", re.ASCII)


def parse_bytes(size: int | str, what: str = "the size") -> int:
    """Bytes of `8589934592`, `"8GiB"` or `"1.5 GB"`; part of a byte is cut off.

    Raises UsageError that says what would be valid.
    """
    if isinstance(size, str) and (found := _SIZE.fullmatch(size.strip())):
        return (
            int(float(found[1]) * _UNITS[found[2]]) if "." in found[1] else int(found[1]) * _UNITS[found[2]]
        )
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return size
    raise UsageError(
        f"{what} is {size!r}; valid is a number of bytes or a text such as '8GiB' or '500MB', not negative."
    )


def format_bytes(count: int) -> str:
    """The size to three digits: `8GiB`, `1.46GiB`, `512B`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        size = count / _UNITS[unit]
        if size >= 1:
            return f"{size:.3g}{unit}" if size < 1000 else f"{size:.0f}{unit}"
    return f"{count}B"


def format_short(wanted: int, found: int) -> tuple[str, str]:
    """Both sizes, in bytes where they would look the same."""
    texts = format_bytes(wanted), format_bytes(found)
    return texts if texts[0] != texts[1] else (f"{wanted}B", f"{found}B")
