"""What the gateway and its peers cost: CPU per request, added latency, throughput, memory of open streams.

    python benchmarks/gateway/compare.py [--arms hybrid,relay,…] [--rounds 3] [--json FILE]

One engine that does next to nothing (`upstream.py`) stands behind each arm in turn, and one whose vectors
take time, as where they are computed; the arms take turns in each round, in an order that is drawn. CPU time
is user + system of the whole process tree, less what it takes when idle. Ours runs as its users run it: one
worker, keys, metrics and the control plane on. `hybrid` and `fifo` are its policies, `relay` is a bare relay,
the floor. Peers are installed into environments of their own (`--environments`), at the versions in
`servers.py`, one worker each; `hybrid@PYTHON` is ours as it is installed for another interpreter. Compare
within one run: times of a shared machine mean little by themselves. A peer that cannot be installed or
started is NOT RUN, and one that fails a case has no figure there; both say why.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from load import CHAT, EMBEDDING, SLOW_EMBEDDING, STREAM, Kind, hold, load
from servers import ARMS, Server, started, upstream
from upstream import TOKENS

WIDTH: Final = 16
HELD: Final = 200
ROWS: Final = {
    "chat_cpu_us": "CPU per chat, µs",
    "token_cpu_us": "CPU per streamed token, µs",
    "embedding_cpu_us": "CPU per embedding, µs",
    "slow_embedding_cpu_us": "CPU per embedding at a slow engine, µs",
    "slow_embeddings_per_s": "embeddings/s there",
    "added_p50_ms": "added at c=1, p50, ms",
    "added_p99_ms": "added at c=1, p99, ms",
    "wide_p50_ms": "at c=16, p50, ms",
    "wide_p99_ms": "at c=16, p99, ms",
    "requests_per_s": "requests/s at c=16",
    "stream_mb_per_1000": "MB per 1,000 streams",
    "rss_mb": "MB at rest",
}
Samples = dict[str, list[float]]


def idle_share(server: Server, seconds: float = 1.5) -> float:
    """Cores that it uses when nothing is asked."""
    before = server.cpu()
    time.sleep(seconds)
    return (server.cpu() - before) / seconds


def spent(server: Server, kind: Kind, seconds: float, idle: float, most: int = -1) -> tuple[float, Any]:
    """CPU microseconds of one request, and what the load saw."""
    before, began = server.cpu(), time.monotonic()
    run = load(server.port, server.key, kind, seconds=seconds, connections=WIDTH, most=most)
    used = server.cpu() - before - idle * (time.monotonic() - began)
    return used / len(run.times) * 1e6, run


def measure(server: Server, direct: Server, seconds: float) -> dict[str, float]:
    """One arm in one round."""
    load(server.port, server.key, CHAT, seconds=seconds / 3, connections=WIDTH)  # warm
    idle = idle_share(server)
    found = {"rss_mb": server.rss() / 1e6}
    found["chat_cpu_us"], wide = spent(server, CHAT, seconds, idle)
    found["requests_per_s"] = len(wide.times) / wide.seconds
    found["wide_p50_ms"], found["wide_p99_ms"] = wide.quantile(0.5) * 1e3, wide.quantile(0.99) * 1e3
    found["embedding_cpu_us"], _ = spent(server, EMBEDDING, seconds, idle)
    found["slow_embedding_cpu_us"], slow = spent(server, SLOW_EMBEDDING, seconds, idle)
    found["slow_embeddings_per_s"] = len(slow.times) / slow.seconds
    streamed, _ = spent(server, STREAM, seconds, idle)
    found["token_cpu_us"] = (streamed - found["chat_cpu_us"]) / TOKENS
    alone = load(server.port, server.key, CHAT, seconds=seconds, connections=1)
    bare = load(direct.port, direct.key, CHAT, seconds=seconds / 2, connections=1)
    for name, share in (("added_p50_ms", 0.5), ("added_p99_ms", 0.99)):
        found[name] = (alone.quantile(share) - bare.quantile(share)) * 1e3
    before = server.rss()
    try:
        with hold(server.port, server.key, HELD):
            found["stream_mb_per_1000"] = (server.rss() - before) / HELD / 1e3
    except (EOFError, OSError) as error:
        print(f"  {HELD} open streams: FAILED: {error}", flush=True)
    return found


def run(arms: list[str], rounds: int, seconds: float, environments: Path) -> dict[str, Any]:
    """All arms, each measured once in every round."""
    samples: dict[str, Samples] = {arm: defaultdict(list) for arm in arms}
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        port = stack.enter_context(upstream())
        servers: dict[str, Server] = {}
        for arm in arms:
            try:
                servers[arm] = stack.enter_context(started(arm, port, environments))
            except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
                missing[arm] = str(error)
                print(f"{arm}: NOT RUN: {error}", flush=True)
        direct = Server(next(iter(servers.values())).process, port, "")
        for at in range(rounds):
            order = list(servers)
            random.Random(at).shuffle(order)
            for arm in order:
                print(f"round {at + 1} of {rounds}: {arm}", flush=True)
                for name, value in measure(servers[arm], direct, seconds).items():
                    samples[arm][name].append(value)
    return {"samples": samples, "not_run": missing}


def table(samples: dict[str, Samples]) -> str:
    """Medians over the rounds, as Markdown."""
    arms = [arm for arm, found in samples.items() if found]
    lines = ["| | " + " | ".join(arms) + " |", "|---" * (len(arms) + 1) + "|"]
    for row, words in ROWS.items():
        cells = [f"{statistics.median(samples[arm][row]):.3g}" if samples[arm][row] else "-" for arm in arms]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--arms", default=",".join(ARMS), help=f"some of {','.join(ARMS)}, or another policy")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load")
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "sage-benchmarks")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = run(options.arms.split(","), options.rounds, options.seconds, options.environments)
    print(table(result["samples"]))
    if options.json:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
        )
        head = {
            "date": time.strftime("%Y-%m-%d"),
            "commit": commit.stdout.strip(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
            "python": platform.python_version(),
            "rounds": options.rounds,
            "seconds": options.seconds,
        }
        options.json.write_text(json.dumps({**head, **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
