"""What a key may use: rates, concurrent requests and budgets. Pure: the time is an argument."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import msgspec

from sage.common.errors import OverloadedError
from sage.common.telemetry import Bound

__all__ = [
    "DAY_S",
    "Bucket",
    "BudgetError",
    "Hold",
    "LimitError",
    "Limiter",
    "Limits",
    "RateError",
    "Spent",
    "duration",
]

DAY_S: Final = 86_400
MINUTE_S: Final = 60.0
BUSY_S: Final = 1.0  # nobody knows when one of the key's requests ends
_SLACK_S: Final = 1e-6  # sums of floats must not refuse what just fits


class LimitError(OverloadedError):
    """A bound of the key; `limit` is its name. Without `retry_after` waiting does not help."""

    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, limit: str, hint: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, hint=hint, retry_after=retry_after, bound=Bound(f"key_{limit}"))
        self.limit = limit

    @property
    def final(self) -> bool:
        """Whether no time makes it good."""
        return self.retry_after is None


class RateError(LimitError):
    """A key asks too often, for too many tokens, or for too much at once."""


class BudgetError(LimitError):
    """A key has used up the tokens that it was given."""

    code = "insufficient_quota"


class Limits(msgspec.Struct, frozen=True, omit_defaults=True):
    """Bounds of one key; None = none. Rates are for a minute, days begin at midnight UTC."""

    rpm: int | None = None
    tpm: int | None = None
    concurrent: int | None = None
    day_tokens: int | None = None
    total_tokens: int | None = None


class Spent(msgspec.Struct, frozen=True):
    """Tokens that a key has used: on `day` (days since 1970-01-01, UTC), and ever."""

    day: int = 0
    day_tokens: int = 0
    total_tokens: int = 0


class Bucket:
    """`limit` units come back steadily in a minute, and at most `limit` are there at once.

    This is the generic cell rate algorithm (ITU-T I.371). Kept is the
    time at which it is full again. In any window of `w` seconds it gives at most `limit + limit · w / 60`
    units, what was corrected counting as what it was corrected to.
    """

    __slots__ = ("_full_at", "_interval", "_returned", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._interval = MINUTE_S / limit
        self._full_at = -math.inf
        self._returned = 0.0

    def wait(self, now: float, units: int) -> float:
        """Seconds until so many units are there; 0.0 = they are; infinite = never."""
        if units > self.limit:
            return math.inf
        wait = self.reset(now) + units * self._interval - MINUTE_S
        return wait if wait > _SLACK_S else 0.0

    def take(self, now: float, units: int) -> float:
        """Take them, there or not; the mark by which `correct` knows them."""
        self._full_at = max(self._full_at, now) + units * self._interval
        return self._full_at + self._returned

    def correct(self, now: float, mark: float, taken: int, used: int) -> None:
        """Of `taken` units `used` were needed: take the rest too, or give back what time has not yet."""
        if used > taken:
            self._full_at = max(self._full_at, now) + (used - taken) * self._interval
            return
        # What was taken lies in the time before its mark, less what was given back of that meanwhile. The
        # part of it that has passed came back by itself, and must not come back twice.
        outstanding = min(max(mark - self._returned - now, 0.0), taken * self._interval)
        back = min((taken - used) * self._interval, outstanding)
        self._full_at -= back
        self._returned += back

    def remaining(self, now: float) -> int:
        """Whole units that are there."""
        return min(self.limit, max(0, int((MINUTE_S - self.reset(now) + _SLACK_S) / self._interval)))

    def reset(self, now: float) -> float:
        """Seconds until it is full."""
        return max(self._full_at - now, 0.0)


@dataclass(slots=True)
class Hold:
    """What one admitted request was charged ahead."""

    tokens: int
    day: int
    bucket: Bucket | None
    mark: float


class Limiter:
    """The account of one key. `admit` charges all bounds or none; each hold is settled once."""

    __slots__ = ("_day", "_day_tokens", "_limits", "_requests", "_tokens", "_total_tokens", "running")

    def __init__(self, limits: Limits, spent: Spent | None = None) -> None:
        spent = spent or Spent()
        self._day, self._day_tokens, self._total_tokens = spent.day, spent.day_tokens, spent.total_tokens
        self.running = 0
        self._limits = limits
        self._requests = Bucket(limits.rpm) if limits.rpm else None
        self._tokens = Bucket(limits.tpm) if limits.tpm else None

    def change(self, limits: Limits) -> None:
        """Other bounds from now on. What runs and what was used stays; a changed rate begins anew."""
        if limits.rpm != self._limits.rpm:
            self._requests = Bucket(limits.rpm) if limits.rpm else None
        if limits.tpm != self._limits.tpm:
            self._tokens = Bucket(limits.tpm) if limits.tpm else None
        self._limits = limits

    @property
    def concurrent(self) -> int | None:
        """Requests that may run at once."""
        return self._limits.concurrent

    @property
    def most(self) -> int | None:
        """Tokens that no single request may exceed."""
        given = [n for n in (self._limits.tpm, self._limits.day_tokens, self._limits.total_tokens) if n]
        return min(given, default=None)

    def admit(self, now: float, wall: float, tokens: int) -> Hold:
        """Charge a request that takes about `tokens`. Raises RateError or BudgetError, and charges nothing.

        `now`: monotonic seconds; `wall`: Unix seconds. Budgets are looked at before rates: who has nothing
        left need not come back in a minute.
        """
        day = int(wall // DAY_S)
        self._check_budgets(day, wall, tokens)
        limits = self._limits
        if limits.concurrent is not None and self.running >= limits.concurrent:
            raise RateError(
                f"This key has {self.running} requests under way; it may have {limits.concurrent}.",
                limit="max_concurrent",
                hint="Await an answer first.",
                retry_after=BUSY_S,
            )
        self._check_rate(self._requests, now, 1, "requests")
        self._check_rate(self._tokens, now, tokens, "tokens")
        if self._requests is not None:
            self._requests.take(now, 1)
        mark = 0.0 if self._tokens is None else self._tokens.take(now, tokens)
        self.running += 1
        self._spend(day, tokens)
        return Hold(tokens, day, self._tokens, mark)

    def settle(self, hold: Hold, now: float, tokens: int) -> None:
        """The request has ended, and took so many tokens."""
        self.running -= 1
        if hold.bucket is not None:
            hold.bucket.correct(now, hold.mark, hold.tokens, tokens)
        self._spend(hold.day, tokens - hold.tokens)

    def headers(self, now: float) -> list[tuple[str, str]]:
        """What is left of the rates, by OpenAI's names."""
        found: list[tuple[str, str]] = []
        for name, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                found += (
                    (f"x-ratelimit-limit-{name}", str(bucket.limit)),
                    (f"x-ratelimit-remaining-{name}", str(bucket.remaining(now))),
                    (f"x-ratelimit-reset-{name}", duration(bucket.reset(now))),
                )
        return found

    def _spend(self, day: int, tokens: int) -> None:
        if day > self._day:
            self._day, self._day_tokens = day, 0
        if day == self._day:
            self._day_tokens += tokens
        self._total_tokens += tokens

    def _check_budgets(self, day: int, wall: float, tokens: int) -> None:
        limits = self._limits
        if limits.total_tokens is not None and self._total_tokens + tokens > limits.total_tokens:
            left = max(0, limits.total_tokens - self._total_tokens)
            raise BudgetError(
                f"This key has {left} of its {limits.total_tokens} tokens left; this request may take"
                f" {tokens}.",
                limit="total_tokens",
            )
        today = self._day_tokens if day == self._day else 0
        if limits.day_tokens is not None and today + tokens > limits.day_tokens:
            left = max(0, limits.day_tokens - today)
            never = tokens > limits.day_tokens
            raise BudgetError(
                f"This key has {left} of its {limits.day_tokens} tokens of today (UTC) left; this request may"
                f" take {tokens}.",
                limit="day_tokens",
                retry_after=None if never else math.ceil(DAY_S - wall % DAY_S),
            )

    @staticmethod
    def _check_rate(bucket: Bucket | None, now: float, units: int, what: str) -> None:
        if bucket is None or not (wait := bucket.wait(now, units)):
            return
        never = wait == math.inf
        raise RateError(
            f"This key may use {bucket.limit} {what} in a minute; {bucket.remaining(now)} are left, and this"
            f" request may take {units}.",
            limit="rpm" if what == "requests" else "tpm",
            hint="Send less, or set a lower max_tokens." if never else "",
            retry_after=None if never else math.ceil(wait),
        )


def duration(seconds: float) -> str:
    """As OpenAI writes it: `0s`, `120ms`, `7.5s`, `6m0s`; rounded up to a millisecond."""
    milliseconds = math.ceil(seconds * 1000 - 1e-3)
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds > 0 else "0s"
    minutes, milliseconds = divmod(milliseconds, 60_000)
    rest = f"{milliseconds / 1000:g}s"
    return f"{minutes}m{rest}" if minutes else rest
