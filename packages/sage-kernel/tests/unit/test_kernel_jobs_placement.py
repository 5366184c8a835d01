"""Which jobs run now: the scheduler's queue, job by job."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import UsageError
from sage.common.jobs import JobResources
from sage.kernel.jobs.lives import devices
from sage.kernel.jobs.placement import Placed, Placer, unit_of
from sage.kernel.scheduler import InfeasibleError, Node, Unit

GIB = 1 << 30
NODE = Node("here", cpus=10, memory=16 * GIB, gpus=(24 * GIB, 24 * GIB), labels={"disk": "fast"})


def unit(name: str, **amounts: object) -> Unit:
    return unit_of(name, name, JobResources.model_validate(amounts), 0.0)


def test_a_job_with_room_starts_and_another_one_waits_until_it_ends() -> None:
    placer = Placer([NODE])
    (first,) = placer.submit(unit("first", cpu=7))
    assert (first.job, first.node, first.devices) == ("first", "here", ())
    assert first.why.startswith("pack: ")
    assert placer.submit(unit("second", cpu=4)) == []
    assert placer.why("second") == "no node has free cpu 4 (most: 3)"
    assert [one.job for one in placer.submit(unit("small", cpu=3))] == ["small"]
    assert placer.why("first") == ""
    assert [one.job for one in placer.release("first")] == ["second"]


def test_a_job_that_waits_can_be_taken_back_and_one_that_is_gone_is_passed_over() -> None:
    placer = Placer([NODE])
    placer.submit(unit("first", cpu=10))
    placer.submit(unit("second", cpu=1))
    assert placer.release("second") == []
    assert placer.release("second") == []
    assert placer.release("first") == []
    assert [one.job for one in placer.submit(unit("second", cpu=10))] == ["second"]


def test_devices_are_given_out_once_and_shown_to_those_who_have_them() -> None:
    placer = Placer([NODE])
    (one,) = placer.submit(unit("one", gpu=1))
    (other,) = placer.submit(unit("other", gpu=0.5))
    assert sorted((*one.devices, *other.devices)) == [0, 1]
    assert placer.submit(unit("third", gpu=1)) == []
    assert devices(one)["CUDA_VISIBLE_DEVICES"] == str(one.devices[0])
    assert devices(Placed("j", "here", (), ""))["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("amounts", "words"),
    [
        ({"cpu": 11}, "lacks cpu; nearest is 'here': cpu 11 (has 10)"),
        ({"gpu": 3}, "lacks gpu"),
        ({"memory": "17GiB"}, "lacks memory; nearest is 'here': memory 17GiB (has 16GiB)"),
        ({"labels": {"disk": "slow"}}, "lacks label disk=slow"),
    ],
)
def test_what_could_never_run_is_refused_with_what_is_missing(amounts: dict[str, object], words: str) -> None:
    placer = Placer([NODE])
    placer.submit(unit("busy", cpu=10))
    with pytest.raises(InfeasibleError) as met:
        placer.check(unit("mine", **amounts))
    assert words in met.value.message
    placer.check(unit("later", cpu=10))  # there will be room for it


def test_amounts_that_are_none_name_the_job() -> None:
    with pytest.raises(UsageError, match=r"Job mine: .*cpu is 1e-05"):
        unit("mine", cpu=0.00001)


@given(st.lists(st.tuples(st.integers(1, 10), st.booleans()), max_size=40))
def test_no_more_runs_than_there_is_room_for_and_nothing_is_forgotten(events: list[tuple[int, bool]]) -> None:
    """Each job takes so many cores; a later event ends the oldest that runs. In the end all have run."""
    placer = Placer([NODE])
    running: dict[str, int] = {}
    cores: dict[str, int] = {}
    ran: set[str] = set()

    def started(placed: list[Placed]) -> None:
        for one in placed:
            running[one.job] = cores[one.job]
            ran.add(one.job)
        assert sum(running.values()) <= 10

    def end() -> None:
        oldest = next(iter(running))
        del running[oldest]
        started(placer.release(oldest))

    for number, (cpu, ends) in enumerate(events):
        name = f"job-{number}"
        cores[name] = cpu
        started(placer.submit(unit(name, cpu=cpu)))
        if ends and running:
            end()
    while running:
        end()
    assert ran == set(cores)
