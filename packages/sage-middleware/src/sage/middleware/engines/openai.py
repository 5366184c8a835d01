"""Any server that already runs and speaks OpenAI's API, on this machine or elsewhere."""

from __future__ import annotations

import os

from sage.common.config import EngineConfig
from sage.common.errors import ConfigError
from sage.middleware.engines.adapter import HttpEngine
from sage.middleware.engines.http import HttpPool
from sage.middleware.engines.launch import describe
from sage.middleware.engines.passthrough import PassThroughDialect
from sage.middleware.engines.port import MEDIA_CAPABILITIES, Capability, Engine, EngineSpec
from sage.platform.service import ServiceSpec

__all__ = ["KIND", "OpenAIKind"]

# vLLM's own: OpenAI itself refuses `priority` and has no route for tokens
_OTHERS = frozenset({Capability.PRIORITY, Capability.TOKENIZE, Capability.TOP_K})
# of which only the configuration knows
_NAMED = MEDIA_CAPABILITIES | {Capability.MESSAGES, Capability.RESPONSES}
_TASKS = {
    "generate": frozenset(Capability) - _OTHERS - _NAMED - {Capability.EMBEDDINGS, Capability.RERANK},
    "embed": frozenset({Capability.EMBEDDINGS}),
    "rerank": frozenset({Capability.RERANK}),
}


class OpenAIKind:
    """Nothing is started; the key comes from the environment variable that `api_key_env` names."""

    def spec(self, config: EngineConfig) -> EngineSpec:
        """Taken to do all of OpenAI's API of text that belongs to its task, or what its `capabilities` name.

        Raises ConfigError without a URL or when the key is not set.
        """
        if not config.url:
            raise ConfigError(
                f"Engine {config.name}: kind openai needs `url`, the base URL of the server.",
                hint="For example url: http://127.0.0.1:11434/v1",
            )
        if config.api_key_env and not os.environ.get(config.api_key_env):
            raise ConfigError(
                f"Engine {config.name}: the environment variable {config.api_key_env} holds no key.",
                hint=f"Set {config.api_key_env}, or leave api_key_env out for a server without keys.",
            )
        # many servers rerank by one query at a time only, so that requests are not put together for them
        can = frozenset(map(Capability, config.capabilities)) or _TASKS[config.task]
        can = can.union(map(Capability, config.speaks))
        return describe(config, can, coalesces=config.task != "rerank")

    def service(self, _config: EngineConfig, _port: int, _cores: tuple[int, ...]) -> ServiceSpec | None:
        """It runs elsewhere."""
        return None

    def connect(self, config: EngineConfig, url: str) -> Engine:
        """A connection to `url`, with or without `/v1` at its end."""
        spec = self.spec(config)
        headers = {}
        if config.api_key_env:
            headers["authorization"] = f"Bearer {os.environ[config.api_key_env]}"
        base = url.rstrip("/").removesuffix("/v1")
        dialect = PassThroughDialect("" if config.model == spec.model else config.model)
        return HttpEngine(spec, dialect, HttpPool(base), headers=headers, ready_path="/v1/models")


KIND = OpenAIKind()
