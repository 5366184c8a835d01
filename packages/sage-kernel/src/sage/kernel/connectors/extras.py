"""Libraries that only some connectors need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sage.common.errors import ConfigError

__all__ = ["needed"]


def needed(module: str, extra: str) -> Any:
    """The module; raises ConfigError that says which extra brings it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"The package {module.partition('.')[0]} is needed here and not installed.",
            hint=f"Install `sage-kernel[{extra}]`.",
        ) from error
