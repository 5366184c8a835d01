"""Engines that end in the middle of an answer, and a request that ends whichever engine it comes to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from sage.benchmark.resilience.acts import Act, chat
from sage.benchmark.resilience.answers import parts
from sage.benchmark.resilience.options import Experiment, Options
from sage.benchmark.resilience.report import Check, at_most, nothing_left
from sage.benchmark.resilience.stage import Puppet, Stage, staged, until
from sage.benchmark.resilience.wire import CHAT, Answer, Wire, request

__all__ = ["KILLS", "POISON", "positions"]

WORDS: Final = 12
ERROR_S: Final = 0.25  # from the end of an engine to the error event
NEXT_S: Final = 1.0  # for the next request, elsewhere
MOST_KILLED: Final = 2  # engines that one request may end
POISONED: Final = "502 engine_error, to be tried again: false"
USUAL: Final = 25  # requests between two breaks: retries are a tenth of the traffic, and a break takes two
BACK_S: Final = 40.0  # for an engine that was killed: it may have been ejected for a time as well

Way = Literal["cut", "kill"]


def positions(size: int, count: int) -> list[int]:
    """So many byte positions of an answer of `size` bytes, evenly from its first byte to before its last."""
    if count == 1:
        return [0]
    return [round(at * (size - 1) / (count - 1)) for at in range(count)]


@dataclass(slots=True)
class _Found:
    """What came of all kills so far."""

    errors: list[float] = field(default_factory=list)  # seconds until an error event
    after: list[float] = field(default_factory=list)  # seconds of the next request
    hidden: int = 0  # answered whole, by another engine
    wrong: list[str] = field(default_factory=list)


def _cases(count: int) -> Iterator[tuple[Way, bool, int]]:
    """How, whether of a stream, and after how many bytes."""
    for way in ("cut", "kill"):
        for stream in (True, False):
            size = sum(map(len, parts("engine-0", WORDS, stream=stream)))
            for at in positions(size, count):
                yield way, stream, at


async def _kills(options: Options) -> list[Check]:
    puppets = [Puppet(f"engine-{number}") for number in range(3)]
    found = _Found()
    async with staged(puppets) as stage:
        await stage.rest()
        for number, (way, stream, at) in enumerate(_cases(options.count)):
            act = _act(way, at, stage.folder / f"kill-{number}")
            await _one(
                stage, act, stream, f"{way} of a {'stream' if stream else 'plain answer'} at {at}", found
            )
            await _revive(stage, killed=way == "kill")
        left = await stage.clean()
    errors, after = found.errors or [0.0], found.after
    return [
        Check("answers broken off", f"{4 * options.count}", "", True, 4.0 * options.count),
        at_most(
            f"error event after a break, most of {len(found.errors)}", max(errors) * 1e3, ERROR_S * 1e3, "ms"
        ),
        Check("retries that no client saw", f"{found.hidden}", "", True, found.hidden),
        at_most(f"next request, elsewhere, most of {len(after)}", max(after) * 1e3, NEXT_S * 1e3, "ms"),
        Check("what went wrong", "; ".join(found.wrong[:3]) or "nothing", "nothing", not found.wrong),
        *nothing_left(left),
    ]


def _act(way: Way, at: int, once: Path) -> Act:
    cut, kill = (at, None) if way == "cut" else (None, at)
    return Act(words=WORDS, gap_ms=1.0, once=str(once), cut=cut, kill=kill)


async def _one(stage: Stage, act: Act, stream: bool, what: str, found: _Found) -> None:
    """One answer that is broken off, and the request after it."""
    wire = await Wire.open(stage.port)
    wire.send(request(stage.port, stage.key, CHAT, chat(act, stream=stream)))
    answer = await wire.answer()
    wire.leave(reset=False)
    began = time.monotonic()
    following = await stage.ask(CHAT, chat(Act()))
    found.after.append(time.monotonic() - began)
    if following.status != 200:
        found.wrong.append(f"after {what} the next request got {following.status}")
    broken = await asyncio.to_thread(Path(act.once).read_text)
    if not broken:
        found.wrong.append(f"{what} did not happen")
    elif _whole(answer, stream):
        found.hidden += 1
    elif answer.status == 200 and answer.error == "engine_error" and b"[DONE]" not in answer.body:
        found.errors.append(answer.pieces[-1][0] - float(broken))
    else:
        found.wrong.append(f"{what} was answered {answer.status} {answer.body[-200:]!r}")


def _whole(answer: Answer, stream: bool) -> bool:
    """Whether it is a complete answer that says what it should, once."""
    if answer.status != 200:
        return False
    said = answer.body.count(b"word")
    complete = answer.body.endswith(b"data: [DONE]\n\n") if stream else bool(answer.json["choices"])
    return complete and said == WORDS and b'"error"' not in answer.body


async def _revive(stage: Stage, *, killed: bool) -> None:
    """Start the engine again that was killed, and wait until at least two get work."""

    async def dead() -> list[Puppet]:
        return [one for one in stage.puppets.values() if one.process and one.process.returncode is not None]

    if killed and await until(dead, timeout=5.0):
        for puppet in await dead():
            await puppet.stop()
            await puppet.start()
    await stage.ready(2, timeout=BACK_S)
    await _usual(stage)


async def _usual(stage: Stage) -> None:
    """Some ordinary traffic."""
    for _ in range(USUAL):
        await stage.ask(CHAT, chat(Act()))


# ---- a request that kills ----------------------------------------------------------------------------------


async def _poison(options: Options) -> list[Check]:
    engines = [
        {"name": f"engine-{n}", "kind": "puppet", "model": "llm", "served_as": "llm"} for n in range(4)
    ]
    worst, codes = 0, set()
    async with staged([], supervised=engines) as stage:
        await stage.rest()
        for number in range(options.count):
            before = await _restarts(stage)
            answer = await stage.ask(CHAT, chat(Act(kill=0), stream=number % 2 == 0))
            again = answer.headers.get("x-should-retry", "not said")
            codes.add(f"{answer.status} {answer.error}, to be tried again: {again}")

            async def noticed(before: int = before) -> bool:
                return await _restarts(stage) > before

            await until(noticed, timeout=BACK_S)
            await stage.ready(timeout=BACK_S)
            worst = max(worst, await _restarts(stage) - before)
            await _usual(stage)
        left = await stage.clean()
    return [
        at_most(f"engines that one request killed, most of {options.count}", worst, MOST_KILLED),
        Check(
            "what it was answered",
            ", ".join(sorted(codes)),
            POISONED,
            codes == {POISONED},
        ),
        *nothing_left(left),
    ]


async def _restarts(stage: Stage) -> int:
    return sum(engine.restarts for engine in await stage.engines())


KILLS: Final = Experiment(
    "kills", "engines end at so many byte positions, by a cut and by SIGKILL", 20, _kills
)
POISON: Final = Experiment("poison", "a request kills each engine that it comes to", 3, _poison)
