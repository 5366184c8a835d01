import os
import subprocess
import sys
from itertools import pairwise
from random import Random
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from sage.common.errors import UsageError
from sage.middleware import _native
from sage.middleware.control_plane.prefix import (
    BLOCK,
    LruPrefixIndex,
    PrefixIndex,
    new_prefix_index,
    prompt_blocks,
    python_blocks,
)
from sage.middleware.testing.prefix import NaivePrefixIndex, PrefixIndexSuite, chain

Index = LruPrefixIndex | _native.PrefixIndex
KINDS: list[type[Index]] = [LruPrefixIndex, _native.PrefixIndex]
both = pytest.mark.parametrize("kind", KINDS, ids=["python", "native"])

STEPS = st.tuples(
    st.sampled_from(["insert", "match", "resize", "drop"]),
    st.sampled_from(["e0", "e1", "e2"]),
    st.text(alphabet="ab", max_size=6),
)
PATHS = st.text(alphabet="ab", max_size=6)


class TestLruPrefixIndex(PrefixIndexSuite):
    def make(self, capacity: int) -> PrefixIndex:
        return LruPrefixIndex(capacity)


class TestNativePrefixIndex(PrefixIndexSuite):
    def make(self, capacity: int) -> PrefixIndex:
        return new_prefix_index(capacity)


@both
@settings(deadline=None)
@given(st.lists(STEPS, max_size=60), st.integers(0, 8))
def test_the_index_is_its_definition(
    kind: type[Index], steps: list[tuple[str, str, str]], capacity: int
) -> None:
    index, naive = kind(capacity), NaivePrefixIndex(capacity)
    for step, engine, path in steps:
        PrefixIndexSuite.apply(index, naive, step, engine, path)


@both
@settings(deadline=None)
@given(st.lists(STEPS, max_size=60), st.lists(PATHS, max_size=10))
def test_nothing_is_left_of_engines_that_are_gone(
    kind: type[Index], steps: list[tuple[str, str, str]], paths: list[str]
) -> None:
    index, naive = kind(5), NaivePrefixIndex(5)
    for step, engine, path in steps:
        PrefixIndexSuite.apply(index, naive, step, engine, path)
    for engine in ("e0", "e1", "e2"):
        index.drop(engine)
    assert len(index) == 0
    assert all(index.match(chain(path)) == {} for path in paths)


@both
def test_a_block_that_several_engines_have_is_held_once(kind: type[Index]) -> None:
    index = kind(10)
    for engine in ("a", "b", "c"):
        index.insert(engine, chain("xyz"))
    assert len(index) == 3


@both
def test_memory_is_bounded_by_the_capacities(kind: type[Index]) -> None:
    index = kind(50)
    for number in range(2000):
        index.insert(f"e{number % 3}", prompt_blocks(number.to_bytes(BLOCK, "big") + bytes(9 * BLOCK)))
    assert len(index) == 150


@both
def test_a_name_that_comes_after_a_drop_is_not_taken_for_the_old_one(kind: type[Index]) -> None:
    index = kind(10)
    index.insert("old", chain("abc"))
    index.insert("stays", chain("ab"))
    assert index.match(chain("abc")) == {"old": 3, "stays": 2}
    index.drop("old")
    index.insert("new", chain("abc"))
    assert index.match(chain("abc")) == {"new": 3, "stays": 2}


@both
def test_more_sets_of_engines_than_are_kept_at_hand(kind: type[Index]) -> None:
    index = kind(10_000)
    for number in range(1, 5000):  # every prompt is known to another set of engines
        for bit in range(13):
            if number >> bit & 1:
                index.insert(f"e{bit}", prompt_blocks(number.to_bytes(BLOCK, "big")))
    for number in range(1, 5000):
        expected = {f"e{bit}": 1 for bit in range(13) if number >> bit & 1}
        assert index.match(prompt_blocks(number.to_bytes(BLOCK, "big"))) == expected


@both
def test_hashes_that_collide_do_no_more_than_mislead(kind: type[Index]) -> None:
    # 3 follows 1 here and 2 there, which chained hashes make improbable and nobody can make impossible.
    index = kind(10)
    index.insert("a", (1, 3))
    index.insert("b", (2, 3))
    assert index.match((1, 3)) == {"a": 2}
    assert index.match((2, 3, 4)) == {"b": 2}
    assert index.match((1, 2, 3)) == {"a": 1}


@both
def test_a_capacity_below_nothing_is_refused(kind: type[Index]) -> None:
    with pytest.raises(UsageError, match="-3 blocks"):
        kind(-3)


@both
def test_more_engines_than_a_word_has_bits_come_and_go(kind: type[Index]) -> None:
    index, naive = kind(20), NaivePrefixIndex(20)
    random = Random(5)  # noqa: S311 - no secret
    for step in range(4000):
        path = "".join(random.choices("abc", k=random.randint(0, 6)))
        what = random.choice(["insert", "insert", "insert", "drop"])
        PrefixIndexSuite.apply(index, naive, what, f"e{random.randint(0, step // 20)}", path)


def test_the_native_index_takes_hashes_of_64_bits_and_nothing_else() -> None:
    index = _native.PrefixIndex(4)
    index.insert("e", (2**64 - 1, 0))
    assert index.match((2**64 - 1, 0, 1)) == {"e": 2}
    for wrong in (2**64, -1):
        with pytest.raises(OverflowError):
            index.match((wrong,))
    nothing: Any = [1]
    with pytest.raises(TypeError, match="blocks has to be a tuple; found list"):
        index.match(nothing)


# ---- blocks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "count"), [(0, 0), (255, 0), (256, 1), (511, 1), (512, 2), (25_600, 100)])
def test_only_whole_blocks_count(size: int, count: int) -> None:
    assert len(prompt_blocks(b"x" * size)) == count


@settings(deadline=None)
@given(st.binary(max_size=600), st.binary(max_size=600), st.integers(0, 4))
def test_equal_beginnings_have_equal_blocks(one: bytes, other: bytes, shared: int) -> None:
    beginning = bytes(range(256)) * shared
    left, right = prompt_blocks(beginning + one), prompt_blocks(beginning + other)
    assert left[:shared] == right[:shared] == prompt_blocks(beginning)
    for depth in range(shared, min(len(left), len(right))):
        equal = one[: (depth - shared + 1) * BLOCK] == other[: (depth - shared + 1) * BLOCK]
        assert (left[depth] == right[depth]) is equal


def test_a_block_depends_on_all_before_it() -> None:
    same_end = b"e" * BLOCK
    assert prompt_blocks(b"a" * BLOCK + same_end)[1] != prompt_blocks(b"b" * BLOCK + same_end)[1]
    assert len(set(prompt_blocks(b"a" * 64 * BLOCK))) == 64


@settings(deadline=None)
@given(st.binary(max_size=3 * BLOCK + 9))
def test_native_blocks_are_those_of_python(text: bytes) -> None:
    assert _native.prompt_blocks(text) == python_blocks(text)


def test_blocks_are_64_bits_and_spread() -> None:
    seen = {
        block for n in range(2000) for block in prompt_blocks(n.to_bytes(BLOCK, "big") + bytes(4 * BLOCK))
    }
    assert len(seen) == 10_000
    assert all(0 <= block < 1 << 64 for block in seen)
    late = sorted({prompt_blocks(n.to_bytes(BLOCK, "big") + bytes(4 * BLOCK))[-1] for n in range(2000)})
    assert max(b - a for a, b in pairwise(late)) < (1 << 64) / 100


def test_blocks_are_equal_in_every_process() -> None:
    program = (
        "from sage.middleware.control_plane.prefix import prompt_blocks;"
        "print(prompt_blocks(bytes(range(256)) * 3))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.strip() == str(prompt_blocks(bytes(range(256)) * 3))
