"""`./manage.sh fuzz`: requests that nobody would send; none is answered 5xx, and nothing of them stays."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from contextlib import suppress
from typing import Final

import httptools
import msgspec

from sage.benchmark.resilience.acts import chat
from sage.benchmark.resilience.mutate import mutated
from sage.benchmark.resilience.options import Experiment, Options
from sage.benchmark.resilience.report import Check, at_least, equal, nothing_left
from sage.benchmark.resilience.stage import Puppet, Stage, staged
from sage.benchmark.resilience.wire import CHAT, Wire

__all__ = ["BYTES", "EXPERIMENTS", "SCHEMAS", "statuses"]

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

    `bare`: only the first one is read. It answers a HEAD, and has a body only if that could not be read.
    """
    answers = _Answers()
    if bare:
        data = b"".join(data.partition(b"\r\n\r\n")[:2])
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


# ---- by the OpenAPI files ----------------------------------------------------------------------------------

SCHEMATHESIS: Final = "SAGE_SCHEMATHESIS"  # names its command, which ./manage.sh fuzz installs


class _Cases(msgspec.Struct):
    generated: int = 0
    with_failures: int = 0


class _Failure(msgspec.Struct):
    title: str
    operations: list[str]


class _Told(msgspec.Struct):
    """What schemathesis writes about a run. `said`: what it says of errors, which the report lacks."""

    test_cases: _Cases
    failures: list[_Failure]
    errors: list[msgspec.Raw]
    said: str = ""


async def _schemas(options: Options) -> list[Check]:
    """`count`: cases in all, or a few more."""
    command = os.environ.get(SCHEMATHESIS, "")
    if not command:
        hint = f"{SCHEMATHESIS} is not set: ./manage.sh fuzz does it"
        return [Check("cases by the OpenAPI files", hint, f"{options.count}", False)]
    found: list[Check] = []
    async with staged([Puppet("engine-0"), Puppet("vectors", task="embed", model="vectors")]) as stage:
        await stage.rest()
        admin = msgspec.json.encode(await stage.admin("/openapi.json"))
        data = (await stage.ask("/openapi.json")).body
        files = {  # the admin API first: it has less to vary
            "admin": (admin, stage.run.admin_url, stage.token),
            "data": (data, stage.run.base_url.removesuffix("/v1"), stage.key),
        }
        done = 0
        for name, (document, url, key) in files.items():
            await asyncio.to_thread((stage.folder / f"{name}.json").write_bytes, document)
            wanted = options.count // 2 if name == "admin" else options.count - done
            each = max(1, wanted // len(msgspec.json.decode(document)["paths"]))
            told = await _schemathesis(command, stage, name, url, key, each, options.seed)
            done += told.test_cases.generated
            found += _told(name, told)
        await stage.admin("/policy", {"name": "hybrid"}, method="PUT")
        left, faults = await stage.clean(), stage.faults()
    return [
        *found,
        at_least("cases by the OpenAPI files", done, options.count),
        Check("faults in the gateway's log", "; ".join([str(len(faults)), *faults[:2]]), "0", not faults),
        *nothing_left(left),
    ]


async def _schemathesis(
    command: str, stage: Stage, name: str, url: str, key: str, examples: int, seed: int
) -> _Told:
    """Run it on one file. Raises RuntimeError when it did not get so far as to write a report."""
    report = stage.folder / f"{name}-report.json"
    process = await asyncio.create_subprocess_exec(
        *(
            command,
            "run",
            str(stage.folder / f"{name}.json"),
            "--url",
            url,
            "-H",
            f"Authorization: Bearer {key}",
        ),
        *("-c", "not_a_server_error", "-n", str(examples), "--seed", str(seed), "--workers", "2"),
        *("--phases", "coverage,fuzzing", "--continue-on-failure", "--no-shrink", "--warnings", "off"),
        *("--suppress-health-check", "all", "--report", "json", "--report-json-path", str(report)),
        cwd=stage.folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    words, _ = await process.communicate()
    try:
        told = msgspec.json.decode(await asyncio.to_thread(report.read_bytes), type=_Told)
    except (OSError, msgspec.DecodeError) as error:
        raise RuntimeError(f"schemathesis told nothing: {words[-2000:].decode(errors='replace')}") from error
    if told.errors:
        told.said = " ".join(words.decode(errors="replace").partition(" ERRORS ")[2].split())[:1000]
    return told


def _told(name: str, told: _Told) -> list[Check]:
    errors = [
        str(len(told.errors)),
        *(" ".join(bytes(one).decode().split())[:300] for one in told.errors[:2]),
        *([told.said] if told.said else []),
    ]
    wrong = [f"{one.title} of {', '.join(one.operations)}" for one in told.failures]
    return [
        Check(f"cases for the {name} listener", f"{told.test_cases.generated}", "", True),
        Check(
            f"5xx of the {name} listener",
            "; ".join([str(len(wrong)), *wrong[:3]]),
            "0",
            not wrong,
            len(wrong),
        ),
        Check(f"errors of schemathesis on the {name} listener", "; ".join(errors), "0", not told.errors),
    ]


SCHEMAS: Final = Experiment("schemas", "cases by the OpenAPI files of both listeners", 10_000, _schemas)
BYTES: Final = Experiment("bytes", "requests with a few things wrong, on raw sockets", 10_000, _bytes)
EXPERIMENTS: Final[tuple[Experiment, ...]] = (SCHEMAS, BYTES)
