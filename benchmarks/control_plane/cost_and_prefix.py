"""CPU time of the cost model's and the prefix index's operations, in microseconds per call.

Run: python benchmarks/control_plane/cost_and_prefix.py — prints one JSON object. The call of an empty
function, which every figure contains, is the first row. Prompts are 4,000 tokens: 62 blocks of 256 bytes, of
which 10 are one of 20 system prompts, which all engines have. What is native stands beside its like in
Python, which runs with `SAGE_NATIVE=0`.
"""

from __future__ import annotations

import json
import os
import platform
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sage.middleware import _native
from sage.middleware.control_plane.bodies import read_body
from sage.middleware.control_plane.cost import EmbedCost, LlmCost, OutputLengths, PromptTokens
from sage.middleware.control_plane.facts import ParseLimits
from sage.middleware.control_plane.plain import read_plain
from sage.middleware.control_plane.prefix import (
    BLOCK,
    LruPrefixIndex,
    PrefixIndex,
    prompt_blocks,
    python_blocks,
)
from sage.middleware.engines.port import CHAT

CALLS = 20_000
RUNS = 7
SHARED = 10
PROMPT = 62
UNKNOWN = prompt_blocks(b"?" * PROMPT * BLOCK)

Blocks = tuple[int, ...]


def once(act: Callable[..., object], inputs: Sequence[tuple[Any, ...]]) -> float:
    began = time.process_time()
    for arguments in inputs:
        act(*arguments)
    return (time.process_time() - began) / len(inputs) * 1e6


def best(act: Callable[..., object], inputs: Sequence[tuple[Any, ...]]) -> float:
    return round(min(once(act, inputs) for _ in range(RUNS)), 2)


def cost_model() -> dict[str, float]:
    drawn = random.Random(0)
    loads = [(drawn.random() * 8000, drawn.randint(0, 32)) for _ in range(CALLS)]
    llm, embed, lengths, tokens = LlmCost(), EmbedCost(), OutputLengths(), PromptTokens()
    tenants = [
        ("model", f"tenant-{drawn.randint(0, 999)}", drawn.choice([None, 100, 1000])) for _ in range(CALLS)
    ]
    noisy = [(*load, llm.ttft(*load) * drawn.lognormvariate(0, 0.3)) for load in loads]
    regressed = [((1.0, 1.0 * running, used, 0.0), seconds) for used, running, seconds in noisy]
    return {
        "empty call": best(lambda _a, _b: None, loads),
        "LlmCost.ttft": best(llm.ttft, loads),
        "LlmCost.tpot": best(llm.tpot, [(running, 0.2, 0.5) for _, running in loads]),
        "EmbedCost.seconds": best(embed.seconds, loads),
        "EmbedCost.seconds, 4 threads beside an LLM": best(
            embed.seconds, [(*load, 4, 0.5) for load in loads]
        ),
        "OutputLengths.p50": best(lengths.p50, tenants),
        "OutputLengths.p90": best(lengths.p90, tenants),
        "PromptTokens.estimate": best(tokens.estimate, [("model", 16_000)] * CALLS),
        "LeastSquares.observe": best(LlmCost()._ttft.observe, regressed),
        "LlmCost.observe_ttft": best(llm.observe_ttft, noisy),
        "LlmCost.observe_tpot": best(llm.observe_tpot, [(b, 0.2, 0.5, s) for _, b, s in noisy]),
        "EmbedCost.observe": best(embed.observe, noisy),
        "OutputLengths.observe": best(lengths.observe, [(*key, drawn.randint(1, 900)) for key in tenants]),
        "PromptTokens.observe": best(tokens.observe, [("model", 16_000, 4_100)] * CALLS),
    }


def conversations(count: int) -> list[Blocks]:
    systems = [os.urandom(SHARED * BLOCK) for _ in range(20)]
    rest = (PROMPT - SHARED) * BLOCK
    return [prompt_blocks(systems[number % 20] + os.urandom(rest)) for number in range(count)]


def resident() -> float:
    """MiB of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def reading() -> dict[str, dict[str, float]]:
    """Judging a chat and hashing its text, by the size of its prompt."""
    limits, found = ParseLimits(), {}
    for size in (240, 2_000, 16_000):
        content = ("Say something about gateways. " * (size // 30 + 1))[:size]
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": content}]}).encode()
        inputs = [(body,)] * 2000
        found[f"{size} bytes"] = {
            "native": best(lambda one: read_plain(CHAT, one, limits, blocks=True), inputs),
            "python": best(lambda one: read_body(CHAT, one, limits, None, blocks=True), inputs),
        }
    return found


def prefix_index(kind: type[PrefixIndex], engines: int, capacity: int) -> dict[str, Any]:
    """An index filled to its capacity, then asked for and told again what is in it."""
    prompts = conversations(engines * capacity // (PROMPT - SHARED) + 1)
    index = kind(capacity)
    before = resident()
    placed = [(f"engine-{number % engines}", prompt) for number, prompt in enumerate(prompts)]
    filling = once(index.insert, placed)
    memory = resident() - before
    recent = placed[-min(len(placed) // 2, 5000) :]
    asked = [(prompt,) for _, prompt in recent]
    random.Random(1).shuffle(asked)
    return {
        "kind": kind.__name__,
        "engines": engines,
        "blocks": len(index),
        "MiB": round(memory, 1),
        "insert, new": round(filling, 2),
        "match, all of it": best(index.match, asked),
        "match, the system prompt only": best(
            index.match, [(p[:SHARED] + UNKNOWN[SHARED:],) for (p,) in asked]
        ),
        "match, nothing": best(index.match, [(UNKNOWN,)] * len(asked)),
        "insert, known": best(index.insert, recent),
    }


def main() -> None:
    text = [(os.urandom(PROMPT * BLOCK),)] * 1000
    sizes = [(4, 1024), (32, 1024), (32, 32_768)]
    figures = {
        "unit": "us of CPU per call, best of 7",
        "cost": cost_model(),
        "hashing a prompt": {"native": best(prompt_blocks, text), "python": best(python_blocks, text)},
        "reading a chat": reading(),
        "prefix index": [
            prefix_index(kind, *size) for kind in (_native.PrefixIndex, LruPrefixIndex) for size in sizes
        ],
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, other work running",
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
