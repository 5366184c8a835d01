"""The conformance suite of `PrefixIndex`: subclass it, say how to make one, run it with pytest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from random import Random
from typing import Final

from sage.common.errors import UsageError
from sage.middleware.control_plane.prefix import PrefixIndex, prompt_blocks

__all__ = ["NaivePrefixIndex", "PrefixIndexSuite", "chain"]

_STEPS: Final = ("insert", "insert", "insert", "insert", "match", "match", "resize", "drop")


def chain(path: str) -> tuple[int, ...]:
    """A prompt of one block per letter: prompts of one beginning share its blocks."""
    return prompt_blocks(b"".join(letter.encode() * 256 for letter in path))


class NaivePrefixIndex:
    """The definition, slowly: each engine has blocks with the time of their last use, deeper ones earlier."""

    def __init__(self, capacity: int) -> None:
        self._default = capacity
        self._capacities: dict[str, int] = {}
        self._used: dict[str, dict[int, tuple[int, int]]] = {}
        self._time = 0

    def match(self, blocks: tuple[int, ...]) -> dict[str, int]:
        """Count from the front, engine by engine."""
        found = {}
        for engine, used in self._used.items():
            count = next((i for i, block in enumerate(blocks) if block not in used), len(blocks))
            if count:
                found[engine] = count
        return found

    def insert(self, engine: str, blocks: tuple[int, ...]) -> None:
        """Stamp, then shrink."""
        self._time += 1
        capacity = self._capacities.setdefault(engine, self._default)
        used = self._used.setdefault(engine, {})
        for depth, block in enumerate(blocks[:capacity]):
            used[block] = (self._time, -depth)
        self._shrink(engine)

    def drop(self, engine: str) -> None:
        """Forget it."""
        self._used.pop(engine, None)
        self._capacities.pop(engine, None)

    def resize(self, engine: str, blocks: int) -> None:
        """Shrink it."""
        self._capacities[engine] = blocks
        self._used.setdefault(engine, {})
        self._shrink(engine)

    def __len__(self) -> int:
        """Different blocks."""
        return len(set().union(*self._used.values()))

    def _shrink(self, engine: str) -> None:
        newest = sorted(self._used[engine].items(), key=lambda item: item[1], reverse=True)
        self._used[engine] = dict(newest[: self._capacities[engine]])


class PrefixIndexSuite(ABC):
    """What every prefix index does."""

    @abstractmethod
    def make(self, capacity: int) -> PrefixIndex:
        """A new, empty index; engines hold `capacity` blocks until they are resized."""

    def test_nothing_is_cached_at_first(self) -> None:
        """Neither for a prompt nor for an empty one."""
        index = self.make(8)
        assert index.match(chain("abc")) == {}
        assert index.match(()) == {}
        index.insert("e", ())
        assert index.match(()) == {}

    def test_engines_match_as_far_as_they_know_the_prompt(self) -> None:
        """One has the whole, one the beginning, one something else."""
        index = self.make(8)
        index.insert("whole", chain("abcd"))
        index.insert("part", chain("abx"))
        index.insert("other", chain("bcd"))
        assert index.match(chain("abcd")) == {"whole": 4, "part": 2}
        assert index.match(chain("abcdef")) == {"whole": 4, "part": 2}
        assert index.match(chain("b")) == {"other": 1}

    def test_a_prompt_loses_its_end_first(self) -> None:
        """The least recently used prompt goes from its deepest block on."""
        index = self.make(6)
        index.insert("e", chain("abc"))
        index.insert("e", chain("xyz"))
        index.insert("e", chain("mn"))
        assert index.match(chain("abc")) == {"e": 1}
        assert index.match(chain("xyz")) == {"e": 3}
        assert index.match(chain("mn")) == {"e": 2}

    def test_a_shared_beginning_is_as_young_as_its_last_use(self) -> None:
        """It outlives the end of the prompt that brought it."""
        index = self.make(5)
        index.insert("e", chain("abcd"))
        index.insert("e", chain("abx"))
        index.insert("e", chain("yz"))
        assert index.match(chain("abcd")) == {"e": 2}
        assert index.match(chain("abx")) == {"e": 3}

    def test_asking_is_no_use(self) -> None:
        """Only what was sent to an engine is in its cache."""
        index = self.make(4)
        index.insert("e", chain("ab"))
        index.insert("e", chain("xy"))
        index.match(chain("ab"))
        index.insert("e", chain("m"))
        assert index.match(chain("ab")) == {"e": 1}
        assert index.match(chain("xy")) == {"e": 2}

    def test_of_a_prompt_that_is_too_long_the_beginning_stays(self) -> None:
        """And everything else is gone."""
        index = self.make(3)
        index.insert("e", chain("xy"))
        index.insert("e", chain("abcdef"))
        assert index.match(chain("abcdef")) == {"e": 3}
        assert index.match(chain("xy")) == {}

    def test_resizing(self) -> None:
        """Shrinks what is there, holds for what comes, may be done before the first prompt, down to 0."""
        index = self.make(100)
        index.resize("small", 2)
        index.insert("small", chain("abcd"))
        index.insert("large", chain("abcd"))
        assert index.match(chain("abcd")) == {"small": 2, "large": 4}
        index.resize("large", 3)
        index.resize("small", 5)
        index.insert("small", chain("abcd"))
        assert index.match(chain("abcd")) == {"small": 4, "large": 3}
        index.resize("small", 0)
        index.insert("small", chain("abcd"))
        assert index.match(chain("abcd")) == {"large": 3}

    def test_a_negative_capacity_is_refused(self) -> None:
        """And changes nothing."""
        index = self.make(4)
        index.insert("e", chain("ab"))
        try:
            index.resize("e", -1)
        except UsageError as error:
            assert "-1 blocks" in str(error)  # noqa: PT017 — a product needs no pytest
        else:
            raise AssertionError("UsageError was not raised")
        assert index.match(chain("ab")) == {"e": 2}

    def test_a_dropped_engine_is_forgotten(self) -> None:
        """With its capacity, and the others stay as they are."""
        index = self.make(4)
        index.resize("a", 1)
        index.insert("a", chain("xyz"))
        index.insert("b", chain("xyz"))
        index.drop("a")
        index.drop("unknown")
        assert index.match(chain("xyz")) == {"b": 3}
        index.insert("c", chain("xy"))
        index.insert("a", chain("x"))
        index.insert("a", chain("xyz"))
        assert index.match(chain("xyz")) == {"a": 3, "b": 3, "c": 2}

    def test_many_engines(self) -> None:
        """More than a machine word has bits."""
        index = self.make(10)
        for number in range(150):
            index.insert(f"e{number}", chain("abcdefghij"[: number % 10 + 1]))
        assert index.match(chain("abcdefghij")) == {f"e{n}": n % 10 + 1 for n in range(150)}

    def test_it_is_the_definition(self) -> None:
        """Thousands of random operations, each answer compared."""
        random = Random(7)  # noqa: S311 — no secret
        index, naive = self.make(12), NaivePrefixIndex(12)
        for _ in range(3000):
            path = "".join(random.choices("abc", k=random.randint(0, 9)))
            self.apply(index, naive, random.choice(_STEPS), f"e{random.randint(0, 5)}", path)

    @staticmethod
    def apply(index: PrefixIndex, naive: NaivePrefixIndex, step: str, engine: str, path: str) -> None:
        """One operation on both (resizing to twice the length of `path`); then both have to agree on it."""
        blocks = chain(path)
        for each in (index, naive):
            if step == "insert":
                each.insert(engine, blocks)
            elif step == "resize":
                each.resize(engine, 2 * len(blocks))
            elif step == "drop":
                each.drop(engine)
        assert index.match(blocks) == naive.match(blocks)
        assert len(index) == len(naive)
