import os
import subprocess
import sys
import threading
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import ConfigError
from sage.middleware import _native
from sage.middleware.vector.topk import Metric, numpy_top_k, select_top_k, top_k

Isa = Literal["scalar", "avx2"]
ISAS: list[Isa] = ["scalar", "avx2"] if _native.isa() == "avx2" else ["scalar"]
METRICS: list[Metric] = ["inner_product", "cosine"]
Floats = npt.NDArray[np.float32]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Floats, Floats, int]:
    """Small whole numbers: every sum is exact, so that each implementation has to agree to the bit."""
    n, q, d = draw(st.integers(0, 40)), draw(st.integers(0, 4)), draw(st.integers(0, 70))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    whole = random.integers(-2, 3, size=(n + q, d)).astype(np.float32)
    return whole[:n].copy(), whole[n:].copy(), draw(st.integers(1, 50))


@pytest.mark.parametrize("isa", ISAS)
@given(problem=problems())
def test_inner_products_equal_numpy_to_the_bit(isa: Isa, problem: tuple[Floats, Floats, int]) -> None:
    vectors, queries, k = problem
    found, scores = _native.top_k(vectors, queries, k, metric="inner_product", isa=isa)
    expected, expected_scores = numpy_top_k(vectors, queries, k, metric="inner_product")
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(scores, expected_scores)
    assert found.dtype == np.int64
    assert scores.dtype == np.float32


@pytest.mark.parametrize("isa", ISAS)
@given(problem=problems())
def test_cosines_equal_numpy(isa: Isa, problem: tuple[Floats, Floats, int]) -> None:
    vectors, queries, k = problem
    _, scores = _native.top_k(vectors, queries, k, metric="cosine", isa=isa)
    _, expected = numpy_top_k(vectors, queries, k, metric="cosine")
    np.testing.assert_allclose(scores, expected, atol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("metric", METRICS)
def test_real_values_find_the_same_vectors(isa: Isa, metric: Metric) -> None:
    random = np.random.default_rng(1)
    vectors = random.standard_normal((3000, 384)).astype(np.float32)
    queries = random.standard_normal((5, 384)).astype(np.float32)
    found, scores = _native.top_k(vectors, queries, 10, metric=metric, isa=isa)
    expected, expected_scores = numpy_top_k(vectors, queries, 10, metric=metric)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
def test_nan_ranks_behind_every_number(isa: Isa) -> None:
    vectors = np.array([[np.nan], [-np.inf], [1], [np.nan], [np.inf]], dtype=np.float32)
    query = np.ones((1, 1), dtype=np.float32)
    found, _ = _native.top_k(vectors, query, 5, metric="inner_product", isa=isa)
    assert found.tolist() == [[4, 2, 1, 0, 3]]
    assert numpy_top_k(vectors, query, 5, metric="inner_product")[0].tolist() == [[4, 2, 1, 0, 3]]


@pytest.mark.parametrize("search", [top_k, numpy_top_k])
def test_ties_go_to_the_lower_index(search: Any) -> None:
    found, _ = search(np.ones((100, 7), "f4"), np.ones((1, 7), "f4"), 9, metric="cosine")
    assert found.tolist() == [list(range(9))]


GOOD = np.ones((3, 4), dtype=np.float32)
BAD_CALLS: list[tuple[Any, Any, int, str, type[Exception], str]] = [
    (GOOD.astype("f8"), GOOD, 1, "cosine", TypeError, "vectors has to be a float32 .* found float64"),
    (GOOD, GOOD[0], 1, "cosine", TypeError, "queries has to be .* found float32 of 1 dimensions"),
    (GOOD, GOOD[:, :2].copy(), 1, "cosine", ValueError, "4 columns and queries 2"),
    (GOOD, GOOD, 0, "cosine", ValueError, "k has to be at least 1; found 0"),
    (GOOD, GOOD, -1, "cosine", ValueError, "found -1"),
]
UNALIGNED = np.frombuffer(b"x" * 49, dtype=np.uint8)[1:].view("f4").reshape(3, 4)
NATIVE_ONLY: list[tuple[Any, Any, int, str, type[Exception], str]] = [
    (GOOD.T, GOOD.T, 1, "cosine", ValueError, "vectors has to be C-contiguous"),
    (GOOD[:, ::2], GOOD, 1, "cosine", ValueError, "C-contiguous"),
    (GOOD.astype(">f4"), GOOD, 1, "cosine", TypeError, "found >f4"),
    (GOOD, GOOD, 1, "manhattan", ValueError, "'inner_product' or 'cosine'; found 'manhattan'"),
    ([[1.0]], GOOD, 1, "cosine", TypeError, "vectors has to be a float32 .* found list"),
    (GOOD, b"1234", 1, "cosine", TypeError, "queries has to be a float32 .* found bytes"),
    (UNALIGNED, GOOD, 1, "cosine", ValueError, "aligned"),
    (GOOD.astype("M8[s]"), GOOD, 1, "cosine", TypeError, "found datetime64"),
]


@pytest.mark.parametrize(("vectors", "queries", "k", "metric", "error", "message"), BAD_CALLS)
def test_bad_calls_are_refused_alike(
    vectors: Any, queries: Any, k: int, metric: Any, error: type[Exception], message: str
) -> None:
    for search in (_native.top_k, numpy_top_k):
        with pytest.raises(error, match=message):
            search(vectors, queries, k, metric=metric)


@pytest.mark.parametrize(("vectors", "queries", "k", "metric", "error", "message"), NATIVE_ONLY)
def test_the_native_kernel_reads_only_what_it_can(
    vectors: Any, queries: Any, k: int, metric: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        _native.top_k(vectors, queries, k, metric=metric)


def test_an_unknown_instruction_set_is_refused() -> None:
    isa: Any = "avx1024"
    with pytest.raises(ValueError, match="'auto', 'scalar' or 'avx2'; found 'avx1024'"):
        _native.top_k(GOOD, GOOD, 1, metric="cosine", isa=isa)


def test_the_lock_is_released_while_it_searches() -> None:
    vectors = np.zeros((200_000, 64), dtype=np.float32)
    queries = np.zeros((16, 64), dtype=np.float32)
    done = threading.Event()

    def search() -> None:
        _native.top_k(vectors, queries, 1, metric="cosine")
        done.set()

    turns, thread = 0, threading.Thread(target=search)
    thread.start()
    while not done.is_set():  # with the lock held this loop would not get a turn until the search ended
        turns += 1
    thread.join()
    assert turns > 1000


def test_numpy_only_on_request() -> None:
    assert select_top_k("0") is numpy_top_k
    assert select_top_k("") is select_top_k("1") is _native.top_k
    with pytest.raises(ConfigError, match="SAGE_NATIVE is 'no'"):
        select_top_k("no")


BLOCKED = """
import sys
sys.modules["sage.middleware._native"] = None
import numpy as np
from sage.middleware.vector import FlatIndex
index = FlatIndex(1)
index.add(["a"], np.ones((1, 1), dtype="f4"), [{}])
try:
    print(len(index.search(np.ones(1, dtype="f4"), 1)))
except Exception as exc:
    print(type(exc).__name__, exc)
"""


@pytest.mark.parametrize(
    ("setting", "expected"), [("", "ConfigError The native module"), ("0", "1")], ids=["native", "numpy"]
)
def test_a_missing_native_module_is_an_error_with_the_fix(setting: str, expected: str) -> None:
    env = {**os.environ, "SAGE_NATIVE": setting}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(expected)
    assert setting == "0" or "SAGE_NATIVE=0" in done.stdout
