"""Our own embedding server around sentence-transformers, as an engine."""

from __future__ import annotations

import sys

from sage.common.config import EngineConfig
from sage.common.errors import ConfigError
from sage.middleware.engines.adapter import HttpEngine, PassThroughDialect
from sage.middleware.engines.http import HttpPool
from sage.middleware.engines.launch import describe, environment, log_file, require, source_of
from sage.middleware.engines.port import Capability, Engine, EngineSpec
from sage.platform.service import ServiceSpec

__all__ = ["KIND", "EmbeddingKind"]


class EmbeddingKind:
    """Started as `python -m sage.middleware.engines.embedding_server`."""

    def spec(self, config: EngineConfig) -> EngineSpec:
        """Embeddings only. Raises ConfigError for `python`: it runs in this environment."""
        if config.python:
            raise ConfigError(
                f"Engine {config.name}: kind embedding runs in SAGE's own environment and takes no `python`.",
                hint="Remove `python`, or use kind vllm with task embed.",
            )
        return describe(config, frozenset({Capability.EMBEDDINGS}))

    def service(self, config: EngineConfig, port: int, cores: tuple[int, ...]) -> ServiceSpec:
        """One process with as many threads as it has cores."""
        require(config, "sentence_transformers", "cpu")
        source = source_of(config)
        argv = [
            sys.executable,
            "-m",
            "sage.middleware.engines.embedding_server",
            "--model",
            source.path_or_id,
        ]
        argv += [
            "--served-as",
            self.spec(config).model,
            "--port",
            str(port),
            "--threads",
            str(len(cores) or 1),
        ]
        return ServiceSpec(
            name=config.name,
            argv=(*argv, *config.args),
            probe_url=f"http://127.0.0.1:{port}/health",
            log=log_file(config),
            env=environment(source, cores),
            cores=cores,
            start_timeout=config.start_timeout_s,
        )

    def connect(self, config: EngineConfig, url: str) -> Engine:
        """A connection to the server at `url`."""
        spec = self.spec(config)
        return HttpEngine(spec, PassThroughDialect(spec.model), HttpPool(url))


KIND = EmbeddingKind()
