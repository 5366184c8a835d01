"""What one decision of the core costs: 32 engines, 1,000 requests queued; and an empty queue, one engine.

    python benchmarks/control_plane/decision.py [--policy hybrid] [--engines 32] [--queued 1000]

A decision is one event handed to the core: an arrival, a first byte, an end. With a queue of 1,000 each end
frees a slot, so that the next request is chosen among all that wait and placed. Prints CPU microseconds per
event (p50, p99) and per request, and the bytes that one queued request takes beside its body.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import time
import tracemalloc

from sage.common.config import ControlPlaneConfig
from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.core import Core
from sage.middleware.control_plane.options import CoreOptions, Limits, policy_options
from sage.middleware.control_plane.policy import load_policy
from sage.middleware.control_plane.types import (
    Action,
    Arrived,
    Dispatch,
    EngineUp,
    Event,
    Finished,
    FirstByte,
    Job,
    Slo,
)
from sage.middleware.engines.port import Capability, EngineSpec, Usage

CHAT = frozenset((Capability.CHAT,))
PATIENT = Slo(ttft=1e6, tpot=10.0)  # nothing is shed: what waits is what was asked for


def job(number: int, rng: random.Random) -> Job:
    """A streamed chat request of 200 to 4,000 bytes, of one of ten tenants, in one of 200 sessions."""
    size = rng.randrange(200, 4000)
    session = rng.randrange(200)
    blocks = tuple(session * 1000 + at for at in range(size // 256))
    return Job(
        f"r{number}",
        "m",
        RequestClass.CHAT,
        f"t{number % 10}",
        CHAT,
        size,
        size // 4,
        256,
        prompt_bytes=size,
        slo=PATIENT,
        stream=True,
        blocks=blocks,
    )


class Bench:
    """A core with engines, and the time that each event took."""

    def __init__(self, policy: str, engines: int, slots: int) -> None:
        options = policy_options(ControlPlaneConfig())
        self.core = Core(load_policy(policy, options), CoreOptions(Limits(queue_max_requests=100_000)))
        self.now = 0.0
        self.running: list[int] = []
        self.took: list[int] = []
        self.arrived = 0
        for index in range(engines):
            self.core.handle(EngineUp(0.0, EngineSpec(f"e{index}", "x", "m", CHAT, slots)))

    def feed(self, event: Event) -> list[Action]:
        """Hand one event over, and keep what it took in nanoseconds."""
        begin = time.thread_time_ns()
        actions = self.core.handle(event)
        self.took.append(time.thread_time_ns() - begin)
        self.running += [action.attempt for action in actions if isinstance(action, Dispatch)]
        return actions

    def serve(self, requests: int, queued: int, seed: int) -> None:
        """Requests through the core, `queued` of them waiting all the time."""
        rng = random.Random(seed)
        jobs = [job(self.arrived + number, rng) for number in range(requests)]
        self.arrived += requests
        begun = len(self.running)
        for one in jobs:
            self.now += 0.001
            self.feed(Arrived(self.now, one))
            while begun < len(self.running):
                self.feed(FirstByte(self.now, self.running[begun]))
                begun += 1
            waiting = self.core.counts(RequestClass.CHAT).waiting
            while self.running and waiting >= queued:
                begun -= 1
                self.feed(Finished(self.now, self.running.pop(rng.randrange(begun + 1)), Usage(100, 100)))
                waiting = self.core.counts(RequestClass.CHAT).waiting
                if waiting <= queued:
                    break


def bytes_per_request(policy: str, queued: int) -> float:
    """Memory that requests take which wait, without their bodies, which are not the core's."""
    bench = Bench(policy, 1, 1)
    rng = random.Random(0)
    jobs = [job(number, rng) for number in range(queued)]
    gc.collect()
    tracemalloc.start()
    for one in jobs:
        bench.core.handle(Arrived(0.0, one))
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size / queued


def measure(policy: str, engines: int, slots: int, queued: int, requests: int) -> dict[str, object]:
    """One row of figures."""
    bench = Bench(policy, engines, slots)
    bench.serve(requests // 4, queued, seed=1)  # warm: models learned, queue filled
    bench.took.clear()
    gc.collect()
    gc.freeze()
    cpu = time.process_time()
    bench.serve(requests, queued, seed=2)
    cpu = time.process_time() - cpu
    took = sorted(bench.took)
    return {
        "policy": policy,
        "engines": engines,
        "queued": queued,
        "event_p50_us": took[len(took) // 2] / 1000,
        "event_p99_us": took[len(took) * 99 // 100] / 1000,
        "request_cpu_us": cpu / requests * 1e6,
    }


def main() -> None:
    """Print one JSON object per case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--policy", default="hybrid")
    parser.add_argument("--engines", type=int, default=32)
    parser.add_argument("--queued", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=20_000)
    args = parser.parse_args()
    print(json.dumps(measure(args.policy, args.engines, 8, args.queued, args.requests)))
    print(json.dumps(measure(args.policy, 1, 64, 0, args.requests)))
    print(json.dumps({"policy": args.policy, "bytes_per_queued": bytes_per_request(args.policy, 5000)}))


if __name__ == "__main__":
    main()
