"""CPU time of the native top-k against NumPy: `python benchmarks/vector/topk.py` prints one JSON object.

NumPy's matrix product may use several threads, so both are compared by process time (all threads added up).
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from sage.middleware import _native
from sage.middleware.vector.port import FloatMatrix
from sage.middleware.vector.topk import numpy_top_k

K = 10
SHAPES = [(1_000, 384, 1), (10_000, 384, 1), (100_000, 384, 1), (10_000, 384, 32), (100_000, 768, 1)]


def seconds(act: Callable[[], object]) -> float:
    """The best CPU time of at least five runs and half a second."""
    act()
    best, runs, began = float("inf"), 0, time.perf_counter()
    while runs < 5 or time.perf_counter() - began < 0.5:
        start = time.process_time()
        act()
        best, runs = min(best, time.process_time() - start), runs + 1
    return best


def argpartition(vectors: FloatMatrix, queries: FloatMatrix) -> None:
    """The fastest NumPy way, without a promise about ties."""
    scores = queries @ vectors.T
    part = np.argpartition(-scores, K, axis=1)[:, :K]
    np.take_along_axis(part, np.argsort(-np.take_along_axis(scores, part, axis=1), axis=1), axis=1)


def main() -> None:
    """Measure and print."""
    random = np.random.default_rng(0)
    rows = []
    for n, d, q in SHAPES:
        vectors = random.standard_normal((n, d)).astype(np.float32)
        queries = random.standard_normal((q, d)).astype(np.float32)
        native = partial(_native.top_k, vectors, queries, K, metric="inner_product")
        ways: dict[str, Callable[[], object]] = {
            "native": native,
            "native_scalar": partial(native, isa="scalar"),
            "numpy_argpartition": partial(argpartition, vectors, queries),
            "numpy_stable": partial(numpy_top_k, vectors, queries, K, metric="inner_product"),
        }
        cpu_ms = {name: round(seconds(act) * 1e3, 4) for name, act in ways.items()}
        rows.append({"vectors": n, "dimensions": d, "queries": q, "cpu_ms": cpu_ms})
    print(
        json.dumps({"k": K, "isa": _native.isa(), "machine": platform.processor(), "results": rows}, indent=1)
    )


if __name__ == "__main__":
    main()
