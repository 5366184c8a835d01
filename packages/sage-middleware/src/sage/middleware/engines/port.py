"""The engine port: what the control plane asks of an LLM or embedding engine.

An adapter turns one OpenAI-shaped call into whatever its engine speaks and turns the engine's answer back
into OpenAI's shape, so that everything above sees one dialect.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Final, Literal, Protocol

import msgspec

from sage.common.config import EngineConfig
from sage.platform.service import ServiceSpec

__all__ = [
    "CHAT",
    "COMPLETIONS",
    "COUNT_TOKENS",
    "DETOKENIZE",
    "EMBEDDINGS",
    "FORMS",
    "GENERATES",
    "MEDIA",
    "MEDIA_CAPABILITIES",
    "MESSAGES",
    "RERANK",
    "RESPONSES",
    "SCORE",
    "TOKENIZE",
    "Begun",
    "Call",
    "Capability",
    "Engine",
    "EngineKind",
    "EngineSpec",
    "Route",
    "Sink",
    "Usage",
    "WholeSink",
    "asks_media",
]


class Route(StrEnum):
    """The routes that engines serve: OpenAI's, Anthropic's, those of rerankers. The value is the path below
    `/v1/`.
    """

    CHAT = "chat/completions"
    COMPLETIONS = "completions"
    MESSAGES = "messages"
    COUNT_TOKENS = "messages/count_tokens"
    RESPONSES = "responses"
    EMBEDDINGS = "embeddings"
    RERANK = "rerank"
    SCORE = "score"
    TOKENIZE = "tokenize"
    DETOKENIZE = "detokenize"
    SPEECH = "audio/speech"
    TRANSCRIPTIONS = "audio/transcriptions"
    TRANSLATIONS = "audio/translations"
    IMAGES = "images/generations"
    IMAGE_EDITS = "images/edits"


# A member looked up on its class costs 0.2 us before Python 3.12: what runs for each request takes these.
CHAT: Final = Route.CHAT
COMPLETIONS: Final = Route.COMPLETIONS
MESSAGES: Final = Route.MESSAGES
COUNT_TOKENS: Final = Route.COUNT_TOKENS
RESPONSES: Final = Route.RESPONSES
EMBEDDINGS: Final = Route.EMBEDDINGS
RERANK: Final = Route.RERANK
SCORE: Final = Route.SCORE
TOKENIZE: Final = Route.TOKENIZE
DETOKENIZE: Final = Route.DETOKENIZE

GENERATES: Final = frozenset((CHAT, COMPLETIONS, MESSAGES, RESPONSES))  # those that write text
MEDIA: Final = frozenset(  # sound and pictures: nothing in them is counted in tokens here
    (Route.SPEECH, Route.TRANSCRIPTIONS, Route.TRANSLATIONS, Route.IMAGES, Route.IMAGE_EDITS)
)
FORMS: Final = frozenset((Route.TRANSCRIPTIONS, Route.TRANSLATIONS, Route.IMAGE_EDITS))  # not JSON


class Capability(StrEnum):
    """A thing a client may ask for that not every engine honours."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    MESSAGES = "messages"  # as it is; an engine that only chats is asked by a translation
    RESPONSES = "responses"  # the same
    EMBEDDINGS = "embeddings"
    RERANK = "rerank"  # scores a query and a document together; vectors that are compared do not count
    TOKENIZE = "tokenize"  # and back
    RESPONSE_FORMAT = "response_format"
    TOOLS = "tools"
    TOOL_CHOICE = "tool_choice"
    N = "n"
    LOGPROBS = "logprobs"
    TOP_K = "top_k"
    PRIORITY = "priority"
    SPEECH = "speech"  # text to sound
    TRANSCRIPTION = "transcription"  # sound to text in its language
    TRANSLATION = "translation"  # sound to English text
    IMAGES = "images"  # text to pictures
    IMAGE_EDITS = "image_edits"  # pictures and text to pictures


MEDIA_CAPABILITIES: Final = frozenset(
    (
        Capability.SPEECH,
        Capability.TRANSCRIPTION,
        Capability.TRANSLATION,
        Capability.IMAGES,
        Capability.IMAGE_EDITS,
    )
)


def asks_media(needs: frozenset[Capability]) -> bool:
    """Whether what needs these is sound or a picture: no token of it is seen, so no time is learned by it."""
    return not MEDIA_CAPABILITIES.isdisjoint(needs)


class EngineSpec(msgspec.Struct, frozen=True):
    """What an engine is, fixed from its start to its end."""

    name: str
    kind: str
    model: str  # the id that clients ask for
    capabilities: frozenset[Capability]
    max_running: int
    random_weights: bool = False
    group: str = ""  # engines of one group share a device; empty = it has one of its own
    cores: int = 0  # CPU cores that it computes on; 0 = not ours to know
    elastic: bool = False  # takes a thread count per call, up to the cores of its device
    batches: bool = True  # puts calls that are there at the same time into one batch by itself
    coalesces: bool = True  # one call may carry what several requests ask for
    kv_tokens: int = 65536  # prompt tokens that it can keep cached
    context: int = 0  # tokens of prompt and answer that it has room for; 0 = it does not say
    chunk: int = 2048  # prefill tokens of one iteration
    managed: bool = False  # its process is ours: it can be restarted
    template: str = ""  # the configured engine that it is one more of; empty = it is configured itself
    composed: bool = False  # of calls to other engines: its faults are theirs, its silence is no hang

    @property
    def task(self) -> Literal["generate", "embed", "rerank"]:
        """What it is asked for: `embed` for vectors, `rerank` for scores alone, else text."""
        can = self.capabilities
        if Capability.CHAT in can or Capability.COMPLETIONS in can:
            return "generate"
        if Capability.EMBEDDINGS in can:
            return "embed"
        return "rerank" if Capability.RERANK in can else "generate"


class Call(msgspec.Struct, frozen=True, gc=False):
    """One attempt at one engine. `body` is the client's JSON, checked, with the served id as its `model`.

    `content_type`: that of a body which is a form; empty = JSON. `threads`: how many an elastic engine should
    compute it with; 0 = its own. `trace`: the `traceparent` that goes with it; empty = none.
    """

    request_id: str
    route: Route
    body: bytes
    stream: bool
    include_usage: bool  # the client asked for the usage chunk of a stream
    threads: int = 0
    trace: str = ""
    content_type: str = ""


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens as the engine counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Sink(Protocol):
    """Where an answer goes: `head` once, then `data` any number of times, then `end` once.

    Called on the event loop's thread and never blocks. For a stream `data` gets whole or partial SSE bytes
    that end in `data: [DONE]`, or sound as it comes; else the parts of one body. After `head` has been called
    the status is out and a fault can only be shown in the stream; sound has no place for it and gets no end.
    """

    def head(self, status: int, content_type: str) -> None:
        """Begin the answer."""
        ...

    def data(self, chunk: bytes) -> None:
        """Pass on the next bytes."""
        ...

    def end(self) -> None:
        """Finish the answer."""
        ...

    @property
    def full(self) -> bool:
        """The reader is slower than the engine: stop reading upstream and await `drain`."""
        ...

    async def drain(self) -> None:
        """Wait until the reader has caught up."""
        ...


class WholeSink(Sink, Protocol):
    """One that takes a whole answer in one step, too."""

    def whole(self, content_type: str, body: bytes) -> None:
        """`head` with status 200, `data` and `end`."""
        ...


class Begun(Protocol):
    """A call that no task awaits. `body` is its answer, once that was told."""

    @property
    def body(self) -> bytes:
        """The whole answer, JSON."""
        ...

    def abort(self) -> None:
        """Nobody wants it any more: close the upstream connection at once, and tell nothing."""
        ...


class Engine(Protocol):
    """A live connection to one engine. Made by an `EngineKind`, closed by whoever made it."""

    @property
    def spec(self) -> EngineSpec:
        """What it is."""
        ...

    async def send(self, call: Call, sink: Sink) -> Usage:
        """Serve one call into `sink` and return the tokens used.

        Cancelling the awaiting task closes the upstream connection at once. Raises before `sink.head`:
        UnreachableError (nothing listens), EngineError (5xx, broken answer, too slow, our key there is
        wrong), OverloadedError (429, with its Retry-After), BadRequestError (the engine's own 4xx, in our
        words); after it: EngineError (the stream broke; the caller writes the SSE error event).
        """
        ...

    def begin(self, call: Call, told: Callable[[Usage | Exception], None]) -> Begun | None:
        """Serve one call that is no stream, without a task; None where anything has to be awaited first.

        That is quicker than `send`, which can do all. `told` is called once, after this has returned: with
        the tokens used, or with what `send` would raise.
        """
        ...

    async def ready(self) -> bool:
        """Whether the engine would serve a call now. Never raises."""
        ...

    async def close(self) -> None:
        """Close idle connections."""
        ...


class EngineKind(Protocol):
    """One kind of engine (entry point group `sage.engines`): how to start it and how to talk to it."""

    def spec(self, config: EngineConfig) -> EngineSpec:
        """Describe the engine that `config` asks for. Raises ConfigError if this kind cannot be that."""
        ...

    def service(self, config: EngineConfig, port: int, cores: tuple[int, ...]) -> ServiceSpec | None:
        """The process to supervise, pinned to `cores`; None when it runs elsewhere (kind `openai`)."""
        ...

    def connect(self, config: EngineConfig, url: str) -> Engine:
        """A connection to the engine that listens at `url` (no trailing slash, without /v1)."""
        ...
