"""The conformance suite of `VectorIndex`: subclass it, say how to make one, run it with pytest."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sage.common.errors import NotFoundError, SageError, UsageError
from sage.middleware.vector.port import FloatMatrix, FloatVector, VectorIndex

__all__ = ["VectorIndexConformance"]


def vector(*values: float) -> FloatVector:
    """A float32 vector."""
    return np.array(values, dtype=np.float32)


def rows(*values: Sequence[float]) -> FloatMatrix:
    """A float32 matrix of the given rows."""
    return np.array(values, dtype=np.float32)


def raises(error: type[SageError], act: Callable[[], object]) -> str:
    """The message of the error that `act` has to raise."""
    try:
        act()
    except error as exc:
        return str(exc)
    raise AssertionError(f"{error.__name__} was not raised")


class VectorIndexConformance(ABC):
    """What every vector index does."""

    @abstractmethod
    def make(self, dimensions: int) -> VectorIndex:
        """A new, empty index."""

    def filled(self) -> VectorIndex:
        """Three vectors of two dimensions."""
        index = self.make(2)
        index.add(["x", "y", "xy"], rows([3, 0], [0, 2], [1, 1]), [{"n": 0}, {"n": 1}, {"n": 2}])
        return index

    def test_an_empty_index_finds_nothing(self) -> None:
        """Searching before adding is no error."""
        index = self.make(2)
        assert len(index) == 0
        assert index.dimensions == 2
        assert index.search(vector(1, 0), 3) == []

    def test_hits_are_ordered_by_cosine(self) -> None:
        """Length does not matter, and k may be more than there is."""
        index = self.filled()
        hits = index.search(vector(5, 1), 9)
        assert [hit.id for hit in hits] == ["x", "xy", "y"]
        assert math.isclose(hits[0].score, 5 / math.sqrt(26), rel_tol=1e-6)
        assert [hit.payload for hit in index.search(vector(0, 1), 1)] == [{"n": 1}]

    def test_equal_scores_keep_the_order_of_adding(self) -> None:
        """The same input gives the same output, always."""
        index = self.make(2)
        ids = [f"id-{i}" for i in range(50)]
        index.add(ids, np.tile(vector(1, 2), (50, 1)), [{} for _ in ids])
        assert [hit.id for hit in index.search(vector(2, 1), 20)] == ids[:20]

    def test_a_zero_vector_is_similar_to_nothing(self) -> None:
        """Cosine 0, never NaN."""
        index = self.make(2)
        index.add(["zero"], rows([0, 0]), [{}])
        assert [hit.score for hit in index.search(vector(1, 0), 1)] == [0.0]
        assert [hit.score for hit in self.filled().search(vector(0, 0), 1)] == [0.0]

    def test_an_id_is_replaced(self) -> None:
        """Adding again changes vector and payload, not the count."""
        index = self.filled()
        index.add(["x"], rows([0, -1]), [{"n": 9}])
        assert len(index) == 3
        assert [(h.id, h.payload) for h in index.search(vector(0, -1), 1)] == [("x", {"n": 9})]

    def test_a_bad_call_changes_nothing(self) -> None:
        """Every refusal comes before the first change."""
        index = self.filled()
        bad: list[Callable[[], object]] = [
            lambda: index.add(["a", "b"], rows([1, 1]), [{}]),
            lambda: index.add(["a"], rows([1, 1, 1]), [{}]),
            lambda: index.add(["a"], rows([1, 1]).astype(np.float64), [{}]),
            lambda: index.add(["a", "b"], rows([1, 1], [math.nan, 1]), [{}, {}]),
            lambda: index.add(["a"], rows([math.inf, 1]), [{}]),
            lambda: index.add(["a", "b"], rows([1, 1], [2, 2]), [{}, {"f": raises}]),
            lambda: index.search(vector(1, 1), 0),
            lambda: index.search(vector(1, 1, 1), 1),
            lambda: index.search(vector(math.nan, 1), 1),
        ]
        for act in bad:
            assert raises(UsageError, act)
        assert len(index) == 3

    def test_it_grows(self) -> None:
        """Thousands of vectors in many calls, each still found."""
        index = self.make(8)
        made = np.random.default_rng(3).standard_normal((2000, 8)).astype(np.float32)
        for start in range(0, 2000, 333):
            part = made[start : start + 333]
            index.add([str(start + i) for i in range(len(part))], part, [{} for _ in part])
        assert len(index) == 2000
        assert all(index.search(made[i], 1)[0].id == str(i) for i in range(0, 2000, 97))

    def test_a_saved_index_is_the_same(self, tmp_path: Path) -> None:
        """Ids, scores to the bit, payloads with any text."""
        index = self.filled()
        index.add(["ü\n"], rows([1, 3]), [{"text": "naïve \u2028 line\n", "deep": [1, {"a": None}]}])
        index.save(tmp_path / "index")
        again = type(index).load(tmp_path / "index")
        assert len(again) == len(index)
        assert again.search(vector(1, 2.5), 4) == index.search(vector(1, 2.5), 4)

    def test_saving_again_replaces(self, tmp_path: Path) -> None:
        """The folder holds the newest index, also after it shrank."""
        self.filled().save(tmp_path)
        small = self.make(3)
        small.save(tmp_path)
        again = type(small).load(tmp_path)
        assert (len(again), again.dimensions) == (0, 3)

    def test_a_folder_without_an_index_is_named(self, tmp_path: Path) -> None:
        """The error says where it looked."""
        kind = type(self.make(2))
        assert "absent" in raises(NotFoundError, lambda: kind.load(tmp_path / "absent"))
