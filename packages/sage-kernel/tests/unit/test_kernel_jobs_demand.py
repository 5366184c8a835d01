"""What operators ask for, as one demand of their job."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import BadRequestError
from sage.common.jobs import JobResources
from sage.kernel import Flow, Parallel, PlanError, Stream
from sage.kernel.compile import compile_plan
from sage.kernel.jobs.demand import demand_of, devices_for, resources_for
from sage.kernel.registry import default_registry
from sage.kernel.runtime.room import shown_devices
from sage.kernel.scheduler import Resources

GIB = 1 << 30


async def later(x: int) -> int:
    return x


def demand(build: Any) -> dict[str, Any]:
    flow = Flow("demand")
    stream: Stream[int] = flow.source([1])
    build(stream).sink(print)
    return demand_of([compile_plan(flow.plan, default_registry())])


def test_operators_that_ask_for_nothing_add_nothing() -> None:
    assert demand(lambda s: s.map(later).map(abs, parallelism=Parallel(2, "thread"))) == {}


def test_all_workers_and_operators_of_a_run_count_at_once() -> None:
    def build(stream: Stream[int]) -> Stream[int]:
        wide = stream.map(abs, parallelism=Parallel(3, "thread"), resources=Resources(2, memory="1GiB"))
        asked = wide.map(
            later, resources=Resources(0.5, gpu=0.25, gpu_memory="4GiB", labels={"disk": "fast"})
        )
        return asked.map(later, resources=Resources(0, gpu=0.5, gpu_memory="8GiB"), name="second")

    assert demand(build) == {
        "cpu": 6.5,
        "gpu": 0.75,
        "memory": 3 * GIB,
        "gpu_memory": 8 * GIB,
        "labels": {"disk": "fast"},
    }


def test_operators_in_loops_count_too() -> None:
    found = demand(
        lambda s: s.iterate(
            lambda t: t.map(later, resources=Resources(3)), until=lambda x: True, max_rounds=2
        )
    )
    assert found["cpu"] == 3


def test_labels_that_fit_no_node_are_told() -> None:
    def build(stream: Stream[int]) -> Stream[int]:
        one = stream.map(later, resources=Resources(1, labels={"zone": "b"}))
        return one.map(later, resources=Resources(1, labels={"zone": "a"}), name="other")

    with pytest.raises(
        PlanError, match="its operators ask for zone=a and zone=b, and a job runs on one node"
    ):
        demand(build)


@pytest.mark.parametrize(
    ("asked", "devices"),
    [
        ([], 0),
        ([0, 0], 0),
        ([0.5], 0.5),
        ([0.5, 0.25], 0.75),
        ([0.5, 0.5], 1.0),
        ([0.6, 0.6, 0.6], 3),
        ([0.6, 0.6, 0.4, 0.4], 2),
        ([1], 1),
        ([2, 1], 3),
        ([1, 0.5], 2),
        ([0.1] * 10, 1.0),
    ],
)
def test_whole_devices_and_shares_of_one(asked: list[float], devices: float) -> None:
    assert devices_for(asked) == devices


@given(st.lists(st.integers(1, 9), max_size=6), st.integers(0, 3))
def test_shares_find_room_on_that_many_devices(shares: list[int], whole: int) -> None:
    found = devices_for([one / 10 for one in shares] + [1.0] * whole)
    devices = -(-found // 1) - whole
    assert devices * 10 >= sum(shares)
    if devices > 1:  # fewer would not do with the large ones first; and never more than each on its own
        assert devices <= len(shares)
    places = product(range(int(devices)), repeat=len(shares))
    assert not shares or any(
        all(
            sum(s for s, at in zip(shares, place, strict=True) if at == one) <= 10
            for one in range(int(devices))
        )
        for place in places
    )


def test_a_job_takes_at_least_what_its_operators_ask_for() -> None:
    asked = {"cpu": 6.5, "gpu": 0.75, "memory": 3 * GIB, "gpu_memory": 8 * GIB, "labels": {"disk": "fast"}}
    found = resources_for(JobResources(), asked)
    assert found.model_dump() == {
        "cpu": 6.5,
        "gpu": 0.75,
        "memory": "3GiB",
        "gpu_memory": "8GiB",
        "labels": {"disk": "fast"},
    }
    more = JobResources(cpu=8, gpu=2, memory="3221225473", gpu_memory="9GiB", labels={"zone": "a"})
    found = resources_for(more, asked)
    assert (found.cpu, found.gpu, found.memory, found.gpu_memory) == (8, 2, "3221225473", "9GiB")
    assert found.labels == {"disk": "fast", "zone": "a"}
    assert resources_for(JobResources(gpu=1), {**asked, "gpu": 1.0}).gpu == 1
    assert resources_for(JobResources(), {}) == JobResources()


def test_labels_of_the_job_and_of_its_operators_have_to_agree() -> None:
    asked = {"cpu": 1, "gpu": 0, "memory": 0, "gpu_memory": 0, "labels": {"zone": "a"}}
    with pytest.raises(BadRequestError, match="asks for a node with zone=b, and its operators for zone=a"):
        resources_for(JobResources(labels={"zone": "b"}), asked)


@pytest.mark.parametrize(
    ("text", "shown"), [(None, None), ("", []), ("2", [2]), ("0, 3", [0, 3]), ("GPU-8932f937", None)]
)
def test_a_process_counts_the_devices_that_it_is_shown(text: str | None, shown: list[int] | None) -> None:
    assert shown_devices({} if text is None else {"CUDA_VISIBLE_DEVICES": text}) == shown
