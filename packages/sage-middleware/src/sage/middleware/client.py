"""Model clients for pipelines: one Protocol, over HTTP to a gateway here, in process elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypedDict

import numpy as np
import numpy.typing as npt

from sage.middleware.engines.port import Usage

__all__ = ["Delta", "Message", "ModelClient"]

FloatMatrix = npt.NDArray[np.float32]


class Message(TypedDict):
    """One chat message with text content."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a streamed answer; the last one carries usage and has no text."""

    text: str
    usage: Usage | None = None
    request_id: str = ""


class ModelClient(Protocol):
    """What a pipeline operator needs from the engines."""

    async def embed(self, texts: Sequence[str], *, model: str) -> FloatMatrix:
        """Embed texts: shape (len(texts), dimensions), float32, in input order."""
        ...

    def chat(self, messages: Sequence[Message], *, model: str, **params: Any) -> AsyncIterator[Delta]:
        """Stream a chat answer. `params` are OpenAI chat parameters such as `max_tokens`."""
        ...

    async def models(self) -> list[str]:
        """Ids of the models that can be asked for now."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...
