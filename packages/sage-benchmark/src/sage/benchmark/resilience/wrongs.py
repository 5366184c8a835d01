"""Engines that say what they should not, or nothing; clients that do not read. Each with its right end."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from sage.benchmark.resilience.acts import Act, chat
from sage.benchmark.resilience.answers import NONSENSE, parts
from sage.benchmark.resilience.options import Experiment, Options
from sage.benchmark.resilience.report import Check, at_most, nothing_left
from sage.benchmark.resilience.stage import Puppet, Stage, staged, until
from sage.benchmark.resilience.wire import CHAT, Answer, Wire, request

__all__ = ["NONSENSE_TALK", "READERS", "STALLS"]

USUAL: Final = 11  # requests after each: retries are a tenth of the traffic
SECRETS: Final = (b"my secret", b"stolen", b"SSH-2.0", b"<html>", b"127.0.0.1")


# ---- nonsense ----------------------------------------------------------------------------------------------


async def _nonsense(options: Options) -> list[Check]:
    """`count`: rounds of all of them, plain and streamed."""
    found: dict[str, set[str]] = {}
    wrong: list[str] = []
    async with staged([Puppet("engine-0"), Puppet("engine-1")]) as stage:
        await stage.rest()
        for _ in range(options.count):
            for say in NONSENSE:
                streams = say.startswith("late") or say in ("oversized event", "broken utf-8", "no end")
                answer = await stage.ask(CHAT, chat(Act(say=say), stream=streams))
                found.setdefault(say, set()).add(_outcome(answer))
                leaked = [secret.decode() for secret in SECRETS if secret in answer.body]
                wrong += [f"{say} told the client {secret!r}" for secret in leaked]
                wrong += await _usual(stage, say)
                await stage.ready(1)
        left = await stage.clean()
    return [
        *(
            Check(say, ", ".join(sorted(ends)), _right(say), ends == {_right(say)})
            for say, ends in found.items()
        ),
        Check("what went wrong", "; ".join(wrong[:3]) or "nothing", "nothing", not wrong),
        *nothing_left(left),
    ]


async def _usual(stage: Stage, say: str) -> list[str]:
    """What is wrong with ordinary answers afterwards: on connections that were used again, for example."""
    wrong = []
    expected = [parts(name, 3, stream=False)[0] for name in stage.puppets]
    for _ in range(USUAL):
        answer = await stage.ask(CHAT, chat(Act()))
        if answer.status != 200 or answer.body not in expected:
            wrong.append(f"after {say} the next one got {answer.status} {answer.body[:100]!r}")
    return wrong


def _outcome(answer: Answer) -> str:
    if answer.status != 200:
        return f"{answer.status} {answer.error}"
    return f"error event {answer.error}" if answer.error else "200"


def _right(say: str) -> str:
    """How a client must be answered."""
    if say == "second answer":
        return "200"
    return "error event engine_error" if say.startswith("late") else "502 engine_error"


# ---- readers -----------------------------------------------------------------------------------------------

STALL_S: Final = 30.0  # after which a client that reads nothing is dropped
HELD: Final = 1024 * 1024  # bytes of the gateway that each may hold
BUFFERS: Final = 32 * 1024 * 1024  # the system's, of two connections, and ours


async def _readers(options: Options) -> list[Check]:
    """`count`: clients that begin a stream and never read it."""
    async with staged([Puppet("engine-0")]) as stage:
        await stage.rest()
        before = stage.rss()
        wires = []
        for _ in range(options.count):
            wire = await Wire.open(stage.port)
            wire.writer.transport.pause_reading()  # type: ignore[attr-defined]  # it reads as well
            wire.send(request(stage.port, stage.key, CHAT, chat(Act(words=500, endless=True), stream=True)))
            wires.append(wire)
        full_at, gone_at = time.monotonic(), 0.0
        most = sent = 0

        async def gone() -> bool:
            nonlocal most, sent, full_at, gone_at
            gone_at = time.monotonic()
            most = max(most, stage.rss() - before)
            seen = await stage.puppets["engine-0"].look()
            if seen.sent != sent:
                sent, full_at = seen.sent, gone_at
            return seen.active == 0

        await until(gone, timeout=3 * STALL_S, every=0.2)
        for wire in wires:
            wire.leave(reset=True)
        left = await stage.clean()
    each = sent / options.count
    return [
        at_most("they are dropped, from the last byte that moved", gone_at - full_at, STALL_S + 3.0, "s"),
        at_most("bytes that the engine could send for each", each / 1e6, BUFFERS / 1e6, "MB"),
        at_most("memory for each, most", most / options.count / 1e6, HELD / 1e6, "MB"),
        *nothing_left(left),
    ]


# ---- stalls ------------------------------------------------------------------------------------------------

FIRST_S: Final = 120.0  # to an engine's first byte
SLACK_S: Final = 10.0
GIVEN_UP: Final = {"502 engine_error", "503 engine_unavailable"}  # the second where no engine is left


async def _stalls(options: Options) -> list[Check]:
    """`count`: requests of each kind; all at once, as they take minutes."""
    async with staged([Puppet("engine-0")]) as stage:
        await stage.rest()
        before, after = await asyncio.gather(
            asyncio.gather(*(_stalled(stage, -1) for _ in range(options.count))),
            asyncio.gather(*(_stalled(stage, 2) for _ in range(options.count))),
        )
        left = await stage.clean()
    codes = {_outcome(answer) for answer, _ in before}
    events = {_outcome(answer) for answer, _ in after}
    return [
        at_most("a silent engine is given up after", max(took for _, took in before), FIRST_S + SLACK_S, "s"),
        Check("what that is answered", ", ".join(sorted(codes)), "502 or 503", codes <= GIVEN_UP),
        at_most("a stalled stream is given up after", max(took for _, took in after), FIRST_S + SLACK_S, "s"),
        Check(
            "how that ends", ", ".join(sorted(events)), "an error event", all("event" in e for e in events)
        ),
        *nothing_left(left),
    ]


async def _stalled(stage: Stage, hold: int) -> tuple[Answer, float]:
    began = time.monotonic()
    answer = await stage.ask(CHAT, chat(Act(hold=hold), stream=True), timeout=4 * FIRST_S)
    return answer, time.monotonic() - began


NONSENSE_TALK: Final = Experiment("nonsense", "engines answer what is not an answer", 2, _nonsense)
READERS: Final = Experiment("readers", "clients that read nothing of an endless stream", 20, _readers)
STALLS: Final = Experiment("stalls", "engines that fall silent", 5, _stalls)
