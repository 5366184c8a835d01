"""Small random scenarios: a fleet, a workload, faults and limits, all of them a function of one seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from msgspec.structs import replace

from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.options import CoreOptions, Limits
from sage.middleware.control_plane.simulator.faults import (
    Brownout,
    Fault,
    Hang,
    Kill,
    Mute,
    Refuse,
    Reload,
    Slow,
)
from sage.middleware.control_plane.simulator.fleet import Fleet
from sage.middleware.control_plane.simulator.types import SimRequest
from sage.middleware.control_plane.types import Job, Slo
from sage.middleware.engines.port import Capability

__all__ = ["Scenario", "random_scenario"]

_NEEDS: Final = {
    "llm": frozenset((Capability.CHAT,)),
    "embedding": frozenset((Capability.EMBEDDINGS,)),
    "rerank": frozenset((Capability.RERANK,)),
}
_TENANTS: Final = ("ada", "ben", "cy")


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run's arguments."""

    fleet: Fleet
    workload: list[SimRequest]
    faults: list[Fault]
    options: CoreOptions


def random_scenario(seed: int) -> Scenario:
    """A scenario that is small, busy and unlucky: about 150 requests, tight limits, up to five faults."""
    random = Random(f"scenario:{seed}")  # noqa: S311
    fleet = _fleet(random)
    span = random.choice((3.0, 15.0, 60.0))
    workload = _workload(random, fleet, span)
    names = [name for name, _ in fleet.instances()]
    faults = [_fault(random, random.choice(names), span) for _ in range(random.choice((0, 0, 1, 2, 3, 5)))]
    limits = Limits(
        queue_max_requests=random.choice((3, 20, 1024)),
        queue_max_bytes=random.choice((20_000, 256 * 1024 * 1024)),
        queue_max_wait_s=random.choice((1.0, 5.0, 30.0)),
        max_attempts=random.choice((1, 2, 3)),
        retry_share=random.choice((0.0, 0.1, 1.0)),
        hedge_share=random.choice((0.0, 0.02, 0.5)),
    )
    return Scenario(fleet, workload, faults, CoreOptions(limits=limits, history=random.choice((1, 4096))))


# ---- fleets ------------------------------------------------------------------------------------------------


def _fleet(random: Random) -> Fleet:
    kinds = [
        *["llm"] * random.choice((0, 1, 1, 2, 3)),
        *["embedding"] * random.choice((0, 1, 1, 2)),
        *["rerank"] * random.choice((0, 0, 1)),
    ] or ["llm"]
    engines = [_engine(random, kind, index) for index, kind in enumerate(kinds)]
    used = sorted({str(engine["group"]) for engine in engines} - {""})
    devices = {
        name: {
            "interference": random.choice((0.0, 0.3, 1.0)),
            "cores": random.choice((0, 2)),
            "barrier": random.choice((1.0, 8.0)),
        }
        for name in used
    }
    return Fleet.model_validate({"name": "random", "devices": devices, "engines": engines})


def _engine(random: Random, kind: str, index: int) -> dict[str, Any]:
    common = {
        "name": f"{kind}-{index}",
        "kind": kind,
        "model": kind,
        "group": random.choice(("", "", "gpu", "cpu")),
        "cores": random.choice((1, 2)),
        "max_running": random.choice((1, 2, 8)),
        "cold_start_s": random.choice((0.5, 5.0)),
        "starts_up": random.random() < 0.9,
        "managed": random.random() < 0.8,
        "noise": random.choice((0.0, 0.1, 0.5)),
        "min_replicas": random.choice((0, 1, 1, 1)),
        "max_replicas": random.choice((1, 1, 1, 3)),
    }
    if kind == "llm":
        return common | {
            "a": random.choice((0.005, 0.02)),
            "b": 0.0005,
            "c": random.choice((0.00005, 0.0005)),
            "chunk": random.choice((64, 512, 2048)),
            "kv_tokens": random.choice((800, 20_000)),
        }
    return common | {
        "s0": random.choice((0.003, 0.05)),
        "s1": 0.00005,
        "s2": 0.0005,
        "batching": random.choice(("greedy", "single")),
        "batch_texts": random.choice((4, 64)),
        "elastic": random.random() < 0.5,
    }


# ---- workloads ---------------------------------------------------------------------------------------------


def _workload(random: Random, fleet: Fleet, span: float) -> list[SimRequest]:
    kinds = sorted({engine.kind for engine in fleet.engines})
    count = random.randint(100, 200)
    burst = random.random() < 0.3
    at = 0.0
    requests = []
    for number in range(count):
        if not burst or random.random() < 0.1:
            at += random.expovariate(count * (0.1 if burst else 1.0) / span)
        request = _request(random, f"r{number}", random.choice(kinds), at)
        if random.random() < 0.1:
            after = _request(random, f"r{number}-after", random.choice(kinds), random.uniform(0.0, 0.5))
            chained = replace(after, job=replace(after.job, parent=request.job.id))
            request = replace(request, follow=(chained,))
        requests.append(request)
    return requests


def _request(random: Random, ident: str, kind: str, at: float) -> SimRequest:
    tokens = 1 + int(random.expovariate(1 / random.choice((20, 300))))
    estimate = max(1, round(tokens * random.choice((0.5, 1.0, 1.0, 2.0))))
    make = _generation if kind == "llm" else _texts
    job, output = make(random, ident, kind, estimate)
    return SimRequest(
        at,
        job,
        output,
        tokens,
        deadline=random.choice((None, None, None, 0.2, 3.0)),
        cancel_after=random.uniform(0.0, 5.0) if random.random() < 0.1 else None,
    )


def _generation(random: Random, ident: str, kind: str, estimate: int) -> tuple[Job, int]:
    prefix = random.randrange(4)
    blocks = tuple(prefix * 100 + place for place in range(random.choice((0, 1, estimate // 64))))
    job = Job(
        ident,
        kind,
        random.choice((RequestClass.CHAT, RequestClass.COMPLETION, RequestClass.BATCH)),
        random.choice(_TENANTS),
        _NEEDS[kind],
        estimate * 4 + 100,
        estimate,
        random.choice((None, 100, 500)),
        prompt_bytes=random.choice((0, estimate * 4)),
        slo=random.choice((None, Slo(ttft=random.choice((0.01, 0.5)), tpot=0.05))),
        priority=random.randrange(3),
        blocks=blocks,
        stream=random.random() < 0.7,
        hedgeable=random.random() < 0.2,
    )
    return job, 1 + int(random.expovariate(1 / 40))


def _texts(random: Random, ident: str, kind: str, estimate: int) -> tuple[Job, int]:
    texts = random.choice((1, 1, 1, 3, 30))
    interactive = RequestClass.RERANK if kind == "rerank" else RequestClass.EMBED_INTERACTIVE
    bulk = RequestClass.RERANK if kind == "rerank" else RequestClass.EMBED_BULK
    job = Job(
        ident,
        kind,
        bulk if texts > 8 else interactive,
        random.choice(_TENANTS),
        _NEEDS[kind],
        estimate * 4 + 100,
        estimate,
        None,
        texts=texts,
        prompt_bytes=random.choice((0, estimate * 4)),
        batch_key=random.choice(("", f"{kind}:{texts > 8}")) if kind == "embedding" else "",
        hedgeable=texts == 1 and random.random() < 0.5,
    )
    return job, 0


# ---- faults ------------------------------------------------------------------------------------------------


def _fault(random: Random, engine: str, span: float) -> Fault:
    at, window = random.uniform(0.0, span), random.choice((0.1, 5.0, 40.0, 100.0))
    kinds: tuple[Callable[[], Fault], ...] = (
        lambda: Kill(at, engine, random.choice((None, 0.5, 8.0)), random.choice((0.0, 0.3, 3.0))),
        lambda: Reload(at, engine, window),
        lambda: Slow(at, engine, window, random.choice((0.5, 3.0, 30.0))),
        lambda: Brownout(at, engine, window, random.choice((0.3, 1.0))),
        lambda: Refuse(at, engine, window),
        lambda: Hang(at, engine, window),
        lambda: Mute(at, engine, window),
    )
    return random.choice(kinds)()
