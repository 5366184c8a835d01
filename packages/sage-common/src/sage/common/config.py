"""The configuration: one schema, and where each value came from.

Order, first wins: flags > `SAGE_…` environment > `--config FILE` > `./sage.yaml` > user config > defaults.
A key of the schema is written `SAGE_GATEWAY__HOST` in the environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
)

__all__ = [
    "Ability",
    "BatchesConfig",
    "ControlPlaneConfig",
    "EngineConfig",
    "GatewayConfig",
    "JobsConfig",
    "ModelConfig",
    "PipelineConfig",
    "PortsConfig",
    "RerankSlo",
    "SageConfig",
    "SloConfig",
    "SlosConfig",
    "StreamSlo",
    "TargetConfig",
    "TelemetryConfig",
    "TenantConfig",
    "VectorSlo",
    "served_name",
]

Port = Annotated[int, Field(ge=0, le=65535)]
_OUR_IDS: Final = {
    "nano": "sage-nano",
    "random": "sage-random-llama",
    "random-reranker": "sage-random-reranker",
}
PortRange = tuple[Annotated[int, Field(ge=1, le=65535)], Annotated[int, Field(ge=1, le=65535)]]


def _expanded(path: Path | None) -> Path | None:
    """`~` is a home directory, in files too."""
    return path.expanduser() if path else None


def served_name(model: str) -> str:
    """The id that clients ask for by default: the last part of a hub name or folder. Touches no disk."""
    return _OUR_IDS.get(model) or model.rstrip("/").rpartition("/")[2]


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
    max_media_body_bytes: PositiveInt = Field(25 * 1024 * 1024, description="of sound and pictures")
    max_file_bytes: PositiveInt = 512 * 1024 * 1024
    max_inputs: PositiveInt = 2048
    max_connections: PositiveInt = 8192
    max_connections_per_address: PositiveInt = 256
    drain_s: NonNegativeFloat = 30.0
    max_stored_responses: PositiveInt = Field(1000, description="of one key, the newest are kept")
    max_stored_response_bytes: PositiveInt = Field(
        256 * 1024 * 1024, description="of one key, with what was said before each"
    )
    stored_response_age_s: PositiveFloat = Field(
        30 * 24 * 3600.0, description="after which a response is forgotten"
    )


class BatchesConfig(_Section):
    """Files and batches: what one key may have, and how fast its batches run."""

    max_files: PositiveInt = Field(1000, description="of one key")
    max_stored_bytes: PositiveInt = Field(8 * 1024**3, description="of one key, all of its files together")
    files_expire_s: PositiveInt | None = Field(None, description="files are deleted after it; empty = kept")
    max_lines: PositiveInt = Field(50_000, description="of one batch")
    max_open: PositiveInt = Field(20, description="batches of one key that have not ended")
    in_flight: PositiveInt = Field(32, description="lines of one batch that run at once")


class JobsConfig(_Section):
    """Pipelines that run in the background."""

    max_jobs: PositiveInt = Field(1000, description="that are kept, those that have ended too")
    max_plan_bytes: PositiveInt = Field(48 * 1024, description="of one job's plan as JSON")
    code: tuple[str, ...] = Field(
        (), description="code that plans may name: module:name, or module:* for all of a module"
    )
    path: tuple[Path, ...] = Field((), description="folders where that code is looked for, absolute")


class SloConfig(_Section):
    """What each request of a class should meet, in seconds; empty = no limit. A goal, not a timeout."""

    ttft_s: PositiveFloat | None = Field(None, description="arrival to first token")
    tpot_s: PositiveFloat | None = Field(None, description="mean gap between tokens")
    total_s: PositiveFloat | None = Field(None, description="arrival to last byte")


class StreamSlo(SloConfig):
    """The goals of what writes text while somebody reads."""

    ttft_s: PositiveFloat | None = 2.0
    tpot_s: PositiveFloat | None = 0.1


class VectorSlo(SloConfig):
    """The goals of what somebody waits for as a whole."""

    total_s: PositiveFloat | None = 0.5


class RerankSlo(SloConfig):
    """The goals of reranking, a step of an answer."""

    total_s: PositiveFloat | None = 1.0


class SlosConfig(_Section):
    """The goals of the request classes. A goal that is set leaves the others of its class as they are."""

    chat: StreamSlo = StreamSlo()
    completion: StreamSlo = StreamSlo()
    embed_interactive: VectorSlo = VectorSlo()
    embed_bulk: SloConfig = SloConfig()
    rerank: RerankSlo = RerankSlo()
    batch: SloConfig = SloConfig()


class TenantConfig(_Section):
    """One tenant. `weight`: its share relative to the others, who have 1 unless they are named here."""

    name: str
    weight: PositiveFloat = 1.0
    best_effort: bool = Field(False, description="late rather than refused")


class ControlPlaneConfig(_Section):
    """Scheduling."""

    policy: str = "hybrid"
    queue_max_requests: PositiveInt = Field(1024, description="of one class, waiting")
    queue_max_bytes: PositiveInt = 256 * 1024 * 1024
    queue_max_wait_s: PositiveFloat = 30.0
    bulk_texts: PositiveInt = Field(8, description="more texts than this make an embedding request bulk")
    bulk_tokens: PositiveInt = Field(4000, description="so do more tokens than this")
    decision_history: PositiveInt = 4096
    slos: SlosConfig = SlosConfig()
    tenants: tuple[TenantConfig, ...] = ()
    exploration: float = Field(
        0.01, ge=0, le=0.5, description="share of placements that try a near-best engine"
    )
    retry_share: float = Field(0.1, ge=0, le=1, description="retries, as a share of the traffic")
    hedge_share: float = Field(0.02, ge=0, le=1, description="hedged calls, as a share of the traffic")
    trace: Annotated[Path | None, AfterValidator(_expanded)] = Field(
        None,
        description="write every event and decision to this NDJSON file, begun anew at each start, "
        "the one before kept as FILE.1",
    )


class TelemetryConfig(_Section):
    """What is told of requests, and where."""

    access_log: Literal["off", "errors", "all"] = Field(
        "errors", description="an event in the log for each request, or for each that went wrong"
    )
    otlp_endpoint: str = Field(
        "", description="where traces go by OTLP over HTTP; empty = OTEL_EXPORTER_OTLP_ENDPOINT, or nowhere"
    )


Ability = Literal[
    "chat",
    "completions",
    "embeddings",
    "rerank",
    "tokenize",
    "response_format",
    "tools",
    "tool_choice",
    "n",
    "logprobs",
    "top_k",
    "priority",
    "speech",
    "transcription",
    "translation",
    "images",
    "image_edits",
]


class EngineConfig(_Section):
    """One engine. `model` is a hub name or a folder; for kind `openai` the URL goes to `url`."""

    name: str
    kind: str = Field(description="transformers, embedding, vllm, openai, or one from an entry point")
    model: str
    served_as: str = Field("", description="the id clients ask for; empty = the last part of `model`")
    task: Literal["generate", "embed", "rerank"] = "generate"
    url: str = Field("", description="kind openai: base URL of a server that already runs")
    api_key_env: str = Field("", description="kind openai: environment variable that holds its key")
    speaks: tuple[Literal["messages", "responses"], ...] = Field(
        (),
        description="kind openai: routes that the server has itself, so that nothing is translated for it",
    )
    capabilities: tuple[Ability, ...] = Field(
        (),
        description="kinds openai and vllm: what it can, sound and pictures only if they are named; "
        "empty = all of OpenAI's API of text that belongs to its task",
    )
    python: str = Field("", description="interpreter of another environment, where the engine is installed")
    cores: int = Field(0, ge=0, description="how many CPU cores it gets; 0 = shared out evenly")
    max_running: PositiveInt = 32
    group: str = Field(
        "", description="engines of one group share a device; empty = all that run on this machine"
    )
    kv_tokens: PositiveInt = Field(65536, description="tokens whose keys and values it can keep cached")
    context_tokens: int = Field(
        0, ge=0, description="prompt and answer that its model has room for; 0 = the engine judges it itself"
    )
    max_replicas: PositiveInt = Field(1, description="engines like this one that may be started under load")
    min_replicas: int = Field(1, ge=0, description="0 = stopped when nothing asks for it")
    random_weights: bool = False
    start_timeout_s: PositiveFloat = 300.0
    args: tuple[str, ...] = Field((), description="extra arguments, appended to the engine's command line")

    @property
    def model_id(self) -> str:
        """The id that clients ask for."""
        return self.served_as or served_name(self.model)


class TargetConfig(_Section):
    """What a name stands for: the id of an engine's model, or another name of this section."""

    model: str
    weight: PositiveFloat = Field(1.0, description="its share of the requests, relative to the others")


class ModelConfig(_Section):
    """A name that clients may ask for. `to` is not empty. Each request goes to one of `to`; if it cannot be
    served there, to `fallbacks`.
    """

    name: str
    to: tuple[TargetConfig, ...]
    fallbacks: tuple[str, ...] = Field((), description="asked in this order where the target cannot serve")


class PipelineConfig(_Section):
    """A flow of requests that answers chats as the model `pipeline/NAME`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    flow: str = Field(
        description="a YAML file, a flow that an installed package brings, or module:name of a Flow or of a "
        "function that gives one"
    )
    params: dict[str, Any] = Field({}, description="what that function is called with")
    allow: tuple[str, ...] = Field((), description="code that a YAML file may name: module:name or module:*")
    concurrency: PositiveInt = Field(64, description="requests answered at once; more wait in the queue")


class SageConfig(_Section):
    """All of it. `state_dir` empty = the platform's own place."""

    state_dir: Annotated[Path | None, AfterValidator(_expanded)] = None
    ports: PortsConfig = PortsConfig()
    gateway: GatewayConfig = GatewayConfig()
    control_plane: ControlPlaneConfig = ControlPlaneConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    batches: BatchesConfig = BatchesConfig()
    jobs: JobsConfig = JobsConfig()
    engines: tuple[EngineConfig, ...] = ()
    models: tuple[ModelConfig, ...] = ()
    pipelines: tuple[PipelineConfig, ...] = ()
