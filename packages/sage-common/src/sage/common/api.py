"""Types of the admin API: the gateway serves them, the command line and the studio read them."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self, get_args

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeInt,
    field_serializer,
    model_validator,
)

__all__ = [
    "DATA_SCOPES",
    "SCOPES",
    "CandidateStatus",
    "ClassStatus",
    "ConfigChange",
    "Decision",
    "DecisionList",
    "EngineChanges",
    "EngineList",
    "EngineState",
    "EngineStatus",
    "KeyChange",
    "KeyInfo",
    "KeyList",
    "KeyRotation",
    "KeySettings",
    "KeySpec",
    "MetricList",
    "MetricSample",
    "MetricStatus",
    "NewKey",
    "PolicyStatus",
    "Quantiles",
    "QueueStatus",
    "ReloadReport",
    "RunInfo",
    "Scope",
    "SloStatus",
    "StackStatus",
    "UsageReport",
    "UsageRow",
]

EngineState = Literal["starting", "ready", "degraded", "draining", "stopped", "failed"]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RunInfo(_Wire):
    """What a client on this machine needs to find the running stack (`SagePaths.run_file`)."""

    pid: int
    version: str
    base_url: str = Field(description="OpenAI base URL, ends in /v1")
    admin_url: str
    health_url: str
    started_at: float = Field(description="Unix seconds")


class EngineStatus(_Wire):
    """One engine as the control plane sees it."""

    name: str
    kind: str
    model: str = Field(description="the id that clients ask for")
    task: Literal["generate", "embed", "rerank"] = Field(
        description="what it is asked for: text, vectors, or scores"
    )
    state: EngineState
    url: str
    pid: int | None = None
    cores: list[int] = Field(default_factory=list, description="CPU cores it may use; empty = not pinned")
    running: int = Field(0, description="requests at the engine now")
    max_running: int
    served: int = 0
    failed: int = 0
    restarts: int = 0
    random_weights: bool = Field(False, description="its text means nothing: random weights")
    detail: str = Field("", description="why it is in this state, in words")


class EngineList(_Wire):
    """All engines."""

    engines: list[EngineStatus]


class QueueStatus(_Wire):
    """One class's queue."""

    request_class: str
    waiting: int
    waiting_bytes: int
    oldest_s: float
    shed: int
    completed: int
    failed: int


class Quantiles(_Wire):
    """What half, 90 % and 99 % of the observations stayed below, within 10 %."""

    p50: float
    p90: float
    p99: float


class ClassStatus(_Wire):
    """What became of the requests of one class that have ended. Times in seconds; None = none observed."""

    request_class: str
    tenant: str = Field("", description="empty = all of them")
    offered: int = Field(description="ended, but for those whose client went away")
    met: int = Field(description="done within every goal")
    done: int
    failed: int
    shed: dict[str, int] = Field(default_factory=dict, description="refused, by the kind of reason")
    cancelled: int = Field(0, description="the client went away; not among the offered ones")
    retries: int = 0
    hedges: int = 0
    quarantined: int = Field(0, description="failed, as engines crashed twice under them")
    queue_s: Quantiles | None = Field(None, description="arrival to the engine")
    ttft_s: Quantiles | None = Field(None, description="arrival to the first token of a stream")
    tpot_s: Quantiles | None = Field(None, description="mean gap between tokens")
    total_s: Quantiles | None = Field(None, description="arrival to the last byte")

    def attainment(self) -> float | None:
        """Share of the offered requests that met every goal; None = nothing was offered."""
        return self.met / self.offered if self.offered else None


class PolicyStatus(_Wire):
    """The policy in force."""

    name: str
    available: list[str]
    summaries: dict[str, str] = Field(default_factory=dict, description="what each does, in one sentence")


class ConfigChange(_Wire):
    """One key of the configuration that has another value."""

    key: str
    before: JsonValue
    after: JsonValue


class EngineChanges(_Wire):
    """Names of engines that a new configuration changes."""

    added: list[str] = Field(default_factory=list, description="they are starting")
    removed: list[str] = Field(default_factory=list, description="they finish what runs there, then stop")
    replaced: list[str] = Field(default_factory=list, description="the same, to come back as configured")
    changed: list[str] = Field(default_factory=list, description="in place")


class ReloadReport(_Wire):
    """What came of loading the configuration once more."""

    applied: list[ConfigChange] = Field(default_factory=list, description="in force from now on")
    needs_restart: list[ConfigChange] = Field(
        default_factory=list, description="not applied: only a new process can have these"
    )
    engines: EngineChanges = Field(default_factory=EngineChanges)


class StackStatus(_Wire):
    """Everything `sage status` prints."""

    version: str
    uptime_s: float
    policy: str
    engines: list[EngineStatus]
    queues: list[QueueStatus]
    classes: list[ClassStatus] = Field(default_factory=list, description="those that had requests")


class MetricSample(_Wire):
    """One value of a metric; of a histogram the `buckets` instead: upper bounds and counts up to there."""

    labels: dict[str, str] = Field(default_factory=dict)
    value: float | None = None
    count: int | None = None
    sum: float | None = None
    buckets: list[tuple[float, int]] | None = None
    quantiles: Quantiles | None = None


class MetricStatus(_Wire):
    """One metric with all of its label values."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    help: str
    samples: list[MetricSample]


class MetricList(_Wire):
    """All metrics."""

    metrics: list[MetricStatus]


class SloStatus(_Wire):
    """What a request should meet, in seconds; None = no such goal."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    total_s: float | None = None


class CandidateStatus(_Wire):
    """An engine that a decision could have fallen on, as it was then."""

    engine: str
    running: int
    free: int
    predicted_s: float | None = Field(None, description="until the first token or the answer")
    cached_tokens: int = 0


class Decision(_Wire):
    """What the control plane did with one request, and how it went. Times in seconds."""

    request_id: str
    at: float = Field(description="arrival, Unix seconds")
    request_class: str
    tenant: str
    model: str
    asked: str = Field("", description="the name that was asked for, where the model was chosen for it")
    fallback: str = Field("", description="why the models before this one could not serve it")
    route: str
    policy: str
    engine: str | None = Field(description="None when it was never placed")
    reason: str = Field(description="why this engine, or why not served, in words")
    outcome: Literal["waiting", "running", "done", "failed", "rejected", "cancelled"]
    queue_s: float | None = None
    ttft_s: float | None = Field(None, description="arrival to the first token of a stream")
    latency_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    attempts: int = 0
    retries: int = 0
    hedges: int = 0
    crashes: int = Field(0, description="of engines, while it ran there")
    refusal: str = Field("", description="the kind of reason for which it was refused")
    slo: SloStatus = Field(default_factory=SloStatus, description="its goals")
    deadline_s: float | None = Field(None, description="arrival to its hard deadline")
    ahead: int | None = Field(None, description="requests that waited before it when it came")
    ahead_s: float | None = Field(None, description="engine time that those would take, predicted")
    prompt_tokens_estimate: int | None = None
    output_tokens_p50: float | None = Field(None, description="length of its answer, predicted")
    predicted_s: float | None = Field(
        None, description="dispatch to first token or answer, as predicted; None = not predicted"
    )
    actual_s: float | None = Field(None, description="the same, as it was")
    cached_tokens: int | None = Field(None, description="of its prompt, at the chosen engine")
    candidates: list[CandidateStatus] = Field(
        default_factory=list, description="empty where the decision was not sampled"
    )


class DecisionList(_Wire):
    """The newest decisions, newest first."""

    decisions: list[Decision]


# ---- keys and usage ----------------------------------------------------------------------------------------

Scope = Literal[
    "chat",
    "completions",
    "embeddings",
    "rerank",
    "tokens",
    "audio",
    "images",
    "models",
    "files",
    "batches",
    "admin",
]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
DATA_SCOPES: Final[frozenset[Scope]] = frozenset(SCOPES) - {"admin"}
KeyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
TenantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{0,64}$")]
ModelName = Annotated[str, Field(min_length=1, max_length=256)]
Count = Annotated[int, Field(ge=1, le=10**12)]


class KeySettings(_Wire):
    """What a key may. None = no such limit. Rates are for a minute, days begin at midnight UTC."""

    scopes: frozenset[Scope] = Field(DATA_SCOPES, min_length=1, description="the routes that it opens")
    models: frozenset[ModelName] = Field(frozenset(), max_length=256, description="empty = all")
    tenant: TenantName = Field("", description="whose share it takes; empty = one of its own")
    ceiling: Literal["interactive", "batch"] = Field(
        "interactive", description="batch = all it asks for runs in the low classes, batch and embed_bulk"
    )
    rpm: Count | None = Field(None, description="requests in a minute")
    tpm: Count | None = Field(None, description="tokens in a minute")
    max_concurrent: Count | None = Field(32, description="requests under way at once")
    day_tokens: Count | None = Field(None, description="tokens in a day")
    total_tokens: Count | None = Field(None, description="tokens ever")
    expires_at: AwareDatetime | None = Field(None, description="None = never")

    @field_serializer("scopes", "models")
    def _in_order(self, value: frozenset[str]) -> list[str]:
        return sorted(value)


class KeySpec(KeySettings):
    """The key to make. No two keys that are not revoked have the same name."""

    name: KeyName


class KeyChange(KeySettings):
    """What is to be different about a key; what is not given stays."""

    name: KeyName = Field("", description="another name")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.model_fields_set:
            valid = ", ".join(type(self).model_fields)
            raise ValueError(f"nothing is to be changed; valid is any of {valid}")
        return self


class KeyRotation(_Wire):
    """How to give a key another secret."""

    grace_s: float = Field(
        0.0, ge=0, le=30 * 86_400, allow_inf_nan=False, description="the former secret opens the door so long"
    )


class KeyInfo(KeySettings):
    """A key, without its secret. Times are UTC."""

    id: str
    name: str
    state: Literal["active", "expired", "revoked"]
    created_at: AwareDatetime
    last_used_at: AwareDatetime | None = None
    revoked_at: AwareDatetime | None = None
    former_until: AwareDatetime | None = Field(None, description="so long the secret before also opens")


class NewKey(_Wire):
    """A key that was made or rotated. Its secret is told this once."""

    key: KeyInfo
    secret: str


class KeyList(_Wire):
    """All keys, oldest first, revoked ones too."""

    keys: list[KeyInfo]


class UsageRow(_Wire):
    """What one key has used of one model in one class on one day (UTC)."""

    day: str = Field(description="YYYY-MM-DD")
    key: str = Field(description="id of the key; admin for the admin token")
    name: str = Field(description="of the key")
    model: str = Field(description="empty = one that there is not")
    request_class: str
    requests: NonNegativeInt = Field(description="all of them, the next two included")
    prompt_tokens: NonNegativeInt
    completion_tokens: NonNegativeInt
    errors: NonNegativeInt = Field(description="failed, or wrong as they were asked")
    refusals: NonNegativeInt = Field(description="refused by a limit of the key, a model or a queue")


class UsageReport(_Wire):
    """Sums of the days from `first` to `last`, both included."""

    first: str
    last: str
    rows: list[UsageRow]
