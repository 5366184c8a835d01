"""Chat, embeddings and an ingestion storm together: uncoordinated engines against the control plane.

    .venv/bin/python benchmarks/control_plane/joint.py [--minutes M] [--repetitions N] [--config FILE]
        [--arms A,B] [--rate R] [--out FOLDER] [--data-dir FOLDER]

One LLM engine (RANDOM-WEIGHTS) and one embedding server. Arms: `siloed-default` (each engine takes every
core, clients go straight to it), `siloed-tuned` (cores shared out, clients straight to the same engines that
the gateway has), and one arm per policy, through the gateway. A sweep on `siloed-tuned` first finds the chat
rate at which its chat attainment falls below 90 %; then every arm gets that load, in blocks that take turns.
The policy is confirmed by the server before and after each block. Writes `joint.json` and `joint.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
import tomllib
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from joint_engines import (
    EMBED,
    GATEWAY,
    LLM,
    Meter,
    Pair,
    Timeouts,
    bare_pair,
    engine_configs,
    say,
    slos,
    stack_pair,
)
from joint_report import write

from sage.benchmark.arms import Block, Goals
from sage.benchmark.capacity import Search, bracket
from sage.benchmark.datasets import open_dataset
from sage.benchmark.load import (
    Arrival,
    Plan,
    Report,
    Request,
    Storm,
    chat_request,
    embed_request,
    measure,
    mixed,
    poisson,
    shots,
)
from sage.benchmark.metrics import Limits, attainment
from sage.common.errors import SageError
from sage.middleware.stack import interruptible

HERE = Path(__file__).resolve().parent
DEFAULT, TUNED = "siloed-default", "siloed-tuned"
SETTLE_S = 0.5
BESIDE_S = 3.0  # of a block beside its load: the client's start, the last answers
BESIDE_DEFAULT_S = 15.0
BLOCK_S = (6.0, 30.0)


@dataclass(slots=True)
class Bench:
    """What stays the same over all blocks."""

    config: dict[str, Any]
    goals: Goals
    texts: list[str]
    folder: Path
    pairs: dict[str, Pair]  # by arm
    clients: list[Report]

    def plan(self, arm: str, rate: float, seconds: float, seed: int, *, storm: bool = True) -> Plan:
        """The load of one block: a function of rate, length and seed, for every arm the same but its aim."""
        load, pair = self.config["load"], self.pairs[arm]
        direct = arm in (DEFAULT, TUNED)
        models = pair.models if direct or pair.served is None else pair.served
        chat, embed = (LLM, EMBED) if direct else (GATEWAY, GATEWAY)
        rng = random.Random(seed)
        duration = self.config["warmup_s"] + seconds
        arrivals = mixed(
            {
                "chat": poisson(rate=rate, duration=duration, seed=2 * seed),
                "embed": poisson(rate=rate * load["embed_per_chat"], duration=duration, seed=2 * seed + 1),
            }
        )

        def make(arrival: Arrival) -> Request:
            text = f"[{seed}.{arrival.index}] {rng.choice(self.texts)}"
            if arrival.kind == "chat":
                return chat_request(models[LLM], text, rng.choice(load["max_tokens"]), usage=not direct)
            return embed_request(models[EMBED], [text])

        storms = []
        if storm:
            size = load["storm_texts"]
            calls = [rng.sample(self.texts, size) for _ in range(32)]
            bulk = tuple(embed_request(models[EMBED], call) for call in calls)
            storms.append(Storm(load["storm_workers"], f"{embed}-bulk", bulk))
        planned = shots(arrivals, {"chat": chat, "embed": embed}, make)
        return Plan(pair.targets, duration, planned, tuple(storms))

    async def block(self, arm: str, plan: Plan) -> Block:
        """Measure one block. Raises SageError when the policy in force is not the arm's."""
        pair = self.pairs[arm]
        await self._confirm(arm, change=True)
        warmup = self.config["warmup_s"]
        seconds = plan.duration - warmup
        meter = Meter(pair.pids)
        loop = asyncio.get_running_loop()

        def started() -> None:
            loop.call_later(warmup, meter.start)
            loop.call_later(plan.duration, meter.stop, seconds)

        if arm == DEFAULT:
            pair.pause(False)
        client, records = await measure(plan, self.folder / "records.jsonl", on_start=started)
        if arm == DEFAULT:
            pair.pause(True)
        await self._confirm(arm, change=False)
        self.clients.append(client)
        cores = {**meter.cores, "client": client.cpu_s / client.wall_s}
        await asyncio.sleep(SETTLE_S)
        return Block(records, seconds, warmup, self.config["timeout_s"], cores)

    async def _confirm(self, arm: str, *, change: bool) -> None:
        admin = self.pairs[arm].admin
        if arm in (DEFAULT, TUNED):
            return
        if admin is None:
            raise SageError(f"The arm {arm} needs a gateway, and none was started.")
        if change:
            await asyncio.to_thread(admin.set_policy, arm)
        said = (await asyncio.to_thread(admin.policy)).name
        if said != arm:
            raise SageError(f"The server says that its policy is {said!r}, not {arm!r}.")


async def sweep(bench: Bench) -> tuple[float, list[dict[str, float]]]:
    """The smallest rate at which siloed-tuned chat attainment was below the bound, and all rates tried."""
    settings = bench.config["sweep"]
    tried: list[dict[str, float]] = []

    async def passes(rate: float) -> bool:
        block = await bench.block(TUNED, bench.plan(TUNED, rate, settings["seconds"], 1000 + len(tried)))
        met, issued = attainment(block.of("chat"), bench.goals["chat"])
        share = met / max(issued, 1)
        tried.append({"chat_rate": rate, "attainment": share, "issued": issued})
        say(f"  sweep: {rate:.2f} chats/s: chat attainment {met}/{issued} = {share:.3f}")
        return share >= float(settings["attainment"])

    search = Search(settings["first_rate"], settings["factor"], settings["last_rate"], settings["steps"])
    found = await bracket(passes, search)
    if found.bad is None:
        say(f"  sweep: above the bound even at {found.good:.2f} chats/s, the last rate of the configuration")
    return found.bad or found.good, tried


async def quiet(bench: Bench) -> Block:
    """What a request takes when it has the engines to itself: low rate, no storm."""
    settings = bench.config["sweep"]
    plan = bench.plan(TUNED, settings["first_rate"] / 2, settings["seconds"], 999, storm=False)
    return await bench.block(TUNED, plan)


async def repeat(
    bench: Bench, rate: float, repetitions: int, deadline: float
) -> tuple[dict[str, list[Block]], list[list[str]]]:
    """All arms in turn, in a new order each time. The blocks of one repetition are equally long.

    Their length fills the time that is left, given what the blocks so far took beside their load.
    """
    arms: list[str] = bench.config["arms"]
    rng = random.Random(bench.config["seed"])
    blocks: dict[str, list[Block]] = {arm: [] for arm in arms}
    orders: list[list[str]] = []
    beside = dict.fromkeys(arms, BESIDE_S) | {DEFAULT: BESIDE_DEFAULT_S}
    for repetition in range(repetitions):
        left = (deadline - time.monotonic()) / (repetitions - repetition)
        share = (left - sum(beside[arm] for arm in arms)) / len(arms) - bench.config["warmup_s"]
        seconds = min(max(share, BLOCK_S[0]), BLOCK_S[1])
        orders.append(rng.sample(arms, len(arms)))
        for arm in orders[-1]:
            plan = bench.plan(arm, rate, seconds, bench.config["seed"] + repetition)
            begun = time.monotonic()
            block = await bench.block(arm, plan)
            took = time.monotonic() - begun
            beside[arm] = max(beside[arm], took - plan.duration)
            blocks[arm].append(block)
            met = {kind: attainment(block.of(kind), bench.goals[kind]) for kind in bench.goals}
            told = ", ".join(f"{kind} {hits}/{issued}" for kind, (hits, issued) in met.items())
            say(f"  {repetition + 1}/{repetitions} {arm}: {told} met; {seconds:.1f} s, took {took:.0f} s")
    return blocks, orders


async def run(options: argparse.Namespace) -> None:
    config = tomllib.loads(options.config.read_text(encoding="utf-8"))
    if options.arms:
        config["arms"] = options.arms.split(",")
    begun = time.monotonic()
    goals: Goals = {
        "chat": Limits(ttft=config["goals"]["chat_ttft_s"], tpot=config["goals"]["chat_tpot_s"]),
        "embed": Limits(e2e=config["goals"]["embed_total_s"]),
    }
    longest = config["load"]["longest_text"]
    found = open_dataset(config["load"]["texts"], options.data_dir).items()
    texts = [text[:longest] for text in islice(found, 4000)]
    async with AsyncExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="sage-joint-")))
        bench = Bench(config, goals, texts, folder, await _pairs(held, config, folder), [])
        say(f"engines are up ({time.monotonic() - begun:.0f} s)")
        unloaded = await quiet(bench)
        rate, tried = (options.rate, []) if options.rate else await sweep(bench)
        say(f"chosen load: {rate:.2f} chats/s and {rate * config['load']['embed_per_chat']:.2f} embeddings/s")
        bench.clients.clear()
        blocks, orders = await repeat(bench, rate, options.repetitions, begun + options.minutes * 60)
    write(
        options.out, config=config, goals=goals, rate=rate, tried=tried, unloaded=unloaded, blocks=blocks,
        orders=orders, clients=bench.clients, wall_s=time.monotonic() - begun,
    )  # fmt: skip


async def _pairs(held: AsyncExitStack, config: dict[str, Any], folder: Path) -> dict[str, Pair]:
    """The engines of each arm. Those at default flags are halted but for their own blocks."""
    engines = engine_configs(config["engines"]["max_running"])
    timeout = Timeouts(config["timeout_s"], config["bulk_timeout_s"])
    pairs: dict[str, Pair] = {}
    if set(config["arms"]) - {DEFAULT, TUNED}:
        tuned = await held.enter_async_context(stack_pair(engines, folder, timeout, slos(config["goals"])))
    else:
        tuned = await held.enter_async_context(bare_pair(engines, folder, timeout, tuned=True))
    pairs = dict.fromkeys({*config["arms"], TUNED} - {DEFAULT}, tuned)
    if DEFAULT in config["arms"]:
        pairs[DEFAULT] = await held.enter_async_context(bare_pair(engines, folder, timeout, tuned=False))
        pairs[DEFAULT].pause(True)
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--config", type=Path, default=HERE / "joint.toml")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--minutes", type=float, default=12.0, help="for all of it; blocks fill what is left")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--arms", default="", help="only these, comma-separated")
    parser.add_argument("--rate", type=float, default=0.0, help="chats per second, instead of the sweep")
    parser.add_argument("--data-dir", type=Path, help="folder of published data")
    with interruptible():
        asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
