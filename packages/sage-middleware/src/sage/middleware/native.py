"""Whether the native operators are used: yes, unless `SAGE_NATIVE=0` asks for those in Python and NumPy."""

from __future__ import annotations

import os
from functools import cache

from sage.common.errors import ConfigError

__all__ = ["uses_native", "wants_native"]


@cache
def uses_native() -> bool:
    """What the environment of this process asks for, judged once. Raises as `wants_native` does."""
    return wants_native(os.environ.get("SAGE_NATIVE", ""))


def wants_native(setting: str) -> bool:
    """What a value of `SAGE_NATIVE` asks for: "0" for Python and NumPy, "" or "1" for the native module.

    Raises ConfigError when that is missing: a slow operator is never a silent fallback.
    """
    if setting == "0":
        return False
    if setting not in ("", "1"):
        raise ConfigError(f"SAGE_NATIVE is {setting!r}; it can be 0 (Python and NumPy), 1 or unset (native).")
    try:
        from sage.middleware import _native  # noqa: F401 - whether it loads
    except ImportError as exc:
        raise ConfigError(
            f"The native module sage.middleware._native cannot be loaded ({exc}).",
            hint="Install sage-middleware again with a C++20 compiler at hand (pip install --force-reinstall "
            "--no-deps sage-middleware), or set SAGE_NATIVE=0 to do without, which is slower.",
        ) from exc
    return True
