"""Open-loop load: requests leave when the schedule says so, however slow the answers are."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

from sage.benchmark.metrics import Kind, Outcome, Record
from sage.common.errors import UnauthorizedError, UnreachableError

if TYPE_CHECKING:
    import aiohttp

__all__ = [
    "Arrival",
    "Request",
    "Target",
    "chat_request",
    "drive",
    "embed_request",
    "models",
    "poisson",
    "send",
    "session",
]


@dataclass(frozen=True, slots=True)
class Target:
    """The server under load. `base_url` is an OpenAI base URL and ends in /v1."""

    base_url: str
    api_key: str = field(repr=False)
    timeout: float = 60.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """One planned request: when, counted from the start of the run, and of which kind."""

    index: int
    at: float
    kind: Kind


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent: a path below the base URL and a JSON body."""

    path: str
    body: dict[str, Any]


def poisson(*, rate: float, duration: float, seed: int, chat_share: float) -> list[Arrival]:
    """A Poisson process: exponential gaps of mean 1/rate over `duration` seconds; `chat_share` of it is chat.

    A pure function of its arguments: the same seed gives the same schedule.
    """
    if rate <= 0 or duration <= 0 or not 0 <= chat_share <= 1:
        raise ValueError(
            "A schedule needs rate > 0, duration > 0 and 0 <= chat_share <= 1, "
            f"got {rate}, {duration}, {chat_share}."
        )
    rng = random.Random(seed)  # noqa: S311 - a reproducible schedule, nothing secret
    arrivals: list[Arrival] = []
    at = rng.expovariate(rate)
    while at < duration:
        arrivals.append(Arrival(len(arrivals), at, "chat" if rng.random() < chat_share else "embed"))
        at += rng.expovariate(rate)
    return arrivals


def chat_request(model: str, prompt: str, max_tokens: int) -> Request:
    """A streamed chat call that reports its usage."""
    return Request(
        "chat/completions",
        {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    )


def embed_request(model: str, text: str) -> Request:
    """An embedding call for one text."""
    return Request("embeddings", {"model": model, "input": text})


def session(target: Target) -> aiohttp.ClientSession:
    """An HTTP session without a connection limit: a limit would close the loop."""
    import aiohttp

    return aiohttp.ClientSession(
        base_url=target.base_url.rstrip("/") + "/",
        headers={"Authorization": f"Bearer {target.api_key}"},
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=target.timeout),
    )


async def drive(
    http: aiohttp.ClientSession,
    arrivals: Sequence[Arrival],
    make: Callable[[Arrival], Request],
    on_record: Callable[[Record], None],
) -> float:
    """Send every arrival at its time, pass on each record as its request ends; the wall time in seconds.

    Cancelling this cancels what is in flight. Records come in the order in which requests end.
    """
    origin = perf_counter()
    async with asyncio.TaskGroup() as group:
        for arrival in arrivals:
            request = make(arrival)  # before the wait, so that making it delays nothing
            delay = arrival.at - (perf_counter() - origin)
            if delay > 0:
                await asyncio.sleep(delay)
            group.create_task(_issue(http, arrival, request, origin, on_record))
    return perf_counter() - origin


async def _issue(
    http: aiohttp.ClientSession,
    arrival: Arrival,
    request: Request,
    origin: float,
    on_record: Callable[[Record], None],
) -> None:
    on_record(await send(http, arrival, request, origin))


async def send(http: aiohttp.ClientSession, arrival: Arrival, request: Request, origin: float) -> Record:
    """Send one request now and time it; a fault of the server becomes a record, not an exception."""
    import aiohttp

    answer = _Answer(origin, sent=perf_counter() - origin)
    try:
        async with http.post(request.path, json=request.body) as response:
            answer.status = response.status
            answer.request_id = response.headers.get("x-request-id", "")
            await (answer.read_stream if request.body.get("stream") else answer.read_body)(response)
    except TimeoutError:
        answer.fail("timeout", "no complete answer in time")
    except (aiohttp.ClientError, ValueError) as error:  # ValueError: an answer that is not what was promised
        answer.fail("failed", f"{type(error).__name__}: {error}")
    return answer.record(arrival)


class _Answer:
    """The state of one answer while it is read."""

    def __init__(self, origin: float, sent: float) -> None:
        self.origin = origin
        self.sent = sent
        self.status = 0
        self.request_id = ""
        self._outcome: Outcome = "ok"
        self._error = ""
        self._pieces: list[float] = []
        self._usage: dict[str, Any] = {}

    def fail(self, outcome: Outcome, error: str) -> None:
        self._outcome, self._error = outcome, error

    def record(self, arrival: Arrival) -> Record:
        return Record(
            index=arrival.index,
            kind=arrival.kind,
            intended=arrival.at,
            sent=self.sent,
            outcome=self._outcome,
            pieces=tuple(self._pieces),
            prompt_tokens=int(self._usage.get("prompt_tokens") or 0),
            completion_tokens=int(self._usage.get("completion_tokens") or 0),
            status=self.status,
            request_id=self.request_id,
            error=self._error,
        )

    async def read_body(self, response: aiohttp.ClientResponse) -> None:
        body = await response.read()
        if not self._refused(body):
            self._pieces.append(perf_counter() - self.origin)
            self._usage = json.loads(body).get("usage") or {}

    async def read_stream(self, response: aiohttp.ClientResponse) -> None:
        if response.status != 200:
            self._refused(await response.read())
            return
        done = False
        async for data in _events(response):
            if data == b"[DONE]":
                done = True
                continue
            chunk = json.loads(data)
            if "error" in chunk:
                self.fail("failed", _error_text(chunk["error"]))
                return
            if any(_text(choice) for choice in chunk.get("choices", ())):
                self._pieces.append(perf_counter() - self.origin)
            self._usage = chunk.get("usage") or self._usage
        if not done or not self._pieces:
            self.fail("failed", "the stream ended without [DONE]" if not done else "the stream held no text")

    def _refused(self, body: bytes) -> bool:
        """Note an answer that is not 200. 429 and 503 are sheds, all else is a failure."""
        if self.status == 200:
            return False
        try:
            text = _error_text(json.loads(body)["error"])
        except (ValueError, KeyError, TypeError):
            text = body[:200].decode(errors="replace")
        self.fail("shed" if self.status in (429, 503) else "failed", text)
        return True


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The `data:` payloads of an SSE answer."""
    async for line in response.content:
        if line.startswith(b"data:"):
            yield line[5:].strip()


def _text(choice: dict[str, Any]) -> str:
    delta = choice.get("delta") or {}
    return delta.get("content") or delta.get("reasoning_content") or ""


def _error_text(error: Any) -> str:
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


async def models(http: aiohttp.ClientSession, target: Target) -> list[str]:
    """Ids that the server lists. Raises UnreachableError or UnauthorizedError with what to do."""
    import aiohttp

    try:
        async with http.get("models") as response:
            if response.status in (401, 403):
                raise UnauthorizedError(
                    f"{target.base_url} refuses this key.", hint="Pass another one with --api-key."
                )
            response.raise_for_status()
            return [str(entry["id"]) for entry in (await response.json())["data"]]
    except (aiohttp.ClientError, TimeoutError) as error:
        raise UnreachableError(
            f"Nothing usable answers at {target.base_url}: {error}.", hint="Start the stack with `sage up`."
        ) from error
