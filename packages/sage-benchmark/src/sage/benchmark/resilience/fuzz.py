"""`./manage.sh fuzz`: requests that nobody would send; none is answered 5xx, and nothing of them stays."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from contextlib import suppress
from typing import Final

import httptools

from sage.benchmark.resilience.acts import chat
from sage.benchmark.resilience.mutate import mutated
from sage.benchmark.resilience.options import Experiment, Options
from sage.benchmark.resilience.report import Check, equal, nothing_left
from sage.benchmark.resilience.stage import Puppet, Stage, staged
from sage.benchmark.resilience.wire import CHAT, Wire

__all__ = ["EXPERIMENTS", "statuses"]

AT_ONCE: Final = 16
PATIENCE_S: Final = 0.05  # for more bytes of an answer to something that may be incomplete


class _Answers:
    """Reads answers one after the other."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.parser = httptools.HttpResponseParser(self)

    def on_headers_complete(self) -> None:
        self.statuses.append(self.parser.get_status_code())


def statuses(data: bytes, *, bare: bool = False) -> list[int]:
    """The status of each answer in these bytes, 1xx among them. ValueError where they are not HTTP.

    `bare`: the first one has no body, whatever its length says: it answers a HEAD.
    """
    answers = _Answers()
    if bare:
        head, _, data = data.partition(b"\r\n\r\n")
        head = re.sub(rb"content-length: \d+", b"content-length: 0", head, flags=re.IGNORECASE)
        data = head + b"\r\n\r\n" + data if head else data
    try:
        answers.parser.feed_data(data)
    except httptools.HttpParserError as error:
        raise ValueError(f"the answer is not HTTP: {error}: {data[:200]!r}") from error
    return answers.statuses


async def _send(stage: Stage, raw: bytes, dice: random.Random) -> bytes:
    """All that comes back, until nothing more does."""
    wire = await Wire.open(stage.port)
    got = b""
    try:
        cut = dice.randrange(len(raw)) if dice.random() < 0.3 else len(raw)
        wire.send(raw[:cut])
        await asyncio.sleep(0)
        wire.send(raw[cut:])
        with suppress(TimeoutError, ConnectionError):
            while True:
                async with asyncio.timeout(PATIENCE_S):
                    more = await wire.reader.read(65536)
                if not more:
                    break
                got += more
    finally:
        wire.leave(reset=dice.random() < 0.5)
    return got


async def _bytes(options: Options) -> list[Check]:
    """Case n of seed s is case 0 of seed s + n: any one can be run alone."""
    seen: Counter[str] = Counter()
    wrong: list[str] = []
    async with staged([Puppet("engine-0"), Puppet("vectors", task="embed", model="vectors")]) as stage:
        await stage.rest()
        cases = iter(range(options.count))

        async def worker() -> None:
            for case in cases:
                dice = random.Random(options.seed + case)  # noqa: S311 - reproducible, not secret
                raw = mutated(dice, stage.port, stage.key)
                try:
                    found = statuses(await _send(stage, raw, dice), bare=raw.startswith(b"HEAD "))
                except ValueError as error:
                    wrong.append(f"--seed {options.seed + case} --count 1: {error}")
                    continue
                seen.update(str(status) for status in found)
                bad = [status for status in found if status >= 500]
                if bad:
                    wrong.append(f"--seed {options.seed + case} --count 1: {bad} for {raw[:300]!r}")

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
        left = await stage.clean()
        after = await stage.ask(CHAT, chat())
        faults = stage.faults()
    shown = ", ".join(f"{number} × {status}" for status, number in sorted(seen.items()))  # noqa: RUF001
    return [
        Check(f"answers to {options.count} cases", shown, "", True),
        Check("5xx, or no HTTP", "; ".join([str(len(wrong)), *wrong[:3]]), "0", not wrong, len(wrong)),
        Check("faults in the gateway's log", "; ".join([str(len(faults)), *faults[:2]]), "0", not faults),
        equal("an ordinary request afterwards", after.status, 200),
        *nothing_left(left),
    ]


BYTES: Final = Experiment("bytes", "requests with a few things wrong, on raw sockets", 10_000, _bytes)
EXPERIMENTS: Final[tuple[Experiment, ...]] = (BYTES,)
