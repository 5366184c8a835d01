"""Which engine has which beginning of a prompt cached: blocks of text, and an index of them per engine.

Nothing is tokenised here: a block is 256 bytes of the canonical text of all messages, and its hash covers
everything before it, so that an equal hash means an equal beginning. No clock, no I/O.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from typing import Final, Protocol
from zlib import crc32

from sage.common.errors import UsageError
from sage.middleware.native import uses_native

__all__ = [
    "BLOCK",
    "DEFAULT_BLOCKS",
    "LruPrefixIndex",
    "PrefixIndex",
    "new_prefix_index",
    "prompt_blocks",
    "python_blocks",
]

BLOCK: Final = 256  # bytes
DEFAULT_BLOCKS: Final = 1024  # 65,536 tokens of 4 bytes

_MULTIPLIER: Final = 0x9E3779B97F4A7C15  # odd, 2^64 / golden ratio
_MASK64: Final = (1 << 64) - 1
_DECODED: Final = 4096  # sets of engines whose names are kept at hand


def prompt_blocks(text: bytes) -> tuple[int, ...]:
    """Chained 64-bit hashes of the whole 256-byte blocks of `text`, equal in every process.

    Two prompts of one beginning that differ in a block share its hash with probability 2^-32; whoever forges
    one gets a worse placement and nothing else.
    """
    return _hasher()(text)


@cache
def _hasher() -> Callable[[bytes], tuple[int, ...]]:
    if not uses_native():
        return python_blocks
    from sage.middleware import _native

    return _native.prompt_blocks


def python_blocks(text: bytes) -> tuple[int, ...]:
    """The same as `prompt_blocks` in Python: its definition, and what runs with `SAGE_NATIVE=0`."""
    chained = 1
    blocks = []
    for start in range(0, len(text) - BLOCK + 1, BLOCK):
        chained = (chained * _MULTIPLIER + crc32(text[start : start + BLOCK])) & _MASK64
        blocks.append(chained)
    return tuple(blocks)


class PrefixIndex(Protocol):
    """What each engine has cached, as far as can be told from what was sent there.

    `blocks` are chained hashes as `prompt_blocks` gives them: a block implies all before it. Each engine
    keeps its least recently used blocks last, up to its capacity, and never loses a block before those that
    follow it. Only `insert` counts as use.
    """

    def match(self, blocks: tuple[int, ...], /) -> dict[str, int]:
        """How many leading blocks each engine has; engines with none are left out."""
        ...

    def insert(self, engine: str, blocks: tuple[int, ...], /) -> None:
        """A prompt was sent there; of one that exceeds the capacity the beginning is kept."""
        ...

    def drop(self, engine: str, /) -> None:
        """It lost its cache or is gone: forget its blocks and its capacity. Unknown ones are no error."""
        ...

    def resize(self, engine: str, blocks: int, /) -> None:
        """Set its capacity, and forget what exceeds it. Raises UsageError below 0."""
        ...

    def __len__(self) -> int:
        """Different blocks that some engine has."""
        ...


def new_prefix_index(capacity: int = DEFAULT_BLOCKS) -> PrefixIndex:
    """An empty index, whose engines hold `capacity` blocks until they are resized.

    Native, or in Python with `SAGE_NATIVE=0`. Raises UsageError below 0.
    """
    if not uses_native():
        return LruPrefixIndex(capacity)
    from sage.middleware import _native

    return _native.PrefixIndex(capacity)


class _Engine:
    """One engine's blocks, least recently used first, and the bit that stands for it."""

    __slots__ = ("bit", "capacity", "recent")

    def __init__(self, bit: int, capacity: int) -> None:
        self.bit = bit
        self.capacity = capacity
        self.recent: OrderedDict[int, None] = OrderedDict()


class LruPrefixIndex:
    """Fits `PrefixIndex` in Python: one bit mask per block says which engines have it.

    A prompt's blocks are used from the last to the first, so that the oldest block of an engine is always a
    leaf of what it has.
    """

    def __init__(self, capacity: int = DEFAULT_BLOCKS) -> None:
        self._default = _capacity(capacity)
        self._masks: dict[int, int] = {}
        self._engines: dict[str, _Engine] = {}
        self._by_bit: dict[int, str] = {}
        self._names: dict[int, list[str]] = {}

    def match(self, blocks: tuple[int, ...]) -> dict[str, int]:
        """See `PrefixIndex`. An engine has a block only with all before it: masks can only lose bits."""
        found: dict[str, int] = {}
        get = self._masks.get
        have = get(blocks[0], 0) if blocks else 0
        start, end = 0, len(blocks)  # `have` has block `start`
        while have:
            # The engines of the last block of the range have all of it; else halve it towards the first loss.
            low, high = start, end
            while high - low > 1:
                middle = (low + high) // 2
                if get(blocks[middle]) == have:
                    low = middle
                else:
                    high = middle
            remaining = get(blocks[high], 0) & have if high < end else 0
            lost = have ^ remaining
            found.update(dict.fromkeys(self._names.get(lost) or self._decode(lost), high))
            have, start = remaining, high
        return found

    def insert(self, engine: str, blocks: tuple[int, ...]) -> None:
        """See `PrefixIndex`."""
        known = self._engines.get(engine) or self._add(engine, self._default)
        recent, bit, masks = known.recent, known.bit, self._masks
        for block in reversed(blocks[: known.capacity]):
            if block in recent:
                recent.move_to_end(block)
            else:
                recent[block] = None
                masks[block] = masks.get(block, 0) | bit
        self._evict(known, known.capacity)

    def drop(self, engine: str) -> None:
        """See `PrefixIndex`."""
        known = self._engines.pop(engine, None)
        if known is not None:
            self._evict(known, 0)
            del self._by_bit[known.bit]
            self._names.clear()

    def resize(self, engine: str, blocks: int) -> None:
        """See `PrefixIndex`."""
        capacity = _capacity(blocks)
        known = self._engines.get(engine) or self._add(engine, capacity)
        known.capacity = capacity
        self._evict(known, capacity)

    def __len__(self) -> int:
        """Different blocks that some engine has."""
        return len(self._masks)

    def _add(self, name: str, capacity: int) -> _Engine:
        bit = 1
        while bit in self._by_bit:  # the lowest free one keeps masks small
            bit <<= 1
        self._by_bit[bit] = name
        engine = self._engines[name] = _Engine(bit, capacity)
        return engine

    def _decode(self, mask: int) -> list[str]:
        """The names of the engines in `mask`, kept for the next time: the same sets come again and again."""
        if len(self._names) >= _DECODED:
            self._names.clear()
        names = self._names[mask] = [name for bit, name in self._by_bit.items() if bit & mask]
        return names

    def _evict(self, engine: _Engine, capacity: int) -> None:
        recent, masks, bit = engine.recent, self._masks, engine.bit
        for _ in range(len(recent) - capacity):
            block, _ = recent.popitem(last=False)
            mask = masks[block] ^ bit
            if mask:
                masks[block] = mask
            else:
                del masks[block]


def _capacity(blocks: int) -> int:
    if blocks < 0:
        raise UsageError(f"A prefix index of {blocks} blocks cannot be; 0 or more can.")
    return blocks
