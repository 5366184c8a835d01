"""What the schema cannot know of a configuration, looked up before anything starts."""

from __future__ import annotations

from pathlib import Path

from sage.common.config import SageConfig
from sage.common.errors import NotFoundError

__all__ = ["check_models"]


def check_models(config: SageConfig) -> None:
    """Raise NotFoundError for an engine whose model is a folder that is not there."""
    for engine in config.engines:
        if engine.kind == "openai" or not engine.model.startswith(("/", "./", "../", "~")):
            continue
        folder = Path(engine.model).expanduser()
        if not folder.is_dir():
            raise NotFoundError(
                f"The model folder {folder} of engine {engine.name!r} does not exist.",
                hint="Give a folder with a config.json, or a hub name such as Qwen/Qwen3-0.6B.",
            )
