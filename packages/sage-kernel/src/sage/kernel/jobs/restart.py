"""When a job that crashed comes back: a pure decision over the times of its crashes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from sage.common.errors import BadRequestError

__all__ = ["REMEMBERED", "Restart"]

Kind = Literal["none", "fixed", "exponential", "rate"]
REMEMBERED: Final = 100
"""Crashes of which the times are kept: more restarts than that no strategy allows."""

_FORMS: Final = (
    "none, fixed:TIMES[:DELAY], exponential:TIMES[:FIRST[:LONGEST]] or rate:TIMES[:WINDOW[:DELAY]]"
)
_STABLE = 300.0  # seconds without a crash after which `exponential` begins anew


@dataclass(frozen=True, slots=True)
class Restart:
    """A strategy. `times` bounds the restarts, the other numbers are seconds.

    - `fixed`: at most `times` in all, `delay` after each crash.
    - `exponential`: the delay doubles from `delay` to `longest`; after 300 s without a crash both begin anew.
    - `rate`: as long as no more than `times` crashes come within `window`, `delay` after each.
    """

    kind: Kind = "none"
    times: int = 0
    delay: float = 1.0
    longest: float = 60.0
    window: float = 60.0

    @classmethod
    def parse(cls, text: str) -> Restart:
        """`exponential:5`, `fixed:3:10`, `rate:3:60:1`, `none`. Raises BadRequestError with all forms."""
        kind, *numbers = text.split(":")
        names = {
            "none": (),
            "fixed": ("delay",),
            "exponential": ("delay", "longest"),
            "rate": ("window", "delay"),
        }
        try:
            values = [float(number) for number in numbers]
            given = dict(zip(("times", *names[kind]) if names[kind] else (), values, strict=False))
            if len(values) > len(given) or (names[kind] and "times" not in given):
                raise ValueError
            found = cls(kind, int(given.pop("times", 0)), **given)  # type: ignore[arg-type] # a key of `names`
            whole = not numbers or found.times == values[0]
        except (KeyError, ValueError, OverflowError):
            whole = False
        if not whole or not found._valid():
            raise BadRequestError(
                f"restart is {text!r}; valid is {_FORMS}, with times from 1 to {REMEMBERED} and seconds from "
                "0 to 86400.",
                param="restart",
            )
        return found

    def delay_after(self, crashes: Sequence[float], now: float) -> float | None:
        """Seconds until the next start, or None: it is given up.

        `crashes` are the times of all crashes, in order, the present one included.
        """
        if self.kind == "none":
            return None
        counted = len(crashes)
        if self.kind == "exponential":
            counted = _since_calm(crashes)
        elif self.kind == "rate":
            counted = sum(1 for at in crashes if now - at <= self.window)
        if counted > self.times:
            return None
        if self.kind != "exponential":
            return self.delay
        return min(self.longest, self.delay * 2.0 ** min(max(counted - 1, 0), 64))

    def _valid(self) -> bool:
        seconds = all(0 <= value <= 86_400 for value in (self.delay, self.longest, self.window))
        return (
            seconds and self.kind in get_args(Kind) and (self.kind == "none" or 1 <= self.times <= REMEMBERED)
        )


def _since_calm(crashes: Sequence[float]) -> int:
    """Crashes up to the last one that came more than `_STABLE` after the one before."""
    count = min(1, len(crashes))
    for earlier, later in zip(reversed(crashes[:-1]), reversed(crashes), strict=False):
        if later - earlier > _STABLE:
            break
        count += 1
    return count
