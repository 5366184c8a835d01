from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import UsageError
from sage.platform.cgroup import Limits
from sage.platform.nodes import inventory, share_cores, usable_cores

CORES = st.lists(st.integers(0, 255), min_size=1, max_size=32, unique=True)
DEMANDS = st.lists(st.integers(0, 12), max_size=12)


def test_this_machine() -> None:
    node = inventory()
    assert set(node.cpus) <= os.sched_getaffinity(0)
    assert node.cpus
    assert 0 < node.memory_available <= node.memory_total
    assert node.disk_free > 0
    assert bool(node.gpus) != bool(node.gpu_note)
    assert node.gpu_note == "" or node.gpu_note.startswith("none: ")
    assert node.labels["os"] == "linux"


def test_disk_of_a_folder_that_is_not_made_yet(tmp_path: Path) -> None:
    assert inventory(tmp_path / "a" / "b").disk == tmp_path


@pytest.mark.parametrize(
    ("quota", "expected"), [(None, (1, 3, 5)), (0.5, (1,)), (1.5, (1, 3)), (9.0, (1, 3, 5))]
)
def test_a_quota_bounds_the_cores(quota: float | None, expected: tuple[int, ...]) -> None:
    assert usable_cores([5, 3, 1], Limits(cpus=quota)) == expected


@pytest.mark.parametrize(
    ("cores", "demands", "expected"),
    [
        ([0, 1], [], []),
        ([0, 1], [0], [(0, 1)]),
        ([0, 1], [0, 0], [(0,), (1,)]),
        ([0, 1], [0, 0, 0], [(0,), (1,), (0,)]),
        (range(8), [3, 0, 0], [(0, 1, 2), (3, 4, 5), (6, 7)]),
        (range(8), [0, 2], [(2, 3, 4, 5, 6, 7), (0, 1)]),
        (range(4), [3, 0, 0], [(0, 1, 2), (3,), (3,)]),
        ([0, 1], [2, 2, 0], [(0, 1), (0, 1), (0,)]),
        (range(4), [3, 2], [(0, 1, 2), (0, 3)]),
        ([0], [5], [(0,)]),
    ],
)
def test_shares(cores: list[int], demands: list[int], expected: list[tuple[int, ...]]) -> None:
    assert share_cores(cores, demands) == expected


@given(CORES, DEMANDS)
def test_everyone_gets_real_cores_and_what_was_asked(cores: list[int], demands: list[int]) -> None:
    shares = share_cores(cores, demands)
    assert len(shares) == len(demands)
    for demand, share in zip(demands, shares, strict=True):
        assert share
        assert len(set(share)) == len(share)
        assert set(share) <= set(cores)
        if demand:
            assert len(share) == min(demand, len(cores))


@given(CORES, DEMANDS)
def test_what_fits_is_disjoint_and_leaves_no_core_idle(cores: list[int], demands: list[int]) -> None:
    shares = share_cores(cores, demands)
    used = Counter(core for share in shares for core in share)
    asked = Counter(core for demand, share in zip(demands, shares, strict=True) if demand for core in share)
    if sum(demands) <= len(cores):
        assert max(asked.values(), default=0) <= 1
    if sum(demands) + demands.count(0) <= len(cores):
        assert max(used.values(), default=0) <= 1
        if 0 in demands:
            assert set(used) == set(cores)


@given(CORES, st.integers(1, 40))
def test_even_shares_differ_by_one_at_most(cores: list[int], engines: int) -> None:
    shares = share_cores(cores, [0] * engines)
    sizes = {len(share) for share in shares}
    assert max(sizes) - min(sizes) <= 1
    users = Counter(core for share in shares for core in share)
    assert max(users.values()) - min(users[core] for core in cores) <= 1


@given(CORES, st.lists(st.integers(1, 12), max_size=12))
def test_shared_cores_carry_even_load(cores: list[int], demands: list[int]) -> None:
    users = Counter(core for share in share_cores(cores, demands) for core in share)
    loads = [users[core] for core in cores]
    assert max(loads) - min(loads) <= 1


def test_nothing_to_share_and_nonsense_are_refused() -> None:
    with pytest.raises(UsageError, match="no cores"):
        share_cores([], [0])
    with pytest.raises(UsageError, match=r"below 0: \[1, -2\]"):
        share_cores([0], [1, -2])
