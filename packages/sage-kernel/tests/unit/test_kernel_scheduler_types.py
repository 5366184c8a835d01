"""Demands, sizes, nodes and units: what is valid, and what is said of the rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import UsageError
from sage.kernel.scheduler import (
    Node,
    Resources,
    Unit,
    node_of,
)
from sage.kernel.scheduler.sizes import format_bytes, parse_bytes
from sage.platform import nodes as platform_nodes

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (0, 0),
        (7, 7),
        ("512", 512),
        ("8GiB", 8 * GIB),
        ("1.5 KiB", 1536),
        ("2GB", 2 * 10**9),
        (" 3 MB ", 3000000),
    ],
)
def test_sizes(text: int | str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "8 gib", "-1", "1e3", "GiB", -1, True, 1.5, None, "\uff18"])
def test_what_is_no_size(text: Any) -> None:
    with pytest.raises(
        UsageError, match=r"the size is .*; valid is a number of bytes or a text such as '8GiB'"
    ):
        parse_bytes(text)


@given(st.integers(0, 1 << 50))
def test_a_size_shown_is_nearly_the_size(count: int) -> None:
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=0.006)


@pytest.mark.parametrize(
    ("demand", "problem"),
    [
        ({"cpu": -1}, "cpu is -1; valid are cores from 0"),
        ({"cpu": 0.0005}, "cpu is 0.0005"),
        ({"cpu": float("nan")}, "cpu is nan"),
        ({"gpu": 1.5}, "gpu is 1.5; valid are whole devices, or a share of one from 0 to 1"),
        ({"gpu": -0.5}, "gpu is -0.5"),
        ({"gpu_memory": "1GiB"}, "gpu_memory is 1073741824 where gpu is 0"),
        ({"memory": "much"}, "Resources.memory is 'much'"),
        ({"cpu": -1, "gpu": 2.5}, "cpu is -1.*; gpu is 2.5"),
    ],
)
def test_a_demand_that_makes_no_sense(demand: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        Resources(**demand)


def test_equal_demands_are_equal() -> None:
    one, other = Resources(1, labels={"a": "1", "b": "2"}), Resources(1.0, labels=(("b", "2"), ("a", "1")))
    assert one == other
    assert hash(one) == hash(other)
    assert replace(one, memory=GIB) == Resources(memory="1GiB", labels={"b": "2", "a": "1"})


@pytest.mark.parametrize(
    "bad", [{"name": ""}, {"cpus": -1}, {"cpus": 0.0001}, {"memory": -1}, {"gpus": (-1,)}]
)
def test_a_node_that_makes_no_sense(bad: dict[str, Any]) -> None:
    given: dict[str, Any] = {"name": "a", "cpus": 1, **bad}
    with pytest.raises(UsageError, match=r"valid is a name, cores in steps of 0\.001"):
        Node(**given)


@pytest.mark.parametrize("bad", [{"id": ""}, {"arrival": float("nan")}, {"arrival": float("inf")}])
def test_a_unit_that_makes_no_sense(bad: dict[str, Any]) -> None:
    given: dict[str, Any] = {"id": "u", **bad}
    with pytest.raises(UsageError, match="valid is an id and a finite number"):
        Unit(**given)


def test_this_machine_is_a_node(tmp_path: Path) -> None:
    found = platform_nodes.inventory(tmp_path, labels={"zone": "a"})
    node = node_of("here", found, reserve=1 * GIB)
    assert node.cpus == len(found.cpus)
    assert node.memory == max(0, found.memory_total - GIB)
    assert (node.labels["zone"], node.labels["os"]) == ("a", "linux")
    gpus = (platform_nodes.Gpu(1, "y", 24, 20), platform_nodes.Gpu(0, "x", 80, 1))
    assert node_of("here", replace(found, gpus=gpus)).gpus == (80, 24)
