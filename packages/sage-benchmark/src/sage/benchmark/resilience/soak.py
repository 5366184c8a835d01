"""`./manage.sh soak`: everything at once for a long time; memory stays, and nothing else is left either."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import psutil

from sage.benchmark.resilience.acts import Act, chat, embedding
from sage.benchmark.resilience.answers import vector
from sage.benchmark.resilience.options import Experiment, Options
from sage.benchmark.resilience.report import Check, at_most, nothing_left
from sage.benchmark.resilience.slope import binned, slope
from sage.benchmark.resilience.stage import Puppet, Stage, staged
from sage.benchmark.resilience.wire import CHAT, EMBEDDINGS, Wire, ask, request

__all__ = ["SOAK"]

SAMPLE_S: Final = 2.0
WARM: Final = 0.25  # of the time, in which memory may still grow
BINS: Final = 45  # medians of which the slope is taken
GROWTH: Final = 1.0  # MiB in an hour
MIB: Final = 1024 * 1024
NEW_KEY_S: Final = 60.0
TENANTS: Final = 64  # whose counts the gateway keeps apart: of a key that comes each minute, an hour's


@dataclass(slots=True)
class _Soak:
    """One run: the stage, what was drawn, what was answered, what memory was when."""

    stage: Stage
    dice: random.Random
    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    rss: list[float] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def pause(self, seconds: float) -> None:
        """Wait so long, or until it is over."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.over.wait(), seconds)

    def note(self, what: str, ok: bool, found: object) -> None:
        """Count an answer, and remember one that is not as it should be."""
        self.answers[what] += 1
        if not ok:
            self.wrong.append(f"{what}: {found}")

    def act(self) -> Act:
        """A short answer that takes a moment."""
        return Act(
            words=self.dice.randint(2, 30), first_ms=self.dice.uniform(1, 20), gap_ms=self.dice.uniform(0, 3)
        )


async def _chat(run: _Soak) -> None:
    answer = await run.stage.ask(CHAT, chat(run.act()))
    run.note("chat", answer.status == 200, answer.status)


async def _stream(run: _Soak) -> None:
    answer = await run.stage.ask(CHAT, chat(run.act(), stream=True))
    run.note("stream", answer.body.endswith(b"data: [DONE]\n\n"), answer.body[-100:])


async def _embed(run: _Soak) -> None:
    text = f"text {run.dice.random()}"
    answer = await run.stage.ask(EMBEDDINGS, embedding([text]))
    ok = answer.status == 200 and answer.json["data"][0]["embedding"] == vector(text)
    run.note("embedding", ok, answer.status)


async def _bulk(run: _Soak) -> None:
    texts = [f"text {run.dice.random()}" for _ in range(64)]
    answer = await run.stage.ask(EMBEDDINGS, embedding(texts))
    run.note("bulk", answer.status == 200 and len(answer.json["data"]) == 64, answer.status)


async def _disconnect(run: _Soak) -> None:
    wire = await Wire.open(run.stage.port)
    raw = request(run.stage.port, run.stage.key, CHAT, chat(run.act(), stream=run.dice.random() < 0.5))
    wire.send(raw[: run.dice.randint(1, 2 * len(raw))])
    await asyncio.sleep(run.dice.uniform(0.0, 0.05))
    wire.leave(reset=run.dice.random() < 0.5)
    run.note("disconnect", True, "")


async def _refused(run: _Soak) -> None:
    """A wrong key, a body that is none, a model that is not there, a path that is not there."""
    port, key = run.stage.port, run.stage.key
    path, given, body, status = run.dice.choice(
        (
            (CHAT, "sk-sage-nobody.x", chat(), 401),
            (CHAT, key, b'{"model": ', 400),
            (CHAT, key, chat(model=f"model-{run.dice.random()}"), 404),
            ("/v1/nothing", key, None, 404),
        )
    )
    answer = await ask(port, given, path, body)
    run.note("refused", answer.status == status, f"{answer.status} for {status}")


async def _failing(run: _Soak) -> None:
    """An engine breaks off after the first bytes: an error event, or a second attempt."""
    answer = await run.stage.ask(CHAT, chat(Act(words=20, cut=run.dice.randint(1, 900)), stream=True))
    run.note("broken off", answer.status in (200, 502), answer.status)


async def _churn(run: _Soak) -> None:
    """Another secret for a key, which is used at once."""
    found = await run.stage.admin("/keys/churned/rotate", {"grace_s": 0.0})
    answer = await ask(run.stage.port, found["secret"], "/v1/models")
    run.note("rotated key", answer.status == 200, answer.status)


# What is done, how often in a second by one client, and how many clients do it.
_MIX: Final[tuple[tuple[Callable[[_Soak], Awaitable[None]], float, int], ...]] = (
    (_chat, 5.0, 4),
    (_stream, 3.0, 6),
    (_embed, 5.0, 3),
    (_bulk, 1.0, 1),
    (_disconnect, 4.0, 3),
    (_refused, 3.0, 1),
    (_failing, 0.2, 1),
    (_churn, 0.5, 1),
)


async def _client(run: _Soak, do: Callable[[_Soak], Awaitable[None]], per_s: float) -> None:
    while not run.over.is_set():
        await run.pause(run.dice.expovariate(per_s))
        try:
            await do(run)
        except (OSError, EOFError, TimeoutError, ValueError, RuntimeError) as error:
            run.note(getattr(do, "__name__", "?"), ok=False, found=repr(error))


async def _new_keys(run: _Soak) -> None:
    """Keys come and go."""
    while not run.over.is_set():
        made = await run.stage.admin("/keys", {"name": f"passing-{run.dice.getrandbits(48):x}"})
        answer = await ask(run.stage.port, made["secret"], CHAT, chat())
        run.note("new key", answer.status == 200, answer.status)
        await run.stage.admin(f"/keys/{made['key']['id']}", method="DELETE")
        await run.pause(NEW_KEY_S)


async def _fill(run: _Soak) -> None:
    """As many keys as it keeps counts of, before memory is measured: what fills to its bound is no growth."""
    for number in range(TENANTS):
        made = await run.stage.admin("/keys", {"name": f"early-{number}"})
        for body, path in ((chat(), CHAT), (embedding(["text"]), EMBEDDINGS)):
            await ask(run.stage.port, made["secret"], path, body)
        await run.stage.admin(f"/keys/{made['key']['id']}", method="DELETE")


async def _watch(run: _Soak, seconds: float) -> None:
    began = time.monotonic()
    process = psutil.Process(run.stage.process.pid)
    while (at := time.monotonic() - began) < seconds:
        run.times.append(at)
        run.rss.append(process.memory_info().rss / MIB)
        await asyncio.sleep(min(SAMPLE_S, seconds / BINS / 4))


async def _soak(options: Options) -> list[Check]:
    """`count`: seconds of it."""
    puppets = [Puppet("engine-0"), Puppet("engine-1"), Puppet("vectors", task="embed", model="vectors")]
    async with staged(puppets) as stage:
        run = _Soak(stage, options.dice("soak"))
        await stage.admin("/keys", {"name": "churned"})
        await _fill(run)
        await stage.rest()
        clients = [asyncio.create_task(_client(run, do, rate)) for do, rate, n in _MIX for _ in range(n)]
        clients.append(asyncio.create_task(_new_keys(run)))
        await _watch(run, options.count)
        run.over.set()
        await asyncio.gather(*clients)
        left = await stage.clean()
    return [*_memory(run, options.count), *_behaviour(run), *nothing_left(left)]


def _memory(run: _Soak, seconds: float) -> list[Check]:
    warm = WARM * seconds
    kept = [(at / 3600, rss) for at, rss in zip(run.times, run.rss, strict=True) if at >= warm]
    width = (seconds - warm) / 3600 / BINS
    hours, medians = binned([at for at, _ in kept], [rss for _, rss in kept], width)
    found = slope(hours, medians)
    shown = f"{run.rss[0]:.1f}, {kept[0][1]:.1f}, {run.rss[-1]:.1f} MiB"
    interval = f"memory grows, 95 % between {found.low:.2f} and {found.high:.2f}"
    return [
        Check("memory at the start, after warming up, at the end", shown, "", True, run.rss[-1]),
        at_most(interval, found.value, GROWTH, "MiB/h"),
    ]


def _behaviour(run: _Soak) -> list[Check]:
    counts = ", ".join(f"{number} {what}" for what, number in sorted(run.answers.items()))
    first = run.wrong[0] if run.wrong else ""
    return [
        Check(f"requests ({counts})", f"{run.answers.total()}", "", True, run.answers.total()),
        Check("answers that were not right", f"{len(run.wrong)} {first}".strip(), "0", not run.wrong),
    ]


SOAK: Final = Experiment("mixed", "everything at once, so many seconds", 3600, _soak)
