"""A kind of engine for tests of pools: the scripted engine as a process of its own, or one that fails."""

from __future__ import annotations

import sys
from pathlib import Path

from sage.common.config import EngineConfig
from sage.middleware.engines.openai import OpenAIKind
from sage.middleware.engines.port import Engine, EngineSpec
from sage.platform.service import ServiceSpec

__all__ = ["ProcessKind"]

# Answers the first word of a stream; the rest, of all streams, from when it gets SIGUSR1.
_SERVE = """
import asyncio, signal, sys
from sage.middleware.testing.engines import Script, ScriptedEngine

async def main():
    gate = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, gate.set)
    await ScriptedEngine(script=Script(gate=gate, gate_after=1)).start(int(sys.argv[1]))
    await asyncio.Event().wait()

asyncio.run(main())
"""
_BROKEN = "import sys; sys.exit('no model at ' + sys.argv[1])"


class ProcessKind:
    """Fits `EngineKind`. With something called `broken` in its model's folder the process fails at once."""

    def spec(self, config: EngineConfig) -> EngineSpec:
        """As of an engine elsewhere."""
        return OpenAIKind().spec(config.model_copy(update={"url": "http://unused"}))

    def service(self, config: EngineConfig, port: int, cores: tuple[int, ...]) -> ServiceSpec | None:
        """A process of this interpreter."""
        code = _BROKEN if (Path(config.model) / "broken").exists() else _SERVE
        probe = f"http://127.0.0.1:{port}/health"
        argv = (sys.executable, "-c", code, str(port))
        return ServiceSpec(config.name, argv, probe, Path("x.log"), cores=cores)

    def connect(self, config: EngineConfig, url: str) -> Engine:
        """By OpenAI's protocol."""
        return OpenAIKind().connect(config.model_copy(update={"url": url}), url)
