"""All that is to be sent, known before the first byte leaves: targets, requests, times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from sage.benchmark.metrics import Kind
from sage.common.errors import EngineError, SageError, UnauthorizedError, UnreachableError
from sage.middleware.rest import Rest

__all__ = [
    "Arrival",
    "Plan",
    "Request",
    "Shot",
    "Storm",
    "Target",
    "chat_request",
    "embed_request",
    "models",
]


class Target(msgspec.Struct, frozen=True):
    """A server under load. `base_url` is an OpenAI base URL (plain HTTP) and ends in /v1.

    `timeout` in seconds bounds each request from its send to its last byte. With `done` its streams must end
    in `[DONE]`; without, in a chunk with a finish reason, as those of `transformers serve` do.
    """

    base_url: str
    api_key: str
    timeout: float = 60.0
    done: bool = True

    def __repr__(self) -> str:
        return f"Target({self.base_url!r})"  # without the key: it goes into logs and tracebacks

    @property
    def address(self) -> tuple[str, int]:
        """Host and port. ValueError for a URL of another scheme."""
        parts = urlsplit(self.base_url)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError(f"A target is an http:// URL, got {self.base_url!r}.")
        return parts.hostname, parts.port or 80


class Arrival(msgspec.Struct, frozen=True):
    """One planned request: when, in seconds from the start of the run, and of which kind."""

    index: int
    at: float
    kind: Kind


class Request(msgspec.Struct, frozen=True):
    """What is sent: a path below the base URL and a JSON body. `texts`: how many vectors it asks for."""

    path: str
    body: bytes
    texts: int = 0
    stream: bool = False


class Shot(msgspec.Struct, frozen=True):
    """A request that leaves at its time, whatever became of the others: open loop."""

    arrival: Arrival
    target: str
    request: Request


class Storm(msgspec.Struct, frozen=True):
    """Clients that each send the next request when the last one was answered: closed loop.

    They take turns through `requests`, begin with the run and stop asking when its last shot was answered,
    though not before `Plan.duration`. After a refusal a client waits for what `Retry-After` says.
    """

    workers: int
    target: str
    requests: tuple[Request, ...]
    kind: Kind = "bulk"


class Plan(msgspec.Struct, frozen=True):
    """All of a run. `duration` in seconds: how long load arrives; answers may come later."""

    targets: dict[str, Target]
    duration: float
    shots: tuple[Shot, ...] = ()
    storms: tuple[Storm, ...] = ()


def chat_request(model: str, prompt: str, max_tokens: int, *, usage: bool = True) -> Request:
    """A streamed chat call. With `usage` it asks for the usage chunk, which not every engine knows."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "stream": True,
    }
    if usage:
        body["stream_options"] = {"include_usage": True}
    return Request("chat/completions", msgspec.json.encode(body), stream=True)


def embed_request(model: str, texts: Sequence[str]) -> Request:
    """An embedding call; base64 vectors, which is what OpenAI's own clients ask for."""
    given: Any = texts[0] if len(texts) == 1 else list(texts)
    body = {"model": model, "input": given, "encoding_format": "base64"}
    return Request("embeddings", msgspec.json.encode(body), texts=len(texts))


def models(target: Target) -> list[str]:
    """Ids that the server lists. Blocks.

    Raises UnreachableError or UnauthorizedError with what to do, and EngineError for another answer.
    """
    root = target.base_url.rstrip("/").removesuffix("/v1")
    try:
        answer = Rest(root, target.api_key, timeout=target.timeout).call("GET", "/v1/models")
        return [str(entry["id"]) for entry in msgspec.json.decode(answer)["data"]]
    except UnauthorizedError as error:
        raise UnauthorizedError(
            f"{target.base_url} refuses this key.", hint="Pass another one with --api-key."
        ) from error
    except UnreachableError as error:
        raise UnreachableError(
            f"Nothing usable answers at {target.base_url}: {error.message}",
            hint="Start the stack with `sage up`.",
        ) from error
    except (SageError, msgspec.DecodeError, KeyError, TypeError) as error:
        raise EngineError(f"{target.base_url} does not list its models: {error}") from error
