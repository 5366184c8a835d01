"""The core's state in the words of the admin API."""

from __future__ import annotations

from sage.common.api import Decision, EngineStatus, QueueStatus
from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.engine_table import EngineLoad
from sage.middleware.control_plane.queues import ClassCounts
from sage.middleware.control_plane.records import Record

__all__ = ["decision_of", "engine_status", "queue_status"]

_PATHS = {
    RequestClass.CHAT: "chat/completions",
    RequestClass.COMPLETION: "completions",
    RequestClass.EMBED_INTERACTIVE: "embeddings",
    RequestClass.EMBED_BULK: "embeddings",
}


def decision_of(record: Record, epoch: float) -> Decision:
    """A record as it is shown; `epoch` is the Unix time at which the core's clock read 0."""

    def since_arrival(then: float | None) -> float | None:
        return None if then is None else then - record.arrived

    usage = record.usage
    return Decision(
        request_id=record.job.id,
        at=epoch + record.arrived,
        request_class=record.job.request_class,
        tenant=record.job.tenant,
        model=record.job.model,
        route=_PATHS[record.job.request_class],
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
