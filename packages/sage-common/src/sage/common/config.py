"""The configuration: one schema, and where each value came from.

Order, first wins: flags > `SAGE_…` environment > `--config FILE` > `./sage.yaml` > user config > defaults.
A key of the schema is written `SAGE_GATEWAY__HOST` in the environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
)

__all__ = ["ControlPlaneConfig", "EngineConfig", "GatewayConfig", "PortsConfig", "SageConfig"]

Port = Annotated[int, Field(ge=0, le=65535)]
PortRange = tuple[Annotated[int, Field(ge=1, le=65535)], Annotated[int, Field(ge=1, le=65535)]]


def _expanded(path: Path | None) -> Path | None:
    """`~` is a home directory, in files too."""
    return path.expanduser() if path else None


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PortsConfig(_Section):
    """Ports and inclusive port ranges. 0 = take any free one."""

    gateway: Port = 8888
    health: Port = 8887
    admin: Port = 8886
    studio: Port = 8889
    llm: PortRange = (8001, 8089)
    embedding: PortRange = (8090, 8199)
    benchmark: PortRange = (8901, 8999)
    ray: Port = 6380


class GatewayConfig(_Section):
    """The front door."""

    host: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")
    max_body_bytes: PositiveInt = 4 * 1024 * 1024
    max_embedding_body_bytes: PositiveInt = 16 * 1024 * 1024
    max_inputs: PositiveInt = 2048
    drain_s: NonNegativeFloat = 30.0


class ControlPlaneConfig(_Section):
    """Scheduling."""

    policy: str = "least_load"
    queue_max_requests: PositiveInt = 1024
    queue_max_bytes: PositiveInt = 256 * 1024 * 1024
    queue_max_wait_s: PositiveFloat = 30.0
    bulk_texts: PositiveInt = Field(8, description="more texts than this make an embedding request bulk")
    bulk_tokens: PositiveInt = Field(4000, description="so do more tokens than this")
    decision_history: PositiveInt = 4096


class EngineConfig(_Section):
    """One engine. `model` is a hub name or a folder; for kind `openai` the URL goes to `url`."""

    name: str
    kind: str = Field(description="transformers, embedding, vllm, openai, or one from an entry point")
    model: str
    served_as: str = Field("", description="the id clients ask for; empty = the last part of `model`")
    task: Literal["generate", "embed"] = "generate"
    url: str = Field("", description="kind openai: base URL of a server that already runs")
    api_key_env: str = Field("", description="kind openai: environment variable that holds its key")
    python: str = Field("", description="interpreter of another environment, where the engine is installed")
    cores: int = Field(0, ge=0, description="how many CPU cores it gets; 0 = shared out evenly")
    max_running: PositiveInt = 32
    random_weights: bool = False
    start_timeout_s: PositiveFloat = 300.0
    args: tuple[str, ...] = Field((), description="extra arguments, appended to the engine's command line")


class SageConfig(_Section):
    """All of it. `state_dir` empty = the platform's own place."""

    state_dir: Annotated[Path | None, AfterValidator(_expanded)] = None
    ports: PortsConfig = PortsConfig()
    gateway: GatewayConfig = GatewayConfig()
    control_plane: ControlPlaneConfig = ControlPlaneConfig()
    engines: tuple[EngineConfig, ...] = ()
