"""Our own embedding server around sentence-transformers, as an engine."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from sage.common.config import EngineConfig
from sage.common.errors import ConfigError
from sage.middleware.engines.adapter import HttpEngine
from sage.middleware.engines.http import HttpPool
from sage.middleware.engines.launch import (
    check_reranker,
    describe,
    environment,
    log_file,
    require,
    source_of,
    uses_gpu,
)
from sage.middleware.engines.passthrough import PassThroughDialect
from sage.middleware.engines.port import Call, Capability, Engine, EngineSpec
from sage.middleware.engines.threads import THREADS_HEADER
from sage.platform.nodes import inventory
from sage.platform.service import ServiceSpec

__all__ = ["KIND", "EmbeddingKind"]


class EmbeddingKind:
    """Started as `python -m sage.middleware.engines.embedding_server`."""

    def spec(self, config: EngineConfig) -> EngineSpec:
        """Embeddings, or scores with `task: rerank`, and the model's tokens.

        Raises ConfigError for `python`, as it runs in this environment, and for a reranker that is none.
        """
        if config.python:
            raise ConfigError(
                f"Engine {config.name}: kind embedding runs in SAGE's own environment and takes no `python`.",
                hint="Remove `python`, or use kind vllm with task embed or rerank.",
            )
        reranks = config.task == "rerank"
        if reranks:
            check_reranker(config)
        can = frozenset({Capability.RERANK if reranks else Capability.EMBEDDINGS, Capability.TOKENIZE})
        gpu = uses_gpu("")
        return describe(config, can, on_gpu=gpu, elastic=not gpu)

    def service(self, config: EngineConfig, port: int, cores: tuple[int, ...]) -> ServiceSpec:
        """One process with as many threads as it has cores, and all the machine's when it is asked to.

        On a GPU it is pinned like any engine. Else it pins its threads by itself: it must be able to put
        those that are asked for on cores of others.
        """
        require(config, "sentence_transformers", "cpu")
        source = source_of(config)
        argv = [
            sys.executable,
            "-m",
            "sage.middleware.engines.embedding_server",
            "--model",
            source.path_or_id,
        ]
        spec = self.spec(config)
        if spec.task == "rerank":
            argv += ["--task", "rerank"]
        argv += ["--served-as", spec.model, "--port", str(port), "--threads", str(len(cores) or 1)]
        lends = spec.elastic and bool(cores)
        if lends:
            argv += ["--cores", ",".join(map(str, cores)), "--max-threads", str(len(inventory().cpus))]
        return ServiceSpec(
            name=config.name,
            argv=(*argv, *config.args),
            probe_url=f"http://127.0.0.1:{port}/health",
            log=log_file(config),
            env=environment(source, cores),
            cores=() if lends else cores,
            start_timeout=config.start_timeout_s,
        )

    def connect(self, config: EngineConfig, url: str) -> Engine:
        """A connection to the server at `url`."""
        spec = self.spec(config)
        return _EmbeddingEngine(spec, PassThroughDialect(), HttpPool(url))


class _EmbeddingEngine(HttpEngine):
    """Tells the server how many threads a call should have."""

    def headers(self, call: Call) -> Mapping[str, str]:
        headers = super().headers(call)
        return {**headers, THREADS_HEADER: str(call.threads)} if call.threads else headers


KIND = EmbeddingKind()
