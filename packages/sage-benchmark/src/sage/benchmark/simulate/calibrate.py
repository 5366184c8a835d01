"""A fleet from a recorded run: the speed of its engines, how that varies, and what they cost each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML

from sage.benchmark.simulate.dispersion import dispersion
from sage.benchmark.simulate.fit import Fit, Rows, fit_device
from sage.benchmark.simulate.observe import (
    BOUNDS,
    MIN_ROWS,
    BatchBounds,
    caches_prefixes,
    computing,
    embed_rows,
    handover,
    llm_rows,
)
from sage.common.errors import ConfigError, UsageError
from sage.middleware.control_plane.simulator.fleet import Dispersion, Fleet
from sage.middleware.control_plane.simulator.recorded import Recording
from sage.middleware.engines.port import Capability, EngineSpec

__all__ = ["Calibrated", "calibrate", "write_fleet"]

_SMALLEST: Final = 1e-9  # of a constant that must be above 0 and of which nothing was seen
_MOST_NOISE: Final = 2.0


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A fitted fleet. `rows`: observations behind each engine; `borrowed`: engine to one that it is like.

    Engines that were never used and are like no other are `left_out`.
    """

    fleet: Fleet
    rows: dict[str, int]
    borrowed: dict[str, str]
    left_out: list[str]


@dataclass(frozen=True, slots=True)
class _Fitted:
    """One engine: what was chosen for it, and the rows behind that."""

    bounds: BatchBounds
    fit: Fit
    rows: Rows
    interference: float
    handover_s: float

    def dispersion(self, *, first_token: bool) -> Dispersion | None:
        """How its first tokens, or all else, lie around what was fitted."""
        rows, chosen = self.rows, self.rows.first == first_token
        expected = rows.expected(self.fit.weights, self.interference)
        return dispersion(rows.seconds[chosen], expected[chosen], rows.at[chosen])


def calibrate(recording: Recording, name: str) -> Calibrated:
    """Fit all engines of a recording, device by device; `name` is that of the fleet.

    Raises ConfigError when an engine that was used was seen too little and there is none like it.
    """
    devices: dict[str, list[EngineSpec]] = {}
    for spec in recording.engines.values():
        devices.setdefault(spec.group or f"device of {spec.name}", []).append(spec)
    fits: dict[str, _Fitted] = {}
    counts: dict[str, int] = {}
    interference: dict[str, float] = {}
    for device, members in devices.items():
        rows = {spec.name: _rows(spec, members, recording) for spec in members}
        counts.update({engine: len(next(iter(found.values())).seconds) for engine, found in rows.items()})
        seen = {engine: found for engine, found in rows.items() if counts[engine] >= MIN_ROWS}
        cost, best = fit_device([list(found.values()) for found in seen.values()])
        for (engine, found), (number, fit) in zip(seen.items(), best, strict=True):
            bounds = list(found)[number]
            fits[engine] = _Fitted(
                bounds, fit, found[bounds], cost, handover(recording.engines[engine], recording)
            )
        if len(members) > 1 and members[0].group:
            interference[device] = cost
    return _assemble(recording, name, fits, counts, interference)


def _assemble(
    recording: Recording,
    name: str,
    fits: dict[str, _Fitted],
    counts: dict[str, int],
    interference: dict[str, float],
) -> Calibrated:
    """The fleet of what was fitted; engines that were seen too little are like others, or left out."""
    specs = recording.engines
    idle = specs.keys() - {call.engine for call in recording.calls.values()}
    borrowed = {name: _like(specs[name], recording, fits, counts) for name in specs if name not in fits}
    left_out = [name for name in specs if name in idle and not borrowed.get(name, name)]
    if lacking := [name for name, like in borrowed.items() if not like and name not in idle]:
        raise ConfigError(
            f"The recording says too little about the engine {lacking[0]}: {counts[lacking[0]]} usable "
            f"calls, and no engine like it; {MIN_ROWS} or more are needed.",
            hint="Record longer, with answers of ten tokens and more, and moments of little load.",
        )
    kept = [spec for name, spec in specs.items() if name not in left_out]
    groups = {spec.group for spec in kept}
    content = {
        "name": name,
        "about": "fitted from a recorded run",
        "devices": {one: {"interference": round(c, 4)} for one, c in interference.items() if one in groups},
        "engines": [_engine(spec, fits[borrowed.get(spec.name, spec.name)]) for spec in kept],
    }
    borrowed = {name: like for name, like in borrowed.items() if like}
    return Calibrated(Fleet.model_validate(content), counts, borrowed, left_out)


def write_fleet(fleet: Fleet, path: Path) -> None:
    """Write a `fleet.yaml`. Raises UsageError where it cannot be written."""
    yaml = YAML()
    yaml.width = 110
    try:
        with path.open("w", encoding="utf-8") as file:
            file.write(
                "# Fitted from a recorded run by `sage bench calibrate`. What it simulates is SIMULATED.\n"
            )
            yaml.dump(fleet.model_dump(mode="json", exclude_defaults=True), file)
    except OSError as error:
        raise UsageError(f"The fleet cannot be written to {path}: {error.strerror}.") from None


def _rows(spec: EngineSpec, members: Sequence[EngineSpec], recording: Recording) -> dict[BatchBounds, Rows]:
    others = [other for other in members if _writes(other) != _writes(spec)]
    neighbours = computing(others, recording)
    if _writes(spec):
        return {BOUNDS[-1]: llm_rows(spec, recording, neighbours)}
    return embed_rows(spec, recording, neighbours)


def _writes(spec: EngineSpec) -> bool:
    return bool(spec.capabilities & {Capability.CHAT, Capability.COMPLETIONS})


def _like(spec: EngineSpec, recording: Recording, fits: Iterable[str], counts: dict[str, int]) -> str:
    """The engine of the same kind, model and cores that was seen most; empty = there is none."""
    same = [
        name
        for name in fits
        if (other := recording.engines[name]).kind == spec.kind
        and (other.model, other.cores) == (spec.model, spec.cores)
    ]
    return max(same, key=counts.__getitem__, default="")


def _engine(spec: EngineSpec, fitted: _Fitted) -> dict[str, Any]:
    """An engine of `fleet.yaml`."""
    fit, bounds = fitted.fit, fitted.bounds
    first, second, third = (float(f"{weight:.4g}") for weight in fit.weights)
    common = {
        "name": spec.name,
        "model": spec.model,
        "group": spec.group,
        "cores": spec.cores,
        "max_running": spec.max_running,
        "managed": spec.managed,
        "dispersion": fitted.dispersion(first_token=False),
    }
    if _writes(spec):
        speed = {"a": max(_SMALLEST, first), "b": second, "c": max(_SMALLEST, third)}
        sizes = {"chunk": spec.chunk, "kv_tokens": spec.kv_tokens}
        varies = {"first_token": fitted.dispersion(first_token=True)}
        return {**common, "kind": "llm", **speed, **sizes, **varies, "prefix_cache": caches_prefixes(spec)}
    kind = "rerank" if Capability.RERANK in spec.capabilities else "embedding"
    speed = {"s0": max(_SMALLEST, first), "s1": second, "s2": third}
    batches = {"batching": "greedy", "batch_tokens": bounds.tokens, "batch_texts": bounds.texts}
    return {
        **common,
        "kind": kind,
        **speed,
        **(batches if spec.batches else {"batching": "single"}),
        "elastic": spec.elastic and spec.cores > 0,
        "scaling": bounds.scaling,
        "handover_s": float(f"{fitted.handover_s:.3g}"),
        # Each batch shows its own noise; that of an iteration is lost in the time of a whole answer.
        "noise": round(min(_MOST_NOISE, fit.noise), 4),
    }
