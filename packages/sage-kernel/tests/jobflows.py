"""Flows that tests run as jobs: their processes import this module by its name."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from sage.kernel import Failure, Flow, call_service
from sage.kernel.testing.sinks import EpochFiles


def counting(count: int = 0, pause: float = 0.001) -> Callable[[], AsyncIterator[int]]:
    """A source of 0, 1, 2, … up to `count`, without an end if that is 0; each run reads it anew."""

    async def read() -> AsyncIterator[int]:
        number = 0
        while not count or number < count:
            yield number
            number += 1
            await asyncio.sleep(pause)

    return read


class Appended:
    """Writes each record as a line, at once."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def write(self, epoch: int, items: Any) -> None:
        """Append a batch."""
        with Path(self._path).open("a", encoding="utf-8") as file:  # noqa: ASYNC230 - a test's
            file.writelines(f"{item}\n" for item in items)

    async def commit(self, epoch: int) -> None:
        """It is there already."""


def nothing(item: Any) -> None:
    """A sink."""


def numbers(out: str = "", count: int = 0, pause: float = 0.001) -> Flow:
    """Numbers into a file, or nowhere."""
    flow = Flow("numbers")
    flow.source(counting(count, pause), name="numbers").sink(Appended(out) if out else nothing, name="out")
    return flow


def wide(operators: int = 13, count: int = 20) -> Flow:
    """Many operators one after the other, with a queue between each two."""
    flow = Flow("wide")
    stream: Any = flow.source(counting(count), name="numbers")
    for number in range(operators - 2):
        stream = stream.map(again, name=f"step-{number}")
    stream.sink(nothing, name="out")
    return flow


async def again(item: int) -> int:
    """The same."""
    await asyncio.sleep(0)
    return item


def poison(how: str = "raise") -> Flow:
    """The fourth record is the end of whoever sees it."""

    def touch(item: int) -> int:
        if item == 3:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("a poisonous record")
        return item

    flow = Flow("poison")
    flow.source(counting(10), name="numbers").map(touch, name="touch").sink(nothing, name="out")
    return flow


def chatty(lines: int = 3) -> Flow:
    """Prints its records, and then goes on in silence."""

    def say(item: int) -> None:
        if item < lines:
            print(f"record {item}")

    flow = Flow("chatty")
    flow.source(counting(), name="numbers").sink(say, name="say")
    return flow


def deaf(seconds: float = 3600.0) -> Flow:
    """Blocks the event loop, as code of others may."""

    def block(item: int) -> int:
        if item == 3:
            time.sleep(seconds)
        return item

    flow = Flow("deaf")
    flow.source(counting(), name="numbers").map(block, name="block").sink(nothing, name="out")
    return flow


def leaving(pids: str) -> Flow:
    """Starts a process that left the session, and goes on."""
    import subprocess

    def setup() -> Iterator[int]:
        child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        Path(pids).write_text(str(child.pid))
        yield child.pid

    flow = Flow("leaving")
    flow.source(setup, name="start").merge(flow.source(counting(), name="numbers")).sink(nothing, name="out")
    return flow


def no_flow() -> int:
    """Not what was asked for."""
    return 3


READY = numbers(count=3)
FUNCTIONS: list[Callable[..., Any]] = [numbers, wide, poison]


def counted(folder: str, count: int = 0, pause: float = 0.001, name: str = "counted") -> Flow:
    """Numbers into files of which each record is in one, however often the process is killed."""
    flow = Flow(name)
    flow.source(counting(count, pause), name="numbers").map(again, name="again").sink(
        EpochFiles(Path(folder)), name="out"
    )
    return flow


def sums(folder: str, count: int) -> Flow:
    """Sums of numbers by their last digit: state that a checkpoint has to hold."""
    flow = Flow("sums")
    keyed = flow.source(counting(count), name="numbers").keyby(last_digit)
    keyed.scan(int, add, name="sum").sink(EpochFiles(Path(folder)), name="out")
    return flow


def last_digit(number: int) -> int:
    """The key of a number."""
    return number % 10


def add(total: int, number: int) -> tuple[int, tuple[int, int]]:
    """The sum so far, with the number."""
    return total + number, (number, total + number)


def unready() -> Flow:
    """Its operator cannot be set up."""

    class Missing:
        def setup(self) -> None:
            raise FileNotFoundError("no such model")

        def __call__(self, items: Any) -> Any:
            return items

        def close(self) -> None:
            """Nothing was opened."""

    flow = Flow("unready")
    flow.source(counting(3), name="numbers").map_batch(Missing(), name="missing").sink(nothing, name="out")
    return flow


def once() -> Flow:
    """A source that nobody can read again."""
    flow = Flow("once")
    flow.source(iter([1, 2, 3]), name="once").sink(nothing, name="out")
    return flow


def refunds(folder: str, count: int = 5) -> Flow:
    """Amounts, of which those above 2 wait for a decision; what is rejected goes elsewhere."""
    flow = Flow("refunds")
    gate = flow.source(list(range(count)), name="amounts").gate(
        "refunds", when=is_large, timeout=86_400, on_error="divert", name="refunds"
    )
    gate.sink(EpochFiles(Path(folder) / "out"), name="out")
    gate.diverted.map(of_failure, name="why").sink(EpochFiles(Path(folder) / "bad"), name="bad")
    return flow


def is_large(amount: int) -> bool:
    """Whether somebody has to look at it."""
    return amount > 2


def of_failure(failure: Failure[int]) -> tuple[int, str]:
    """An amount, and why it was rejected."""
    return failure.item, failure.error


def strict() -> Flow:
    """A record that may not be rejected."""
    flow = Flow("strict")
    flow.source([1], name="one").gate("refunds", timeout=86_400, name="refunds").sink(nothing, name="out")
    return flow


def waiting_for_all(folder: str, count: int) -> Flow:
    """Records that are no JSON, and large ones: all of them wait."""
    flow = Flow("all")
    gated = flow.source(list(range(count)), name="numbers").map(strange, name="strange")
    gated.gate("all of them", timeout=86_400, name="gate").sink(EpochFiles(Path(folder)), name="out")
    return flow


def strange(number: int) -> Any:
    """A set, a long text, or the number."""
    return {"é" * 5000} if number == 0 else "x" * 10_000 if number == 1 else number


def demanding(cpu: float = 3, gpu: float = 0, workers: int = 2) -> Flow:
    """Workers that take so much each."""
    from sage.kernel import Parallel
    from sage.kernel.scheduler import Resources

    flow = Flow("demanding")
    asked = Resources(cpu, gpu)
    flow.source([1, 2], name="two").map(
        last_digit, parallelism=Parallel(workers, "thread"), resources=asked, name="work"
    ).sink(nothing, name="out")
    return flow


class Greeter:
    """A service with a life of its own."""

    def setup(self) -> None:
        """It begins."""
        print("the greeter is set up")
        self.word = "hello"

    def close(self) -> None:
        """It ends."""
        print("the greeter is closed")

    def greet(self, number: int) -> str:
        """A word for a number."""
        return f"{self.word} {number}"


DOUBLED = Flow("doubled")
DOUBLED.reply(DOUBLED.requests(int).map(lambda x: 2 * x, name="double"))
DEMANDING_SERVICE = Flow("demanding service")


def _served() -> None:
    from sage.kernel.scheduler import Resources

    asks = DEMANDING_SERVICE.requests(int)
    DEMANDING_SERVICE.reply(asks.map(again, resources=Resources(cpu=4), name="asks"))


_served()


def greeted(out: str) -> Flow:
    """Twice each number, with a word; both come from services."""
    flow = Flow("greeted")
    doubled = flow.source([1, 2, 3], name="numbers").map(
        call_service("doubled"), order="input", name="double"
    )
    doubled.map(call_service("greeter", Greeter.greet), name="greet").sink(Appended(out), name="out")
    return flow
