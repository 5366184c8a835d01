"""The kinds of streams: chat sessions, single prompts, embeddings and rerank, RAG chains."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import chain, count
from random import Random
from typing import Final, Literal

from msgspec.structs import replace
from pydantic import Field, NonNegativeInt, PositiveInt

from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.simulator.arrivals import Arrivals, seeded
from sage.middleware.control_plane.simulator.shapes import (
    BLOCK_BYTES,
    TRUE_BYTES,
    Length,
    Setting,
    Step,
    Stream,
    bytes_per_token,
    constant,
)
from sage.middleware.control_plane.simulator.types import SimRequest
from sage.middleware.control_plane.types import Job
from sage.middleware.engines.port import Capability

__all__ = ["Chat", "Embed", "Generate", "Rag"]

_LONGEST_WARM_UP: Final = 600.0


class _Generated(Stream):
    """A stream with arrivals of its own."""

    arrivals: Arrivals


class Chat(_Generated):
    """Conversations. Each turn's prompt is all that was said before, so its prefix is shared with the last.

    `arrivals` are turns; conversations start at that rate over the mean number of `turns`. Turns come at
    planned times, `think_s` apart, however slow the answers are: the load is open-loop. Conversations
    are under way at 0 already.
    """

    kind: Literal["chat"]
    turns: float = Field(4.0, ge=1, description="mean, geometric")
    think_s: Length = constant(8.0, spread=0.7, least=0.1, most=600)
    system_tokens: NonNegativeInt = Field(300, description="of the prompt that all of one kind begin with")
    system_prompts: PositiveInt = Field(4, description="how many kinds there are")
    prompt: Length = constant(80, spread=0.6)
    output: Length = constant(150, spread=0.6, most=2048)
    max_tokens: PositiveInt | None = 1024
    context_tokens: PositiveInt = Field(16384, description="a conversation that is longer ends")

    @property
    def title(self) -> str:
        """See `Stream`."""
        return self.name or self.kind

    def needs(self) -> frozenset[Capability]:
        """See `Stream`."""
        return frozenset((Capability.CHAT,))

    def draw(self, setting: Setting, rng: Random) -> Iterator[SimRequest]:
        """See `Stream`."""
        step = self.step(Capability.CHAT, RequestClass.CHAT, setting, self.max_tokens)
        numbers, order, tenants = count(), count(), self.tenants.draw(rng)
        shared = [self._system_prompt(setting, kind) for kind in range(self.system_prompts)]
        pending: list[tuple[float, int, _Turn]] = []
        for start in self._starts(setting, rng):
            while pending and pending[0][0] <= start:
                at, _, turn = heappop(pending)
                if 0 <= at < setting.duration:
                    made = step.job(
                        f"{self.title}-{next(numbers)}", turn.tenant, turn.size, blocks=turn.blocks
                    )
                    yield self.request(at, made, turn.tokens, turn.output)
                after = self._next(turn, rng)
                if after is not None and at < setting.duration:
                    heappush(pending, (at + self.think_s.draw(rng), next(order), after))
            if start < setting.duration:
                system = shared[rng.randrange(self.system_prompts)]
                first = self._grown(next(tenants), bytes_per_token(rng), self.system_tokens, system, rng)
                heappush(pending, (start, next(order), first))

    def _starts(self, setting: Setting, rng: Random) -> Iterator[float]:
        """When conversations begin; infinity at last, after which only the pending turns are left."""
        warm_up = min(_LONGEST_WARM_UP, 4 * self.turns * self.think_s.median)
        scale = setting.load / self.turns
        return chain(self.arrivals.times(rng, -warm_up, setting.duration, scale), (math.inf,))

    def _system_prompt(self, setting: Setting, kind: int) -> tuple[int, ...]:
        rng = seeded(setting.seed, self.title, "system", kind)
        return _blocks(rng, int(self.system_tokens * TRUE_BYTES), 0)

    def _next(self, turn: _Turn, rng: Random) -> _Turn | None:
        """The turn after this one, or None: the conversation is over."""
        said = turn.tokens + turn.output
        if said > self.context_tokens or rng.random() < 1 / self.turns:
            return None
        return self._grown(turn.tenant, turn.ratio, said, turn.blocks, rng)

    def _grown(self, tenant: str, ratio: float, said: int, blocks: tuple[int, ...], rng: Random) -> _Turn:
        tokens = said + self.prompt.whole(rng)
        output = min(self.output.whole(rng), self.max_tokens or self.context_tokens)
        size = round(tokens * ratio)
        return _Turn(tenant, ratio, tokens, output, size, blocks + _blocks(rng, size, len(blocks)))


@dataclass(frozen=True, slots=True)
class _Turn:
    """`ratio`: bytes per token of this conversation; `size` in bytes."""

    tenant: str
    ratio: float
    tokens: int
    output: int
    size: int
    blocks: tuple[int, ...]


def _blocks(rng: Random, size: int, have: int) -> tuple[int, ...]:
    """Names for the whole blocks of a text of `size` bytes beyond the first `have`.

    A random name stands for a chained hash: two texts share one only where one text grew out of the other.
    """
    return tuple([rng.getrandbits(63) for _ in range(size // BLOCK_BYTES - have)])


class Generate(_Generated):
    """Single prompts: completions of somebody who waits, or a batch that may take its time."""

    kind: Literal["completion", "batch"]
    prompt: Length = constant(400, spread=0.6)
    output: Length = constant(150, spread=0.6, most=2048)
    max_tokens: PositiveInt = 1024

    @property
    def title(self) -> str:
        """See `Stream`."""
        return self.name or self.kind

    def needs(self) -> frozenset[Capability]:
        """See `Stream`."""
        return frozenset((self._need,))

    @property
    def _need(self) -> Capability:
        return Capability.COMPLETIONS if self.kind == "completion" else Capability.CHAT

    def draw(self, setting: Setting, rng: Random) -> Iterator[SimRequest]:
        """See `Stream`."""
        step = self.step(self._need, RequestClass(self.kind), setting, self.max_tokens)
        times = self.arrivals.times(rng, 0.0, setting.duration, setting.load)
        for number, (at, tenant) in enumerate(zip(times, self.tenants.draw(rng), strict=False)):
            tokens = self.prompt.whole(rng)
            made = step.job(f"{self.title}-{number}", tenant, round(tokens * bytes_per_token(rng)))
            yield self.request(at, made, tokens, min(self.output.whole(rng), self.max_tokens))


class Embed(_Generated):
    """Texts to vectors: `embed` for somebody who waits, `bulk` for an ingestion; or documents to `rerank`."""

    kind: Literal["embed", "bulk", "rerank"]
    texts: Length = constant(1)
    tokens: Length = Field(constant(30, spread=0.6, most=512), description="of one text")

    @property
    def title(self) -> str:
        """See `Stream`."""
        return self.name or self.kind

    def needs(self) -> frozenset[Capability]:
        """See `Stream`."""
        return frozenset((self._need,))

    @property
    def _need(self) -> Capability:
        return Capability.RERANK if self.kind == "rerank" else Capability.EMBEDDINGS

    def draw(self, setting: Setting, rng: Random) -> Iterator[SimRequest]:
        """See `Stream`."""
        step = self.step(self._need, _CLASSES[self.kind], setting)
        times = self.arrivals.times(rng, 0.0, setting.duration, setting.load)
        for number, (at, tenant) in enumerate(zip(times, self.tenants.draw(rng), strict=False)):
            texts = self.texts.whole(rng)
            tokens = sum(self.tokens.whole(rng) for _ in range(texts))
            size = round(tokens * bytes_per_token(rng))
            yield self.request(at, step.job(f"{self.title}-{number}", tenant, size, texts=texts), tokens, 0)


_CLASSES: Final = {
    "embed": RequestClass.EMBED_INTERACTIVE,
    "bulk": RequestClass.EMBED_BULK,
    "rerank": RequestClass.RERANK,
}


class Rag(_Generated):
    """Chains of embed, rerank and chat. A step begins when the one before is done; a failed one is the last.

    All steps of a chain share the deadline of the first. `slo` is that of the chat. Between two steps are
    `pause_s`.
    """

    kind: Literal["rag"]
    query: Length = constant(20, spread=0.5, most=512)
    documents: NonNegativeInt = Field(20, description="to rerank; 0 = the chain has no such step")
    document: Length = Field(constant(150, spread=0.4, most=512), description="tokens of one")
    prompt: Length = Field(constant(900, spread=0.3), description="question and what was found")
    output: Length = constant(150, spread=0.6, most=2048)
    max_tokens: PositiveInt = 512
    pause_s: float = Field(0.005, ge=0)

    @property
    def title(self) -> str:
        """See `Stream`."""
        return self.name or self.kind

    def needs(self) -> frozenset[Capability]:
        """See `Stream`."""
        rerank = (Capability.RERANK,) if self.documents else ()
        return frozenset((Capability.EMBEDDINGS, Capability.CHAT, *rerank))

    def draw(self, setting: Setting, rng: Random) -> Iterator[SimRequest]:
        """See `Stream`."""
        embed = self._bare(Capability.EMBEDDINGS, RequestClass.EMBED_INTERACTIVE, setting)
        rerank = self._bare(Capability.RERANK, RequestClass.RERANK, setting)
        chat = self.step(Capability.CHAT, RequestClass.CHAT, setting, self.max_tokens)
        times = self.arrivals.times(rng, 0.0, setting.duration, setting.load)
        for number, (at, tenant) in enumerate(zip(times, self.tenants.draw(rng), strict=False)):
            first = f"{self.title}-{number}"
            tokens, ratio = self.prompt.whole(rng), bytes_per_token(rng)
            made = chat.job(f"{first}.chat", tenant, round(tokens * ratio), parent=first)
            link = self._later(made, tokens, min(self.output.whole(rng), self.max_tokens))
            if self.documents:
                tokens = sum(self.document.whole(rng) for _ in range(self.documents))
                size = round(tokens * ratio)
                made = rerank.job(f"{first}.rerank", tenant, size, texts=self.documents, parent=first)
                link = replace(self._later(made, tokens, 0), follow=(link,))
            tokens = self.query.whole(rng)
            made = embed.job(first, tenant, round(tokens * ratio), texts=1)
            yield replace(self.request(at, made, tokens, 0), follow=(link,))

    def _bare(self, need: Capability, request_class: RequestClass, setting: Setting) -> Step:
        """A step before the chat: it has the goal of its own class."""
        return dataclasses.replace(self.step(need, request_class, setting), slo=None)

    def _later(self, made: Job, tokens: int, output: int) -> SimRequest:
        """A step after the first: its deadline is the first one's, by `Job.parent`."""
        return replace(self.request(self.pause_s, made, tokens, output), deadline=None)
