"""Native operators of sage-middleware."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

from sage.middleware.control_plane.calls import Vector
from sage.middleware.control_plane.facts import Parsed
from sage.middleware.control_plane.tickets import Ticket
from sage.middleware.engines.connection import Connection
from sage.middleware.engines.port import Usage

def top_k(
    vectors: npt.NDArray[np.float32],
    queries: npt.NDArray[np.float32],
    k: int,
    *,
    metric: Literal["inner_product", "cosine"],
    isa: Literal["auto", "scalar", "avx2"] = "auto",
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]: ...
def isa() -> Literal["scalar", "avx2"]: ...
def read_chat(
    body: bytes, blocks: bool, /
) -> tuple[str, bool, bool, int | None, int, tuple[int, ...]] | None:
    """Of a plain chat: model, stream, include_usage, max_tokens, needs (bits), hashes of its text."""

def parse_chat(body: bytes, ident: str, tenant: str, blocks: bool, /) -> Parsed | None:
    """A plain chat without wishes in its headers; see `control_plane.classify`."""

def parse_embedding(
    body: bytes, ident: str, tenant: str, most_texts: int, most_tokens: int, /
) -> Parsed | None:
    """A plain embedding of at most so much without wishes in its headers; see `control_plane.classify`."""

def read_embedding(body: bytes, /) -> tuple[str, int, int, str, int | None, bool] | None:
    """Of a plain embedding: model, texts, their bytes, encoding_format or "", dimensions, more fields."""

def count_values(counts: list[int], values: list[float], bounds: tuple[float, ...], /) -> None:
    """Add one to the count of each value's bucket; there is one more than bounds, which ascend."""

def read_usage(body: bytes, /) -> Usage | None:
    """The usage of a plain answer that counts by OpenAI's names; None for what is to be looked at closely."""

def read_vectors(body: bytes, texts: list[bytes], /) -> tuple[list[Vector], Usage] | None:
    """`calls.read_answer` of a plain answer; None for what is to be looked at closely."""

def prompt_blocks(text: bytes, /) -> tuple[int, ...]: ...
def direct(core: object, event: object, actions: list[object], /) -> bool:
    """Take an event of a plain generation in, as `Core.handle` would; False if it is something else."""

def begin_call(
    plane: object,
    job: object,
    call: object,
    sink: object,
    told: Callable[[BaseException | None], None],
    /,
) -> Ticket | None:
    """`Desk.begin` of a plain call; None if it is something else."""

def settle_call(plane: object, up: object, usage: object, /) -> bool:
    """`Upstreams._told` of a plain call; False if it is something else."""

def start_call(
    pool: object,
    method: str,
    path: str,
    receiver: object,
    over: Callable[[Exception | None], None],
    body: bytes,
    /,
) -> Connection | None:
    """`HttpPool.start` without headers, where a request of that kind was sent before; else None."""

def take_answer(connection: object, data: bytes, /) -> bool:
    """`Connection.data_received` of a whole answer to a plain call; False if it is something else."""

def body_after(data: bytes, before: bytes, after: bytes, most: int, /) -> bytes | None:
    """The body of `data` if that is `before`, its length, `after` and the body, of at most `most` bytes."""

class PrefixIndex:
    def __init__(self, capacity: int) -> None: ...
    def match(self, blocks: tuple[int, ...], /) -> dict[str, int]: ...
    def insert(self, engine: str, blocks: tuple[int, ...], /) -> None: ...
    def drop(self, engine: str, /) -> None: ...
    def resize(self, engine: str, blocks: int, /) -> None: ...
    def __len__(self) -> int: ...
