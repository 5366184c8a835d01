"""The smoke suite: a Poisson mix of chat streams and single-text embeddings against a running stack."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sage.benchmark import environment
from sage.benchmark.load import (
    Arrival,
    Plan,
    Report,
    Request,
    Target,
    ask,
    chat_request,
    embed_request,
    measure,
    mixed,
    models,
    poisson,
    shots,
)
from sage.benchmark.metrics import Kind, Record
from sage.benchmark.report import UNCONFIRMED, Run, badges
from sage.benchmark.summary import check_lag, counts, summarise
from sage.common.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from sage.common.api import EngineList, PolicyStatus

__all__ = ["SmokeOptions", "Witness", "run"]

QUESTIONS = (
    "What does a scheduler do when every engine is busy?",
    "Name three causes of a slow first token.",
    "Why is a bounded queue better than an unbounded one?",
    "How does a cache change the order of work?",
    "What is the difference between latency and throughput?",
)
TEXTS = (
    "A queue that never grows beyond its bound sheds load early.",
    "Embeddings map sentences to points whose distance follows meaning.",
    "The first token of an answer waits for the whole prompt to be read.",
    "Sharing cores between two engines slows both of them down.",
)


@dataclass(frozen=True, slots=True)
class SmokeOptions:
    """What to run. `rate` is requests per second over both classes, `duration` is in seconds."""

    rate: float = 8.0
    duration: float = 10.0
    seed: int = 0
    chat_share: float = 0.5
    max_tokens: int = 16


class Witness(Protocol):
    """Who can say what was measured: the admin API (`sage.middleware.admin.AdminClient`)."""

    def policy(self) -> PolicyStatus:
        """The policy in force."""
        ...

    def engines(self) -> EngineList:
        """Every engine."""
        ...


async def run(
    target: Target,
    options: SmokeOptions,
    records_file: Path,
    *,
    admin: Witness | None = None,
    on_progress: Callable[[str], None] = lambda _line: None,
) -> tuple[Run, list[Record]]:
    """Measure `target`; each request is written to `records_file` (NDJSON) as it ends.

    `admin` confirms the policy before and after and names the engines; without it the run says UNCONFIRMED.
    Raises UsageError for a schedule without both classes, UnreachableError or UnauthorizedError when the
    server cannot be used, NotFoundError when it has no chat or no embedding model, EngineError when a class
    got no answer.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    arrivals = _arrivals(options)
    chat_model, embed_model = await _discover(target)
    on_progress(f"chat: {chat_model}; embeddings: {embed_model}; {len(arrivals)} requests planned")
    make = _maker(chat_model, embed_model, options)
    plan = Plan(
        {"stack": target}, options.duration, shots(arrivals, {"chat": "stack", "embed": "stack"}, make)
    )
    before = await _policy(admin)
    client, records = await measure(plan, records_file)
    after = await _policy(admin)
    engines = (await asyncio.to_thread(admin.engines)).engines if admin else []
    changed = f"the policy changed from {before} to {after} during the run" if before != after else ""
    measured = Run(
        suite="smoke",
        started_at=started,
        parameters={**asdict(options), "chat_model": chat_model, "embed_model": embed_model},
        policy=after,
        engines=[engine.model_dump(mode="json") for engine in engines],
        badges=badges(engines, confirmed=admin is not None),
        invalid=[reason for reason in (check_lag(records), changed) if reason],
        environment={**environment.describe(), "client": _client(client)},
        wall_s=client.wall_s,
        requests=counts(records),
        metrics=summarise(records, client.wall_s, seed=options.seed),
    )
    return measured, records


def _arrivals(options: SmokeOptions) -> list[Arrival]:
    """Two Poisson processes, one per class; a sum of them is one again."""
    rates: dict[Kind, float] = {
        "chat": options.rate * options.chat_share,
        "embed": options.rate * (1 - options.chat_share),
    }
    try:
        arrivals = mixed(
            {
                kind: poisson(rate=rate, duration=options.duration, seed=2 * options.seed + number)
                for number, (kind, rate) in enumerate(rates.items())
            }
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    if len({arrival.kind for arrival in arrivals}) < 2:
        raise UsageError(
            f"The {len(arrivals)} requests of {options.duration:g} s do not hold both classes.",
            hint="Raise --rate or --duration.",
        )
    return arrivals


def _client(report: Report) -> dict[str, float | str]:
    """How the load client ran: it takes CPU time from what it measures."""
    return {"priority": report.priority, "cpu_share": report.cpu_s / report.wall_s}


def _maker(chat_model: str, embed_model: str, options: SmokeOptions) -> Callable[[Arrival], Request]:
    """Requests that differ by index, so that no cache answers for the engine."""

    def make(arrival: Arrival) -> Request:
        number = arrival.index
        if arrival.kind == "chat":
            question = QUESTIONS[number % len(QUESTIONS)]
            return chat_request(chat_model, f"[{number}] {question}", options.max_tokens)
        return embed_request(embed_model, [f"[{number}] {TEXTS[number % len(TEXTS)]}"])

    return make


async def _discover(target: Target) -> tuple[str, str]:
    """The first model that answers a chat and the first other one that embeds; both are warm afterwards."""
    served = await asyncio.to_thread(models, target)
    chat = await _first(target, served, "chat", lambda model: chat_request(model, "Hello", 2))
    others = [model for model in served if model != chat]
    return chat, await _first(target, others, "embed", lambda model: embed_request(model, ["Hello"]))


async def _first(target: Target, candidates: list[str], kind: Kind, make: Callable[[str], Request]) -> str:
    said = []
    for model in candidates:
        trial = await ask(target, kind, make(model))
        if trial.outcome == "ok":
            return model
        said.append(f"{model}: {trial.error}")
    raise NotFoundError(
        f"No model of this server answers a {kind} call ({'; '.join(said) or 'none listed'})."
    )


async def _policy(admin: Witness | None) -> str:
    return (await asyncio.to_thread(admin.policy)).name if admin else UNCONFIRMED.lower()
