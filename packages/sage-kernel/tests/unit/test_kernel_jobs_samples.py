"""What jobs count, as metrics."""

from __future__ import annotations

from dataclasses import replace

from sage.common.jobs import STATES, CheckpointInfo, JobResources, JobState, OperatorInfo
from sage.common.telemetry import METRICS
from sage.kernel.jobs.held import Held
from sage.kernel.jobs.restart import Restart
from sage.kernel.jobs.samples import OPERATORS, Sample, samples
from sage.kernel.jobs.states import Job

NOW = 1000.0


def held(name: str, state: JobState, operators: int = 1) -> Held:
    job = Job(
        id=f"job-{name}",
        name=name,
        flow=name,
        source="",
        created=0.0,
        restart=Restart.parse("none"),
        every=10.0,
        resources=JobResources(),
        state=state,
    )
    counts = [
        OperatorInfo(
            name=f"op-{n}",
            verb="map",
            items_in=10,
            items_out=7,
            diverted=2,
            skipped=1,
            retries=4,
            in_flight=3,
            busy=0.5,
            wait=0.25,
        )
        for n in range(operators)
    ]
    return Held(job, operators=tuple(counts), stuck=1.5, since=900.0)


def named(found: list[Sample], name: str) -> dict[tuple[str, ...], float]:
    return {tuple(labels.values()): value for metric, value, labels in found if metric.name == name}


def test_jobs_are_counted_by_state_and_operators_only_while_they_run() -> None:
    found = list(samples([held("a", "running"), held("b", "paused"), held("c", "running")], 3, NOW))
    states = named(found, "sage_jobs")
    assert states == {(state,): {"running": 2, "paused": 1}.get(state, 0) for state in STATES}
    assert named(found, "sage_job_restarts_total") == {(): 3}
    ways = named(found, "sage_job_operator_records_total")
    assert {key[0] for key in ways} == {"a", "c"}
    assert [ways["a", "op-0", way] for way in ("in", "out", "diverted", "skipped")] == [10, 7, 2, 1]
    for name, value in {
        "sage_job_operator_retries_total": 4,
        "sage_job_operator_in_flight_records": 3,
        "sage_job_operator_busy_seconds_total": 0.5,
        "sage_job_operator_wait_seconds_total": 0.25,
    }.items():
        assert named(found, name) == {("a", "op-0"): value, ("c", "op-0"): value}
    assert named(found, "sage_job_loop_stuck_seconds") == {("a",): 1.5, ("c",): 1.5}


def test_each_sample_has_the_labels_of_its_metric() -> None:
    found = list(samples([held("a", "running")], 0, NOW))
    assert all(tuple(labels) == metric.labels for metric, _, labels in found)
    assert {metric.name for metric, _, _ in found} == {
        metric.name for metric in METRICS if metric.name.startswith("sage_job")
    }


def test_the_age_of_a_checkpoint_begins_with_the_process() -> None:
    one = held("a", "running")
    assert named(list(samples([one], 0, NOW)), "sage_job_checkpoint_age_seconds") == {("a",): 100.0}
    for at, age in ((990.0, 10.0), (800.0, 100.0), (1001.0, 0.0)):
        one.job = replace(one.job, checkpoint=CheckpointInfo(number=1, at=at))
        assert named(list(samples([one], 0, NOW)), "sage_job_checkpoint_age_seconds") == {("a",): age}


def test_a_scrape_is_bounded() -> None:
    found = named(list(samples([held("a", "running", 200)], 0, NOW)), "sage_job_operator_retries_total")
    assert len(found) == OPERATORS
