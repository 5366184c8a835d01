"""vLLM, on a GPU (`vllm`) or on CPU cores (`vllm-cpu`), from its own environment where one is configured."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sage.common.config import EngineConfig
from sage.common.errors import ConfigError
from sage.middleware.engines.adapter import HttpEngine
from sage.middleware.engines.http import HttpPool
from sage.middleware.engines.launch import (
    check_reranker,
    describe,
    environment,
    log_file,
    option,
    require,
    source_of,
)
from sage.middleware.engines.passthrough import PassThroughDialect
from sage.middleware.engines.port import MEDIA_CAPABILITIES, Capability, Engine, EngineSpec, Route
from sage.platform.service import ServiceSpec

__all__ = ["KIND", "VllmKind"]

_POOLS = {
    "embed": frozenset({Capability.EMBEDDINGS, Capability.TOKENIZE}),
    "rerank": frozenset({Capability.RERANK, Capability.TOKENIZE}),
}
_PATHS = {Route.TOKENIZE: "/tokenize", Route.DETOKENIZE: "/detokenize"}
_GENERATES = frozenset(Capability) - MEDIA_CAPABILITIES - {Capability.EMBEDDINGS, Capability.RERANK}
_BATCHED_TOKENS = 2048  # its own default as a server on most devices
_STRUCTURED_OUTPUTS = '{"backend":"xgrammar","disable_any_whitespace":true}'


class VllmKind:
    """`task: embed` and `task: rerank` start it as a pooling server (vectors, scores), else it generates."""

    def spec(self, config: EngineConfig) -> EngineSpec:
        """Everything OpenAI's API has of text, or vectors, or scores; or what its `capabilities` name.

        Raises ConfigError when the interpreter is not there, and for a reranker that is none.
        """
        if config.python and not Path(config.python).is_file():
            raise ConfigError(
                f"Engine {config.name}: there is no Python interpreter at {config.python}.",
                hint="Name the interpreter of an environment with vLLM; ./manage.sh test-vllm makes one.",
            )
        if config.task == "rerank" and not any(arg.startswith("--hf-overrides") for arg in config.args):
            check_reranker(config)
        can = frozenset(map(Capability, config.capabilities)) or _POOLS.get(config.task, _GENERATES)
        chunk = option(config.args, "--max-num-batched-tokens", _BATCHED_TOKENS)
        gpu = not _is_cpu_build(config.python or sys.executable)
        return describe(config, can, on_gpu=gpu, chunk=chunk)

    def service(self, config: EngineConfig, port: int, cores: tuple[int, ...]) -> ServiceSpec:
        """Its OpenAI server. Started as a module: vllm-cpu has no working `vllm` command."""
        require(config, "vllm", "vllm")
        source = source_of(config)
        python = config.python or sys.executable
        on_cpu = _is_cpu_build(python)
        argv = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", source.path_or_id]
        argv += ["--served-model-name", self.spec(config).model, "--host", "127.0.0.1", "--port", str(port)]
        argv += ["--max-num-seqs", str(config.max_running)]
        if config.task in _POOLS:
            argv += ["--runner", "pooling"]
        else:
            argv += ["--scheduling-policy", "priority", "--structured-outputs-config", _STRUCTURED_OUTPUTS]
            argv += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
        if on_cpu:
            argv.append("--enforce-eager")  # compiling takes longer than it gives on a few cores
        env = {**environment(source, cores), "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        if on_cpu:
            env["VLLM_CPU_KVCACHE_SPACE"] = os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
            if cores:
                env["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
        return ServiceSpec(
            name=config.name,
            argv=(*argv, *config.args),
            probe_url=f"http://127.0.0.1:{port}/health",
            log=log_file(config),
            env=env,
            cores=cores,
            start_timeout=config.start_timeout_s,
        )

    def connect(self, config: EngineConfig, url: str) -> Engine:
        """A connection to the server at `url`."""
        return HttpEngine(self.spec(config), PassThroughDialect(), HttpPool(url), paths=_PATHS)


def _is_cpu_build(python: str) -> bool:
    """Whether that interpreter's environment holds vllm-cpu."""
    prefix = Path(python).absolute().parent.parent
    return any(prefix.glob("lib/python3*/site-packages/vllm_cpu-*.dist-info"))


KIND = VllmKind()
