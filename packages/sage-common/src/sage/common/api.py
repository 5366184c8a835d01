"""Types of the admin API: the gateway serves them, the command line and the studio read them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "CandidateStatus",
    "ClassStatus",
    "Decision",
    "DecisionList",
    "EngineList",
    "EngineState",
    "EngineStatus",
    "MetricList",
    "MetricSample",
    "MetricStatus",
    "PolicyStatus",
    "Quantiles",
    "QueueStatus",
    "RunInfo",
    "SloStatus",
    "StackStatus",
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
    ttft_s: Quantiles | None = Field(None, description="arrival to the first answer byte")
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
    route: str
    policy: str
    engine: str | None = Field(description="None when it was never placed")
    reason: str = Field(description="why this engine, or why not served, in words")
    outcome: Literal["waiting", "running", "done", "failed", "rejected", "cancelled"]
    queue_s: float | None = None
    ttft_s: float | None = Field(None, description="arrival to first answer byte")
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
