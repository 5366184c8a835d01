"""What every engine that we start ourselves has in common: its model, its environment, its log."""

from __future__ import annotations

import os
import platform
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sage.common.config import EngineConfig
from sage.common.errors import ConfigError
from sage.common.paths import SagePaths
from sage.middleware.engines.port import Capability, EngineSpec
from sage.middleware.models import RANDOM, RANDOM_RERANKER, ModelSource, architecture, resolve
from sage.platform.nodes import find_gpus

__all__ = [
    "check_reranker",
    "describe",
    "environment",
    "log_file",
    "option",
    "require",
    "source_of",
    "uses_gpu",
]


def describe(
    config: EngineConfig, capabilities: frozenset[Capability], *, on_gpu: bool = False, **known: Any
) -> EngineSpec:
    """The engine that `config` asks for, with what its kind has `known` of it.

    Engines that run here share this machine's cores as one device, but for one that has its GPU to itself.
    """
    shared = "" if on_gpu or config.url else f"cpu:{platform.node()}"
    return EngineSpec(
        name=config.name,
        kind=config.kind,
        model=config.model_id,
        capabilities=capabilities,
        max_running=config.max_running,
        random_weights=config.random_weights or config.model in (RANDOM, RANDOM_RERANKER),
        group=config.group or shared,
        **{"kv_tokens": config.kv_tokens, "context": config.context_tokens, **known},
    )


def check_reranker(config: EngineConfig) -> None:
    """Raise ConfigError for a model folder that holds no cross-encoder.

    Vectors of an embedding model can be compared too, and some engines would do that without a word.
    """
    folder = Path(config.model).expanduser()
    if not (folder / "config.json").is_file():
        return
    found = architecture(folder)
    if not found.endswith("ForSequenceClassification"):
        raise ConfigError(
            f"Engine {config.name}: task rerank needs a cross-encoder; {folder} holds a "
            f"{found or 'model without an architecture'}.",
            hint="Name a reranker, such as BAAI/bge-reranker-v2-m3, or use task embed.",
        )


def uses_gpu(python: str) -> bool:
    """Whether torch in the environment of that interpreter (empty = this one) would compute on a GPU."""
    prefix = Path(python or sys.executable).absolute().parent.parent
    cpu_build = any(prefix.glob("lib/python3*/site-packages/torch-*+cpu.dist-info"))
    return not cpu_build and bool(find_gpus()[0])


def require(config: EngineConfig, package: str, extra: str) -> None:
    """Raise ConfigError when the engine is to run in this environment, which does not hold `package`."""
    if not config.python and find_spec(package) is None:
        raise ConfigError(
            f"Engine {config.name}: {package} is not installed in this environment.",
            hint=f"Install sage-stack[{extra}], or name by `python:` the interpreter of one that has it.",
        )


def source_of(config: EngineConfig) -> ModelSource:
    """The model to load. Raises NotFoundError when its folder is not there."""
    return resolve(config.model, SagePaths.default().cache)


def environment(source: ModelSource, cores: tuple[int, ...]) -> dict[str, str]:
    """As many threads as cores, and no hub where the model is a folder.

    The hub's cache folder is made if it is missing: `transformers serve` lists it and fails without one.
    """
    hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface"), "hub")
    folder = Path(hub).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    env = {"HF_HUB_CACHE": str(folder), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}
    if source.is_folder:
        env["HF_HUB_OFFLINE"] = "1"
    if cores:
        env["OMP_NUM_THREADS"] = env["MKL_NUM_THREADS"] = str(len(cores))
    return env


def log_file(config: EngineConfig) -> Path:
    """Where the engine's own output goes, unless whoever supervises it has another place."""
    return SagePaths.default().logs / f"{config.name}.log"


def option(args: tuple[str, ...], name: str, default: int) -> int:
    """The value that a command line gives to an integer option; the last one counts."""
    value = default
    for index, arg in enumerate(args):
        text = args[index + 1] if arg == name and index + 1 < len(args) else arg.removeprefix(f"{name}=")
        if (arg == name or arg.startswith(f"{name}=")) and text.isdecimal():
            value = int(text)
    return value
