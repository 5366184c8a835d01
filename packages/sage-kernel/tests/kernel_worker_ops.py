"""Operators that worker processes can import, for the tests of parallel stages."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sage.common.errors import OverloadedError


def increase(x: int) -> int:
    return x + 1


def odd(x: int) -> bool:
    return x % 2 == 1


def twice(x: int) -> list[int]:
    return [x] * (x % 3)


def brittle(x: int) -> int:
    if x % 7 == 0:
        raise ValueError(f"no {x}")
    return x


def total(xs: Sequence[int]) -> list[int]:
    if 100 in xs:
        raise ValueError("a hundred")
    return [x * 10 for x in xs]


def overloaded(x: int) -> int:
    raise OverloadedError(f"{x} is one too many", retry_after=3.0)


class OddError(Exception):
    """Cannot be made from what a pickle keeps of it."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__(f"{left} and {right}")


def oddly(x: int) -> int:
    raise OddError(x, x)


def as_function(x: int) -> Any:
    """A result that cannot be pickled for even numbers."""
    return x if x % 2 else lambda: x


def process_of(_: Any) -> int:
    return os.getpid()


def loaded(name: str) -> bool:
    """Whether its process has imported that."""
    return name in sys.modules


def devices(_: Any) -> str:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "")


def poison(x: int) -> int:
    """Kills its process at 13."""
    if x == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def poisoned(xs: Sequence[int]) -> list[int]:
    return [poison(x) for x in xs]


class DiesOnce:
    """Ends its process at the first item that it sees, of all processes once."""

    def __init__(self, folder: Path) -> None:
        self.mark = folder / "died"

    def __call__(self, x: int) -> int:
        try:
            self.mark.touch(exist_ok=False)
        except FileExistsError:
            return x
        os._exit(3)


class Waits:
    """At item 0 it waits until another worker has item 50, of which the pipe tells."""

    def __init__(self, pipe: Path) -> None:
        self.pipe = pipe

    def __call__(self, x: int) -> int:
        if x == 0:
            self.pipe.read_text()
        elif x == 50:
            self.pipe.write_text("here")
        return x


class Stuck:
    """Tells its process and waits for ever."""

    def __init__(self, pipe: Path) -> None:
        self.pipe = pipe

    def __call__(self, x: int) -> int:
        self.pipe.write_text(str(os.getpid()))
        signal.pause()
        return x


class StuckOnce(Stuck):
    """The same, as long as there is the pipe."""

    def __call__(self, x: int) -> int:
        return super().__call__(x) if self.pipe.exists() else x


class Logged:
    """A model that writes down its life."""

    def setup(self) -> None:
        self._note("setup")

    def __call__(self, xs: Sequence[int]) -> list[int]:
        if 100 in xs:
            raise ValueError("a hundred")
        return [x + 1 for x in xs]

    def close(self) -> None:
        self._note("close")

    def _note(self, what: str) -> None:
        with Path(os.environ["KERNEL_TEST_LOG"]).open("a") as file:
            file.write(f"{what}\n")


class BadSetup(Logged):
    def setup(self) -> None:
        raise OSError("no such device")


def with_factor(factor: int) -> Any:
    """A factory whose products are closures."""
    return lambda x: x * factor


def spoil(doc: dict[str, int]) -> dict[str, int]:
    """Changes its record."""
    doc["n"] += 1
    return doc
