"""Puppet engines as a kind of engine whose process the gateway supervises. Found by an entry point."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from sage.common.config import EngineConfig
from sage.middleware.engines.adapter import HttpEngine
from sage.middleware.engines.http import HttpPool
from sage.middleware.engines.launch import describe, log_file
from sage.middleware.engines.passthrough import PassThroughDialect
from sage.middleware.engines.port import Capability, Engine, EngineSpec
from sage.platform.service import ServiceSpec

__all__ = ["KIND", "install"]

_METADATA: Final = "Metadata-Version: 2.1\nName: sage-puppet\nVersion: 1.0\n"


class _PuppetKind:
    """Started as `python -m sage.benchmark.resilience.puppet`."""

    def spec(self, config: EngineConfig) -> EngineSpec:
        """A chat engine."""
        return describe(config, frozenset({Capability.CHAT}))

    def service(self, config: EngineConfig, port: int, _cores: tuple[int, ...]) -> ServiceSpec:
        """Its process; the cores are everybody's."""
        module = ("-m", "sage.benchmark.resilience.puppet")
        return ServiceSpec(
            name=config.name,
            argv=(sys.executable, *module, "--name", config.name, "--port", str(port)),
            probe_url=f"http://127.0.0.1:{port}/health",
            log=log_file(config),
            max_restarts=1000,
        )

    def connect(self, config: EngineConfig, url: str) -> Engine:
        """A connection to it."""
        return HttpEngine(self.spec(config), PassThroughDialect(), HttpPool(url), ready_path="/v1/models")


def install(site: Path) -> None:
    """Write what an installer would leave of a package that brings this kind; `site` goes on the path."""
    info = site / "sage_puppet-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(_METADATA)
    (info / "entry_points.txt").write_text(f"[sage.engines]\npuppet = {__name__}:KIND\n")


KIND = _PuppetKind()
