"""From requests to what they will cost, and from what they cost to better estimates."""

from __future__ import annotations

import math
from typing import Final

from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.cost import OutputLengths, PromptTokens
from sage.middleware.control_plane.engine_table import Attempt, EngineLoad
from sage.middleware.control_plane.records import Record
from sage.middleware.control_plane.types import Job, Slo
from sage.middleware.engines.port import Usage, asks_media

ALONE: Final = 2  # calls at an engine: one computes, one is ready behind it
LEARN_EVERY_S: Final = 0.02  # at most so often from one engine, once it is known
KNOWN: Final = 100  # samples
MOMENT_S: Final = 0.001  # between two answers of one batch

__all__ = ["Estimator", "usage_of"]


class Estimator:
    """Prompt lengths, answer lengths and engine times, learned from what came of earlier requests."""

    __slots__ = ("_lengths", "_prompts", "_slos")

    def __init__(self, slos: dict[RequestClass, Slo]) -> None:
        self._slos = slos
        self._lengths = OutputLengths()
        self._prompts = PromptTokens()

    def set_goals(self, slos: dict[RequestClass, Slo]) -> None:
        """The goals of what comes from now on."""
        self._slos = slos

    def record(self, job: Job, sequence: int, policy: str, now: float, deadline: float | None) -> Record:
        """What is known of a request when it arrives; what depends on engines comes with its lane."""
        slo = self._slos[job.request_class] if job.slo is None else self._slo(job, job.slo)
        tokens = (
            self._prompts.estimate(job.model, job.prompt_bytes) if job.prompt_bytes else job.prompt_tokens
        )
        p50 = p90 = 0.0
        ends_by = math.inf
        if job.texts:
            goal = slo.total
        else:
            p50, p90 = self._lengths.quantiles(job.model, job.tenant, job.max_tokens)
            goal = slo.ttft
            if slo.total is not None:
                ends_by = now + slo.total
        due = math.inf if goal is None else now + goal
        if deadline is not None:
            due = min(due, deadline)
            if not job.texts:
                ends_by = min(ends_by, deadline)
        units = job.texts or 1
        # in the order of the fields: by name it would take three times as long
        return Record(
            job,
            sequence,
            policy,
            now,
            deadline,
            slo,
            due,
            tokens,
            p50,
            p90,
            units,
            left=units,
            queued=now,
            ends_by=ends_by,
        )

    def _slo(self, job: Job, asked: Slo) -> Slo:
        """What the caller asked for, and for the rest that of the class."""
        slo = self._slos[job.request_class]
        return Slo(
            slo.ttft if asked.ttft is None else asked.ttft,
            slo.tpot if asked.tpot is None else asked.tpot,
            slo.total if asked.total is None else asked.total,
        )

    def began(self, attempt: Attempt, now: float) -> None:
        """Learn from a first byte. Only a stream shows when its first token was there.

        Which streams are learned from, lengths included, is decided here: at their end the short ones would
        be seen too often.
        """
        load = attempt.engine
        job = attempt.slices[0][0].job
        if not load.generates or not job.stream or job.model != load.spec.model or asks_media(job.needs):
            return
        if _worth_learning(load, now):
            load.llm.observe_ttft(attempt.ahead + attempt.tokens, attempt.beside, now - attempt.sent)
            attempt.mark = load.mark(now)
            attempt.learns = True

    def finished(self, attempt: Attempt, usage: Usage, now: float) -> None:
        """Learn from a complete answer."""
        load = attempt.engine
        if attempt.slices[0][0].job.model != load.spec.model:  # a namesake has taken the engine's place
            return
        taken = now - attempt.sent
        if not load.generates:
            if _worth_learning(load, now):
                load.latency.observe(max(taken, 1e-6))
                self._batch(attempt, usage, now)
            load.last_end = now
            return
        job = attempt.slices[0][0].job
        if job.stream:
            if not attempt.learns:
                return
        elif asks_media(job.needs) or not _worth_learning(load, now):
            return
        if usage.completion_tokens:
            self._lengths.observe(job.model, job.tenant, job.max_tokens, usage.completion_tokens)
        if usage.prompt_tokens and job.prompt_bytes:
            self._prompts.observe(job.model, job.prompt_bytes, usage.prompt_tokens)
        if attempt.learns and attempt.first_byte is not None and usage.completion_tokens > 1:
            self._decode(attempt, attempt.first_byte, usage.completion_tokens, now)

    @staticmethod
    def _decode(attempt: Attempt, first_byte: float, tokens: int, now: float) -> None:
        """One sample of TPOT, with the means of what ran there and beside it meanwhile."""
        span = now - first_byte
        if span <= 0.0:
            return
        running, prefilling, beside = attempt.engine.mark(now)
        before = attempt.mark
        attempt.engine.llm.observe_tpot(
            (running - before[0]) / span,
            (prefilling - before[1]) / span,
            min(1.0, (beside - before[2]) / span),
            span / (tokens - 1),
        )

    def _batch(self, attempt: Attempt, usage: Usage, now: float) -> None:
        """One sample of a batch's time; it began when the one before it ended."""
        load = attempt.engine
        record = attempt.slices[0][0]
        if usage.prompt_tokens and attempt.texts == record.units and record.job.prompt_bytes:
            self._prompts.observe(record.job.model, record.job.prompt_bytes, usage.prompt_tokens)
        begun = max(attempt.sent, load.last_end)
        span = now - begun
        # Texts that another call computes show in no usage here, what was computed with the call before takes
        # no time, and with more than two calls at once nobody knows who had which part of the engine.
        if span > 0.0 and usage.prompt_tokens and load.running <= ALONE and not _together(attempt, span):
            beside = min(1.0, max(0.0, (load.mark(now)[2] - attempt.mark[2]) / max(now - attempt.sent, 1e-9)))
            threads = attempt.threads or load.spec.cores or 1
            load.embed.observe(usage.prompt_tokens, attempt.texts, span, threads, beside)


def _together(attempt: Attempt, span: float) -> bool:
    """Whether an engine that batches by itself has put a call into the batch that ended `span` before."""
    waited = attempt.sent <= attempt.engine.last_end
    return waited and span < MOMENT_S and span < 0.25 * attempt.service


def _worth_learning(load: EngineLoad, now: float) -> bool:
    """Thousands of samples a second teach no more than fifty do."""
    if now < load.learn_at and load.learned > KNOWN:
        return False
    load.learn_at = now + LEARN_EVERY_S
    load.learned += 1
    return True


def usage_of(record: Record, units: int, attempt: Attempt, usage: Usage) -> Usage:
    """What a request has used, with its part of this answer."""
    if record.usage is None and len(attempt.slices) == 1:
        return usage
    before = record.usage or Usage()
    share = 1.0
    if len(attempt.slices) > 1:
        share = record.prompt_tokens * units / record.units / max(1, attempt.tokens)
    return Usage(
        before.prompt_tokens + round(usage.prompt_tokens * share),
        before.completion_tokens + usage.completion_tokens,
    )
