"""How far the simulator is from recorded runs: that of the fit, and others. Its figures are SIMULATED."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from sage.benchmark import environment
from sage.benchmark.simulate.calibrate import Calibrated
from sage.common.errors import ConfigError, UsageError
from sage.middleware.control_plane.simulator.fleet import Fleet
from sage.middleware.control_plane.simulator.recorded import Recording, SeenRequest, read_recording
from sage.middleware.control_plane.simulator.replayed import options, requests
from sage.middleware.control_plane.simulator.report import quantile
from sage.middleware.control_plane.simulator.types import RequestResult
from sage.middleware.control_plane.simulator.world import simulate

__all__ = ["Compared", "Gap", "LiveRun", "compare", "gaps", "read_run", "to_json", "typical_error"]

_QUANTILES: Final = (0.5, 0.99)


@dataclass(frozen=True, slots=True)
class LiveRun:
    """A recorded run and the policy that was in force."""

    path: Path
    recording: Recording
    policy: str


@dataclass(frozen=True, slots=True)
class Gap:
    """One metric of the live run and of the simulator's; `error` is (simulated - live) / live.

    `samples`: of the live run. Below 100 a p99 is the greatest of them.
    """

    metric: str
    group: str
    live: float
    simulated: float
    error: float
    unit: str
    samples: int


@dataclass(frozen=True, slots=True)
class Compared:
    """The simulator's error against one run. `role`: the fleet was `fitted` to it, or it was `held out`."""

    run: LiveRun
    role: str
    gaps: list[Gap]

    @property
    def error(self) -> float:
        """As one figure."""
        return typical_error(self.gaps)


def read_run(path: Path, policy: str) -> LiveRun:
    """Read a recording; `policy` is that of a trace that names none. Raises UsageError where it lacks."""
    recording = read_recording(path)
    used = recording.policy or policy
    if not used:
        raise UsageError(f"{path} does not say which policy was in force.", hint="Name it by --policy.")
    return LiveRun(path, recording, used)


def compare(run: LiveRun, fleet: Fleet, seeds: Sequence[int], role: str) -> Compared:
    """Simulate a recorded load on the fleet. Raises ConfigError for a model that it does not serve."""
    served = {engine.model for engine in fleet.engines}
    asked = {seen.job.model for seen in run.recording.requests.values()}
    if unknown := sorted(asked - served):
        raise ConfigError(
            f"{run.path} asks for the model {unknown[0]}; the fitted fleet serves "
            f"{', '.join(sorted(served))}.",
            hint="Validate by a run of the same engines.",
        )
    return Compared(run, role, gaps(run.recording, fleet, run.policy, seeds))


def gaps(recording: Recording, fleet: Fleet, policy: str, seeds: Sequence[int]) -> list[Gap]:
    """The simulator's error: the same load against the fitted fleet, each metric's median over seeds."""
    runs = [
        _percentiles(
            _simulated(
                simulate(policy, fleet, requests(recording), seed=seed, options=options(recording)).requests
            )
        )
        for seed in seeds
    ]
    times = _live(recording.requests.values())
    found = []
    for key, live in _percentiles(times).items():
        values = [run[key] for run in runs if key in run]
        if values:
            group, metric = key
            error = (median(values) - live) / live if live else 0.0
            samples = len(times[group, metric.rpartition("_")[0]])
            found.append(Gap(metric, group, live * 1000, median(values) * 1000, error, "ms", samples))
    return found


def typical_error(found: Sequence[Gap]) -> float:
    """The median of the absolute errors: the simulator's error as one figure. ValueError without a gap."""
    return median(abs(gap.error) for gap in found)


def to_json(found: Sequence[Compared], fitted: Calibrated) -> dict[str, Any]:
    """What `sage bench calibrate --json` prints; the first run is that to which the fleet was fitted."""
    return {
        "schema_version": 2,
        "label": "SIMULATED",
        "badges": ["SIMULATED"],
        "environment": environment.describe(),
        "fleet": fitted.fleet.model_dump(mode="json"),
        "observations": fitted.rows,
        "borrowed": fitted.borrowed,
        "left_out": fitted.left_out,
        "runs": [
            {
                "label": "SIMULATED",
                "recorded": one.run.path.name,
                "role": one.role,
                "policy": one.run.policy,
                "requests": len(one.run.recording.requests),
                "errors": [{"label": "SIMULATED", **asdict(gap)} for gap in one.gaps],
                "median_error": one.error,
            }
            for one in found
        ],
    }


_Times = dict[tuple[str, str], list[float]]


def _live(seen: Iterable[SeenRequest]) -> _Times:
    """Group and metric to seconds, as the control plane saw them."""
    times: _Times = {}
    for one in seen:
        done = [call for call in one.calls if call.usage is not None and call.ended is not None]
        if not done or sum(p.stop - p.start for c in done for p in c.slices if p.id == one.job.id) < max(
            1, one.job.texts
        ):
            continue  # not answered whole
        end = max(call.ended or 0.0 for call in done)
        first, output = done[-1].first, done[-1].usage.completion_tokens if done[-1].usage else 0
        tpot = (end - first) / (output - 1) if first is not None and output > 1 else None
        ttft = first - one.arrived if first is not None else None
        _add(times, one.job.request_class, bool(one.job.texts), ttft, tpot, end - one.arrived)
    return times


def _simulated(done: Iterable[RequestResult]) -> _Times:
    """The same of a simulated run."""
    times: _Times = {}
    for one in done:
        if one.outcome == "done":
            _add(times, one.request_class, not one.output_tokens, one.ttft_s, one.tpot_s, one.total_s)
    return times


def _add(
    times: _Times, group: str, embeds: bool, ttft: float | None, tpot: float | None, total: float
) -> None:
    found = {"e2e": total} if embeds else {"ttft": ttft, "tpot": tpot}
    for name, value in found.items():
        if value is not None:
            times.setdefault((str(group), name), []).append(value)


def _percentiles(times: _Times) -> dict[tuple[str, str], float]:
    return {
        (group, f"{name}_p{round(q * 100)}"): quantile(sorted(samples), q)
        for (group, name), samples in sorted(times.items())
        for q in _QUANTILES
    }
