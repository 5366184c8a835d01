"""Simulated runs of several arms over the same seeds and loads, side by side on all cores."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import msgspec

from sage.common.errors import ConfigError, UsageError
from sage.middleware.control_plane.goals import DEFAULT_SLOS
from sage.middleware.control_plane.simulator import recorded, replayed
from sage.middleware.control_plane.simulator.faults import Fault
from sage.middleware.control_plane.simulator.fleet import Fleet
from sage.middleware.control_plane.simulator.recorded import Recording
from sage.middleware.control_plane.simulator.report import RunReport, summarise
from sage.middleware.control_plane.simulator.shapes import Setting
from sage.middleware.control_plane.simulator.types import SimRequest
from sage.middleware.control_plane.simulator.workloads import Workload, load_workload, models_of
from sage.middleware.control_plane.simulator.world import Trace, simulate
from sage.middleware.control_plane.trace import Goals, PolicyChanged

__all__ = ["Arm", "Done", "Task", "arrivals", "record", "run_all"]

_SUFFIXES = {".csv": "azure", ".jsonl": "mooncake"}
RECORDED = ".ndjson"


@dataclass(frozen=True, slots=True)
class Arm:
    """What is compared: a policy on a fleet. `label` names it in tables."""

    label: str
    policy: str
    fleet: Fleet


@dataclass(frozen=True, slots=True)
class Task:
    """One run. `trace` is a workload's name or a file; `duration` None = as long as that says."""

    arm: Arm
    trace: str
    seed: int
    load: float = 1.0
    duration: float | None = None
    faults: tuple[Fault, ...] = ()
    data_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """A run that was made; `wall_s` is real time."""

    task: Task
    report: RunReport
    requests: int
    wall_s: float


def arrivals(task: Task) -> Iterable[SimRequest]:
    """The requests of a task in order.

    A file that ends in .ndjson is a recorded trace, .csv the Azure trace, .jsonl Mooncake's, all else a
    workload in YAML. Raises ConfigError, NotFoundError.
    """
    kind = Path(task.trace).suffix
    if kind == RECORDED:
        return _replayed(task, recorded.read_recording(Path(task.trace)))
    if kind in _SUFFIXES:
        stream = {"kind": "replay", "format": _SUFFIXES[kind], "file": task.trace}
        workload = Workload.model_validate({"streams": [stream]})
        duration = task.duration or float("inf")
    else:
        workload = load_workload(task.trace)
        duration = task.duration or workload.duration_s
    return workload.requests(
        Setting(task.seed, duration, models_of(task.arm.fleet), task.load, task.data_dir)
    )


def _replayed(task: Task, recording: Recording) -> Iterator[SimRequest]:
    """A recording at another pace; its models must be those of the fleet.

    Clients that ask again when they were answered are as many at any pace: they go on for less time.
    """
    served = {engine.model for engine in task.arm.fleet.engines}
    asked = {seen.job.model for seen in recording.requests.values()}
    if unknown := sorted(asked - served):
        raise ConfigError(
            f"{task.trace} asks for the model {unknown[0]}; the fleet {task.arm.fleet.name} serves "
            f"{', '.join(sorted(served))}.",
            hint="`sage bench calibrate` makes the fleet of a recording.",
        )
    last = float("inf") if task.duration is None else task.duration
    for request in replayed.requests(recording):
        at, client = request.at / task.load, request.client
        if at >= last:
            return
        if client is not None:
            client = msgspec.structs.replace(client, until=min(client.until / task.load, last))
        yield msgspec.structs.replace(request, at=at, client=client)


def run(task: Task, trace: Trace | None = None) -> Done:
    """Simulate one task in this process; `trace` gets every event with its actions.

    What was recorded is decided by the goals that were in force then. Raises ConfigError when there is no
    request at all.
    """
    started = perf_counter()
    arm, options = task.arm, None
    if Path(task.trace).suffix == RECORDED:
        recording = recorded.read_recording(Path(task.trace))
        workload: Iterable[SimRequest] = _replayed(task, recording)
        options = replayed.options(recording)
    else:
        workload = arrivals(task)
    result = simulate(
        arm.policy, arm.fleet, workload, seed=task.seed, faults=task.faults, options=options, trace=trace
    )
    if not result.requests:
        raise ConfigError(f"{task.trace} has no request in {task.duration} s.", hint="Raise --duration.")
    return Done(task, summarise(result), len(result.requests), perf_counter() - started)


def record(task: Task, path: Path) -> Done:
    """Simulate one task and write its trace as a live control plane does. Raises UsageError."""
    encoder = msgspec.json.Encoder()
    try:
        file = path.open("wb")
    except OSError as error:
        raise UsageError(f"The trace cannot be written to {path}: {error.strerror}.") from None
    with file:
        file.write(encoder.encode_lines([PolicyChanged(0.0, task.arm.policy), Goals(0.0, DEFAULT_SLOS)]))
        return run(task, lambda event, actions: file.write(encoder.encode_lines([event, *actions])))


def run_all(tasks: Sequence[Task], *, jobs: int = 0, on_done: Callable[[Done], None]) -> list[Done]:
    """Simulate all, in the order of `tasks`, `jobs` at a time (0 = one for each core that we may use)."""
    jobs = min(jobs or len(os.sched_getaffinity(0)), len(tasks))
    if jobs == 1:
        done = []
        for task in tasks:
            done.append(run(task))
            on_done(done[-1])
        return done
    # Spawned, not forked: whoever calls us may have threads.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(run, task) for task in tasks]
        try:
            for future in as_completed(futures):
                on_done(future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        return [future.result() for future in futures]
