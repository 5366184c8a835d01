"""What `sage up` was told, and so how a stack's configuration is made: at its start, and again later."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from sage.common.config import PortsConfig, SageConfig
from sage.common.errors import UsageError
from sage.common.paths import SagePaths
from sage.common.settings import Loaded, load
from sage.middleware.stack import QUICK_PORTS, quick_config

__all__ = ["Recipe"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """The options of `sage up`. A stack gets them as text, so that it can make its configuration anew."""

    config: Path | None = None
    model: str | None = None
    engine: str | None = None
    engine_python: Path | None = None

    def settings(self) -> tuple[SageConfig, SagePaths]:
        """The configuration as given; without engines, or with a `model` to run, the quick one.

        Raises ConfigError, NotFoundError (a model or an interpreter) and UsageError (options that say nothing
        about the engines that the configuration names).
        """
        loaded, where = self._loaded()
        if self._quick(loaded.config):
            return self._made(loaded.config, where), where
        return loaded.config, where

    def again(self, running: SageConfig) -> Loaded:
        """What it comes to now, while `running` is in force. Raises like `settings`.

        Where it was free to choose a port it keeps the one that it has.
        """
        loaded, where = self._loaded()
        config = loaded.config
        if self._quick(config):
            usual, ports = PortsConfig(), config.ports
            chosen = {
                name: getattr(running.ports, name)
                for name in QUICK_PORTS
                if getattr(ports, name) == getattr(usual, name)
            }
            config = self._made(config, where).model_copy(update={"ports": ports.model_copy(update=chosen)})
        if running.state_dir is not None and where.state.resolve() == running.state_dir.resolve():
            config = config.model_copy(update={"state_dir": running.state_dir})
        return Loaded(config, loaded.origin)

    def text(self) -> str:
        """For the command line of a stack; files by their whole paths."""
        values = {"config": self.config, "model": self.model, "engine": self.engine}
        whole = {
            name: os.path.abspath(value) if isinstance(value, Path) else value
            for name, value in {**values, "engine_python": self.engine_python}.items()
        }
        return json.dumps({name: value for name, value in whole.items() if value is not None})

    @classmethod
    def parse(cls, text: str) -> Self:
        """The opposite of `text`."""
        values = json.loads(text)
        files = {name: Path(values[name]) for name in ("config", "engine_python") if name in values}
        return cls(**{**values, **files})

    def _loaded(self) -> tuple[Loaded, SagePaths]:
        loaded, here = load(file=self.config), SagePaths.default()
        state = loaded.config.state_dir
        return loaded, replace(here, state=state) if state else here

    def _quick(self, config: SageConfig) -> bool:
        if self.model is not None or not config.engines:
            return True
        if self.engine or self.engine_python:
            raise UsageError(
                "The configuration names its engines, so --engine and --engine-python say nothing about "
                "them.",
                hint="Set `kind` and `python` there, or give --model too: it is then run instead.",
            )
        return False

    def _made(self, base: SageConfig, where: SagePaths) -> SageConfig:
        kind = self.engine or "transformers"
        return quick_config(self.model, kind, where, engine_python=self.engine_python, base=base)
