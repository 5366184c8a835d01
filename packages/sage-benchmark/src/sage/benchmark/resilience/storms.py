"""More than there is room for: retries while engines fail, load beyond room, slow heads by the thousand."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from sage.benchmark.load import Arrival, Plan, Shot, Target, chat_request, measure, poisson
from sage.benchmark.metrics import CONVERSATIONAL, goodput
from sage.benchmark.resilience.acts import Act, chat
from sage.benchmark.resilience.options import Experiment, Options
from sage.benchmark.resilience.probe import probing
from sage.benchmark.resilience.report import Check, at_least, at_most, equal, nothing_left
from sage.benchmark.resilience.stage import Puppet, Stage, staged
from sage.benchmark.resilience.wire import CHAT, request
from sage.benchmark.stats import percentile, quantile, ratio

__all__ = ["OVERLOAD", "RETRIES", "SLOW_HEADS"]

# ---- retries -----------------------------------------------------------------------------------------------

OFFERED_PER_S: Final = 50.0
AMPLIFIED: Final = 1.2  # calls at engines for each request that clients wanted answered
TRIES: Final = 4
LONGEST_PAUSE_S: Final = 5.0


@dataclass(slots=True)
class _Clients:
    """What clients did who come again when they are told to."""

    sent: int = 0
    answered: int = 0
    codes: set[int] = field(default_factory=set)

    async def one(self, stage: Stage, at: float) -> None:
        """One request, sent `at` seconds from now, and again while it is told when to come back."""
        await asyncio.sleep(at)
        for _ in range(TRIES):
            self.sent += 1
            answer = await stage.ask(CHAT, chat(Act(refuse=0.5, first_ms=20.0)))
            if answer.status == 200:
                self.answered += 1
                return
            self.codes.add(answer.status)
            if "retry-after" not in answer.headers:
                return
            await asyncio.sleep(min(LONGEST_PAUSE_S, float(answer.headers["retry-after"])))


async def _retries(options: Options) -> list[Check]:
    dice = options.dice("retries")
    clients = _Clients()
    async with staged([Puppet("engine-0"), Puppet("engine-1")]) as stage:
        await stage.rest()
        seconds = options.count / OFFERED_PER_S
        await asyncio.gather(*(clients.one(stage, dice.uniform(0.0, seconds)) for _ in range(options.count)))
        calls = sum([(await puppet.look()).requests for puppet in stage.puppets.values()])
        left = await stage.clean()
    return [
        Check(
            "requests wanted, sent, answered",
            f"{options.count}, {clients.sent}, {clients.answered}",
            "",
            True,
        ),
        at_most("calls at engines for each request wanted", calls / options.count, AMPLIFIED),
        at_most("calls at engines for each request sent", calls / clients.sent, AMPLIFIED),
        equal("answers other than 200, 502 and 503", len(clients.codes - {502, 503}), 0),
        *nothing_left(left),
    ]


# ---- load --------------------------------------------------------------------------------------------------

SLOTS: Final = 4
WORDS: Final = 10
GAP_MS: Final = 20.0
CAPACITY_PER_S: Final = SLOTS / (WORDS * GAP_MS / 1000)
TIMES: Final = {3.0: 0.95, 10.0: 0.90}  # of capacity, and the share of the peak that must be left
REFUSED_S: Final = 0.005
REFUSALS: Final = 300  # of which a 99th percentile says something
WARM_S: Final = 20.0  # an engine whose times are not known yet refuses nobody


async def _overload(options: Options) -> list[Check]:
    """`count`: seconds of each load. The peak is the best goodput at offered loads of about the capacity."""
    async with staged([Puppet("engine-0", max_running=SLOTS)], goals=True) as stage:
        await stage.rest()
        with stage.preferred() as priority:
            return [priority, *await _loads(stage, options), *nothing_left(await stage.clean())]


async def _loads(stage: Stage, options: Options) -> list[Check]:
    checks: list[Check] = []
    await _offer(stage, 0.8, WARM_S, options)
    loads = [await _offer(stage, times, options.count, options) for times in (0.9, 1.0, 1.1)]
    peak = max(found for found, _ in loads)
    shown = f"{peak:.1f}/s of a capacity of {CAPACITY_PER_S:.1f}/s"
    checks.append(Check("peak goodput", shown, "", True, peak))
    for times, share in TIMES.items():
        found, refused = await _offer(stage, times, options.count, options)
        checks.append(at_least(f"goodput at {times:g} times the capacity, of the peak", found / peak, share))
        checks += _refusals(times, refused)
    overhead = await _overhead(stage)
    checks.append(
        at_most("control plane's own time for an arrival, p99", overhead * 1e3, REFUSED_S * 1e3, "ms")
    )
    return checks


def _refusals(times: float, refused: Sequence[float]) -> list[Check]:
    """All that were refused, those too that had to wait for it."""
    counted = at_least(f"refusals at {times:g} times", len(refused), REFUSALS)
    if not refused:
        return [counted]
    half, most = (quantile(refused, share) * 1e3 for share in (0.5, 0.99))
    what = f"from sending to the refusal at {times:g} times, p99 (half within {half:.2f} ms)"
    return [counted, at_most(what, most, REFUSED_S * 1e3, "ms")]


async def _offer(stage: Stage, times: float, seconds: float, options: Options) -> tuple[float, list[float]]:
    """Goodput under Poisson arrivals at a multiple of the capacity; and seconds of each refusal."""
    seed = options.dice("overload", times).randrange(1 << 30)
    arrivals = poisson(rate=times * CAPACITY_PER_S, duration=seconds, seed=seed)
    call = chat_request("llm", Act(words=WORDS, gap_ms=GAP_MS).text, 2 * WORDS)
    shots = tuple(Shot(Arrival(index, at, "chat"), "gateway", call) for index, at in enumerate(arrivals))
    plan = Plan({"gateway": Target(stage.run.base_url, stage.key)}, seconds, shots)
    _, records = await measure(plan, stage.folder / "records.jsonl")
    refused = [one.ended - one.sent for one in records if one.status == 429]
    return goodput(records, CONVERSATIONAL, seconds), refused


async def _overhead(stage: Stage) -> float:
    for metric in (await stage.admin("/metrics"))["metrics"]:
        if metric["name"] == "sage_dispatch_overhead_seconds":
            return float(metric["samples"][0]["quantiles"]["p99"])
    raise RuntimeError("the gateway has no sage_dispatch_overhead_seconds")


# ---- slow heads --------------------------------------------------------------------------------------------

SLOW: Final = 2000
BLOCK_S: Final = 6.0
OTHERS_PER_S: Final = 200.0
RISE: Final = 1.10
EVERY_S: Final = 1.0  # between two bytes of a head
AT_ONCE: Final = 2  # bytes, each to a head of its own
BESET_S: Final = 5.0  # of slow heads before a block, in which their deadline passes


async def _slow_heads(options: Options) -> list[Check]:
    """`count`: pairs of blocks, one without the slow sockets and one with them, in turn."""
    calm: list[list[float]] = []
    beset: list[list[float]] = []
    async with staged([Puppet("engine-0")]) as stage:
        await stage.rest()
        with stage.preferred() as priority:
            await _block(stage)  # to warm up
            for _ in range(options.count):
                calm.append(await _block(stage))
                slow = asyncio.create_task(_dribble(stage))
                await asyncio.sleep(BESET_S)
                beset.append(await _block(stage))
                slow.cancel()
                with suppress(asyncio.CancelledError):
                    await slow
                await stage.clean()
        left = await stage.clean()
    rise = ratio(beset, calm, partial(quantile, q=0.99), seed=options.seed)
    before, after = (percentile([one for block in blocks for one in block], 0.99) for blocks in (calm, beset))
    shown = (
        f"{before.value * 1e3:.2f} and {after.value * 1e3:.2f} ms, {rise.low:.2f} to {rise.high:.2f} times"
    )
    return [
        priority,
        Check(f"p99 of others without and with {SLOW} slow heads", shown, "", True, after.value),
        at_most("their p99, times that without", rise.value, RISE),
        *nothing_left(left),
    ]


async def _block(stage: Stage) -> list[float]:
    """Seconds of the answers that somebody else gets for a while."""
    async with probing(stage, chat(Act()), OTHERS_PER_S) as probed:
        await asyncio.sleep(BLOCK_S)
    return [took for status, took in probed if status == 200]


async def _dribble(stage: Stage) -> None:
    """Send `SLOW` heads, each a byte a second. The gateway ends each after ten seconds; another begins."""
    head = request(stage.port, stage.key, CHAT, chat())
    slow: list[tuple[socket.socket, int]] = [_connect(stage.port) for _ in range(SLOW)]
    try:
        while True:
            for at, (sock, sent) in enumerate(slow):
                try:
                    sock.send(head[sent : sent + 1])
                    slow[at] = sock, sent + 1
                except OSError:  # it was ended
                    sock.close()
                    slow[at] = _connect(stage.port)
                if at % AT_ONCE == 0:
                    await asyncio.sleep(EVERY_S * AT_ONCE / SLOW)
    finally:
        for sock, _ in slow:
            sock.close()


def _connect(port: int) -> tuple[socket.socket, int]:
    """A new head, of which nothing is sent."""
    sock = socket.socket()
    sock.setblocking(False)
    with suppress(BlockingIOError):
        sock.connect(("127.0.0.1", port))
    return sock, 0


RETRIES: Final = Experiment("retries", "engines fail half of the calls, clients come again", 1500, _retries)
OVERLOAD: Final = Experiment("overload", "3 and 10 times the capacity, each so many seconds", 20, _overload)
SLOW_HEADS: Final = Experiment("slow-heads", f"{SLOW} sockets send heads byte by byte", 8, _slow_heads)
