"""The keys that are in use: what runs for each, what it is charged, and the end of it when it is revoked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal, Protocol

import msgspec

from sage.common.clock import Clock
from sage.common.errors import ForbiddenError, SageError, UnauthorizedError
from sage.common.telemetry import HEADER_CLASS, KEY_REFUSED, KEY_RUNNING, RequestClass
from sage.gateway.keys import Principal
from sage.gateway.limits import DAY_S, Hold, Limiter, LimitError, Limits, Spent
from sage.gateway.usage import Meter, day_of
from sage.middleware.control_plane.accounting import OTHER
from sage.middleware.control_plane.asides import ASIDES
from sage.middleware.control_plane.metrics import Sample
from sage.middleware.control_plane.types import Job
from sage.middleware.engines.port import MEDIA, Route, Usage

__all__ = ["Accounts", "Cancellable", "Visit", "lowered"]

_USUAL: Final[dict[Route, str]] = {
    Route.CHAT: RequestClass.CHAT,
    Route.COMPLETIONS: RequestClass.COMPLETION,
    Route.MESSAGES: RequestClass.CHAT,
    Route.RESPONSES: RequestClass.CHAT,
    Route.EMBEDDINGS: RequestClass.EMBED_INTERACTIVE,
    Route.RERANK: RequestClass.RERANK,
    Route.SCORE: RequestClass.RERANK,
    **dict.fromkeys(ASIDES, "tokens"),
    **dict.fromkeys(MEDIA, RequestClass.COMPLETION),
}
_LOW: Final = {
    Route.CHAT: RequestClass.BATCH,
    Route.COMPLETIONS: RequestClass.BATCH,
    Route.MESSAGES: RequestClass.BATCH,
    Route.RESPONSES: RequestClass.BATCH,
    Route.EMBEDDINGS: RequestClass.EMBED_BULK,
    **dict.fromkeys(MEDIA, RequestClass.BATCH),
}
SHOWN: Final = 256  # keys with series of their own
_NO_LIMITS: Final = Limits()
_LEARN: Final = 0.1  # weight of a new answer in the mean length of a key's answers
_NOTHING: Final = Usage()


def lowered(headers: dict[str, str], route: Route) -> None:
    """Ask for the low class of the route. Raises ForbiddenError if another one is asked for already."""
    if route in ASIDES:  # they have no class
        return
    low, asked = _LOW.get(route), headers.get(HEADER_CLASS)
    if low is None:
        raise ForbiddenError(f"This key may only use low classes, and /v1/{route} has none.")
    if asked not in (None, low):
        raise ForbiddenError(
            f"{HEADER_CLASS} is {asked[:64]!r}; this key may only use {low} on /v1/{route}.",
            param=HEADER_CLASS,
        )
    headers[HEADER_CLASS] = low


class Cancellable(Protocol):
    """What serves a request: a task, or what was begun without one."""

    def cancel(self) -> object:
        """Its client has gone, or it was told to end."""
        ...


class _Account:
    """One key: its bounds, and its requests under way."""

    __slots__ = ("answer", "home", "key", "limiter", "refused", "visits")

    def __init__(self, home: Accounts, key: str, limiter: Limiter | None) -> None:
        self.home = home
        self.key = key
        self.limiter = limiter
        self.visits: set[Visit] = set()
        self.answer = 0.0  # tokens of its answers, on average
        self.refused: Counter[str] = Counter()  # by limit

    def estimate(self, job: Job) -> int:
        """Tokens that a request will take: its prompt, and its longest answer where it names one.

        Where it does not, the mean of the key's answers; but that alone makes no request too large.
        """
        if job.max_tokens is not None:
            return job.prompt_tokens + job.max_tokens
        if job.texts or self.limiter is None:
            return job.prompt_tokens
        most = self.limiter.most
        mean = job.prompt_tokens + round(self.answer)
        return mean if most is None else max(job.prompt_tokens, min(mean, most))


class Visit(msgspec.Struct, eq=False):
    """One request, from its arrival to its end: `open`, `admit`, `use`, `close`.

    It belongs to the task that serves it, or to what does without one: that ends when the key is revoked.
    """

    account: _Account
    _route: Route
    _task: Cancellable | None
    job: Job | None = None
    why: SageError | None = None  # why it was ended by us
    _hold: Hold | None = None
    _usage: Usage | None = None
    _failed: SageError | Literal["failed"] | None = None

    def admit(self, job: Job) -> None:
        """Charge it. Raises LimitError, and charges nothing."""
        self.job = job
        limiter = self.account.limiter
        if limiter is not None:
            clock = self.account.home.clock
            tokens = 0 if self._route in ASIDES else self.account.estimate(job)
            if self._route in MEDIA:  # no answer of it is counted in tokens
                tokens = job.prompt_tokens
            self._hold = limiter.admit(clock.now(), clock.wall(), tokens)

    def use(self, usage: Usage) -> None:
        """What the engine has counted; some count nothing."""
        if usage.prompt_tokens or usage.completion_tokens:
            self._usage = usage

    def fail(self, error: SageError | Literal["failed"]) -> None:
        """It has ended with an error; 'failed' = in the middle of its answer."""
        self._failed = error

    def end(self, error: SageError) -> None:
        """End it from outside; its task is cancelled, and finds the reason in `why`."""
        self.why = self._failed = error
        if self._task is not None:
            self._task.cancel()

    def headers(self) -> Sequence[tuple[str, str]]:
        """What is left of the key's rates."""
        return self.account.home.headers(self.account.key)

    def close(self, chunks: int) -> None:
        """It is over. `chunks` of its answer have gone to the client, so a stream that was cut short is
        counted by them; a whole answer that nobody waited for stays charged as estimated.
        """
        account, usage = self.account, self._usage
        self._task = None  # as below
        account.visits.discard(self)
        if usage is None:
            usage = self._guess(chunks)
        elif usage.completion_tokens:
            account.answer += _LEARN * (usage.completion_tokens - account.answer)
        if self._hold is not None and account.limiter is not None:
            spent = usage.prompt_tokens + usage.completion_tokens
            account.limiter.settle(self._hold, account.home.clock.now(), spent)
        failed = self._failed
        account.home.count(account.key, self._route, self.job, usage, failed)
        if failed is not None:
            if isinstance(failed, LimitError):
                account.refused[failed.limit] += 1
            self._failed = None  # its traceback leads to us: what goes round waits for the garbage collector

    def _guess(self, chunks: int) -> Usage:
        """What a request has taken of which no engine tells."""
        job = self.job
        if job is None or (self._failed is not None and not chunks and self.why is None):
            return _NOTHING  # it never came to an engine, or the engine's work came to nothing
        if self._route in ASIDES:  # no model computes them
            return _NOTHING
        if self._route in MEDIA:
            return Usage(job.prompt_tokens)
        if job.stream or self._hold is None:
            return Usage(job.prompt_tokens, chunks if job.stream else 0)
        return Usage(job.prompt_tokens, self._hold.tokens - job.prompt_tokens)


class Accounts:
    """All keys that may be used now. `known`: whether there is a model of that name."""

    def __init__(self, clock: Clock, meter: Meter, known: Callable[[str], bool]) -> None:
        self.clock = clock
        self._meter = meter
        self._known = known
        self._accounts: dict[str, _Account] = {}
        self._day = 0
        self._midnight = 0.0  # Unix seconds, when the next day begins

    def put(self, key: str, limits: Limits = _NO_LIMITS, spent: Spent | None = None) -> None:
        """A key may be used, within these limits; what runs for it goes on. `spent`: before this process."""
        account = self._accounts.get(key)
        if account is None:
            limiter = None if limits == _NO_LIMITS else Limiter(limits, spent)
            self._accounts[key] = _Account(self, key, limiter)
        elif account.limiter is not None:
            account.limiter.change(limits)
        elif limits != _NO_LIMITS:
            account.limiter = Limiter(limits, spent)

    def drop(self, key: str) -> None:
        """A key is revoked: what runs for it ends with an error."""
        account = self._accounts.pop(key, None)
        for visit in list(account.visits) if account else ():
            visit.end(_revoked())

    def open(self, principal: Principal, route: Route, task: Cancellable | None) -> Visit:
        """A request begins, served by `task`: that is cancelled if its key is revoked meanwhile.

        Raises UnauthorizedError for a key that was revoked since its head was judged.
        """
        account = self._accounts.get(principal.id)
        if account is None:
            raise _revoked()
        visit = Visit(account, route, task)
        account.visits.add(visit)
        return visit

    def concurrent(self, key: str) -> int | None:
        """Requests that a key may have under way at once; None = any number."""
        account = self._accounts.get(key)
        return None if account is None or account.limiter is None else account.limiter.concurrent

    def headers(self, key: str) -> Sequence[tuple[str, str]]:
        """What is left of the rates of a key, by OpenAI's names; nothing for one that has none."""
        account = self._accounts.get(key)
        if account is None or account.limiter is None:
            return ()
        return account.limiter.headers(self.clock.now())

    def samples(self) -> Iterator[Sample]:
        """The metrics of the keys with something to tell, since this process began.

        Of more than `SHOWN` those that were made last are added up as `other`.
        """
        running: Counter[str] = Counter()
        refused: Counter[tuple[str, str]] = Counter()
        for key, account in self._accounts.items():
            if not account.visits and not account.refused:
                continue
            name = key if key in running or len(running) < SHOWN else OTHER
            running[name] += len(account.visits)
            for limit, count in account.refused.items():
                refused[name, limit] += count
        for name, count in running.items():
            yield KEY_RUNNING, count, {"key": name}
        for (name, limit), count in sorted(refused.items()):
            yield KEY_REFUSED, count, {"key": name, "limit": limit}

    def count(
        self, key: str, route: Route, job: Job | None, usage: Usage, failed: SageError | str | None
    ) -> None:
        """Count a request that has ended."""
        at = self.clock.wall()
        if at >= self._midnight:
            self._day = day_of(at)
            self._midnight = (self._day + 1) * float(DAY_S)
        request_class = _USUAL[route] if job is None or route in ASIDES else job.request_class
        if failed is None and job is not None:
            self._meter.count((key, job.model, request_class, self._day), at, usage)
            return
        # Only names of models that there are: a caller must not fill the store with names of its own.
        model = job.model if job is not None and self._known(job.model) else ""
        refused = isinstance(failed, LimitError | ForbiddenError) or (
            isinstance(failed, SageError) and failed.status in (429, 503)
        )
        row = (key, model, request_class, self._day)
        self._meter.count(row, at, usage, error=not refused, refused=refused)


def _revoked() -> SageError:
    return UnauthorizedError("This API key was revoked.")
