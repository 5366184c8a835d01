"""The core's state in the words of the admin API."""

from __future__ import annotations

from typing import Final

from sage.common.api import CandidateStatus, Decision, EngineStatus, QueueStatus, SloStatus
from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.engine_table import EngineLoad
from sage.middleware.control_plane.lanes import ClassCounts
from sage.middleware.control_plane.records import Candidate, Record
from sage.middleware.engines.port import Capability

__all__ = ["decision_of", "engine_status", "queue_status"]

_PATHS: Final = {
    Capability.CHAT: "chat/completions",
    Capability.COMPLETIONS: "completions",
    Capability.EMBEDDINGS: "embeddings",
    Capability.RERANK: "rerank",
    Capability.SPEECH: "audio/speech",
    Capability.TRANSCRIPTION: "audio/transcriptions",
    Capability.TRANSLATION: "audio/translations",
    Capability.IMAGES: "images/generations",
    Capability.IMAGE_EDITS: "images/edits",
}


def decision_of(record: Record, epoch: float) -> Decision:
    """A record as it is shown; `epoch` is the Unix time at which the core's clock read 0."""

    def since_arrival(then: float | None) -> float | None:
        return None if then is None else then - record.arrived

    job, usage, slo = record.job, record.usage, record.slo
    generates = Capability.EMBEDDINGS not in job.needs and Capability.RERANK not in job.needs
    until = record.first_byte if generates else record.ended
    served = until is not None and record.dispatched is not None and record.outcome in ("running", "done")
    return Decision(
        request_id=job.id,
        at=epoch + record.arrived,
        request_class=job.request_class,
        tenant=job.tenant,
        model=job.model,
        asked=job.asked,
        fallback=job.fallback,
        route=_route(job.needs),
        policy=record.policy,
        engine=record.engine,
        reason=record.reason,
        outcome=record.outcome,
        queue_s=since_arrival(record.dispatched),
        ttft_s=since_arrival(record.first_byte),
        latency_s=since_arrival(record.ended),
        prompt_tokens=None if usage is None else usage.prompt_tokens,
        completion_tokens=None if usage is None else usage.completion_tokens,
        attempts=record.attempts,
        retries=record.retries,
        hedges=record.hedges,
        crashes=record.crashes,
        refusal=record.refusal or "",
        slo=SloStatus(ttft_s=slo.ttft, tpot_s=slo.tpot, total_s=slo.total),
        deadline_s=since_arrival(record.deadline),
        ahead=record.ahead,
        ahead_s=record.ahead_seconds,
        prompt_tokens_estimate=record.prompt_tokens,
        output_tokens_p50=record.output_p50 if generates else None,
        predicted_s=record.predicted or None,
        actual_s=(until or 0.0) - (record.dispatched or 0.0) if served else None,
        cached_tokens=None if record.cached is None else record.cached.get(record.engine or "", 0),
        candidates=[_candidate(one) for one in record.candidates],
    )


def _route(needs: frozenset[Capability]) -> str:
    """The path below `/v1/` by which it came."""
    return next((path for need, path in _PATHS.items() if need in needs), "")


def _candidate(candidate: Candidate) -> CandidateStatus:
    return CandidateStatus(
        engine=candidate.engine,
        running=candidate.running,
        free=candidate.free,
        predicted_s=candidate.predicted or None,
        cached_tokens=candidate.cached_tokens,
    )


def queue_status(
    request_class: RequestClass, counts: ClassCounts, oldest: float | None, now: float
) -> QueueStatus:
    """One class's queue at time `now`."""
    return QueueStatus(
        request_class=request_class,
        waiting=counts.waiting,
        waiting_bytes=counts.waiting_bytes,
        oldest_s=0.0 if oldest is None else now - oldest,
        shed=counts.shed,
        completed=counts.completed,
        failed=counts.failed,
    )


def engine_status(load: EngineLoad, now: float) -> EngineStatus:
    """One engine at time `now`; the URL and the process are the pool's to add."""
    state, detail = load.state, load.detail
    if state == "ready" and load.breaker.tripped:
        left = load.breaker.until - now
        state = "degraded" if left > 0 else "ready"  # on probation it needs work to show that it is well
        detail = f"{load.breaker.faults} faults in a row; " + (
            f"ejected for {left:.0f} s" if left > 0 else "on probation"
        )
    elif state == "ready" and load.silence.degraded:
        state = "degraded"
        detail = (
            f"{load.running} requests run there, and nothing has come for {now - load.silence.since:.0f} s"
        )
    return EngineStatus(
        name=load.name,
        kind=load.spec.kind,
        model=load.spec.model,
        task=load.spec.task,
        state=state,
        url="",
        running=load.running,
        max_running=load.max_running,
        served=load.served,
        failed=load.failed,
        random_weights=load.spec.random_weights,
        detail=detail,
    )
