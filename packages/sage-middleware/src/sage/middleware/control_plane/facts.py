"""What is read from a request's body, and how fields are judged by name and bound. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from sage.common.config import ControlPlaneConfig, GatewayConfig
from sage.common.errors import BadRequestError
from sage.common.telemetry import Bound
from sage.middleware.control_plane.types import Job
from sage.middleware.engines.fields import convert
from sage.middleware.engines.port import Call, Capability

__all__ = [
    "BYTES_PER_TOKEN",
    "DecodeTokens",
    "Facts",
    "ParseLimits",
    "Parsed",
    "batch_key",
    "bounded",
    "convert",
    "estimate",
    "kind_of",
    "within_tokens",
]

DecodeTokens = Callable[[list[int]], str]

BYTES_PER_TOKEN: Final = 4  # rule of thumb for English text; the scheduler only needs the order of magnitude


@dataclass(frozen=True, slots=True)
class ParseLimits:
    """Bounds on a request, where bulk begins, and whom a request may be for."""

    max_inputs: int = 2048
    max_input_tokens: int = 300_000
    bulk_texts: int = 8
    bulk_tokens: int = 4000
    tenants: frozenset[str] = frozenset()

    @classmethod
    def of(cls, gateway: GatewayConfig, control_plane: ControlPlaneConfig) -> ParseLimits:
        """The limits that a configuration sets."""
        return cls(
            max_inputs=gateway.max_inputs,
            bulk_texts=control_plane.bulk_texts,
            bulk_tokens=control_plane.bulk_tokens,
            tenants=frozenset(tenant.name for tenant in control_plane.tenants),
        )


class Facts(msgspec.Struct, frozen=True, gc=False):
    """What one route's body says; `body` differs from the client's only where tokens were decoded.

    `batch_key`: requests for vectors or scores, of one key, could have been sent as one. `texts`: how many of
    them it asks for. `blocks`: see `Job`. `content_type`: see `Call`.
    """

    model: str
    body: bytes
    needs: frozenset[Capability]
    prompt_tokens: int  # exact where it was made of token ids, else a rule of thumb
    prompt_bytes: int = 0  # of the text that the engine reads; 0 where token ids were given
    max_tokens: int | None = None
    texts: int = 0
    batch_key: str = ""
    stream: bool = False
    include_usage: bool = False
    blocks: tuple[int, ...] = ()
    content_type: str = ""


class Parsed(msgspec.Struct, frozen=True, gc=False):
    """A request ready for the control plane. `deadline`: seconds from now, as the caller asked for."""

    job: Job
    call: Call
    deadline: float | None = None


def bounded(
    param: str, value: int, low: int, high: int | None, noun: str = "", bound: Bound | None = None
) -> None:
    """Raise BadRequestError unless `value` is from `low` to `high`. `noun`: what is counted."""
    if value < low or (high is not None and value > high):
        if noun and value == 0:
            raise BadRequestError(f"{param} is empty; give at least {low}.", param=param)
        span = f"at least {low}" if high is None else f"between {low} and {high}"
        raise BadRequestError(
            f"{param}: {value} {noun or 'is out of range'}; allowed is {span}.",
            param=param,
            bound=None if value < low else bound,
        )


def within_tokens(param: str, tokens: int, limits: ParseLimits) -> None:
    """Raise BadRequestError for more tokens than one request may have."""
    if tokens > limits.max_input_tokens:
        raise BadRequestError(
            f"{param} has about {tokens} tokens; "
            f"at most {limits.max_input_tokens} are allowed in one request.",
            param=param,
            bound=Bound.INPUT_TOKENS,
        )


def estimate(size: int) -> int:
    """About how many tokens so many bytes of text are."""
    return max(1, size // BYTES_PER_TOKEN)


def batch_key(model: str, dimensions: int | None, encoding_format: str | None) -> str:
    """Of embedding requests that may share a call: all that they ask for beside their texts."""
    return f"{model}|{dimensions or ''}|{encoding_format or 'float'}"


def kind_of(value: object) -> str:
    """What a value of JSON is, in words."""
    names = {
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        list: "an array",
        dict: "an object",
    }
    return names.get(type(value), "null")
