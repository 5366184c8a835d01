"""What a checkpoint consists of, as a file of JSON with its own checksum; and whether a plan fits to it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Any

from sage.kernel.compile import Compiled, Op
from sage.kernel.plan import Join, WindowFold
from sage.kernel.runtime.frames import DamagedError
from sage.kernel.runtime.report import CheckpointError

__all__ = ["FileMark", "Manifest", "misfits", "need_fit", "shape_of"]

VERSION = 1


@dataclass(frozen=True, slots=True)
class FileMark:
    """A file that a checkpoint needs."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """One checkpoint: `files` are read in their order, each overrides what the ones before it say.

    `prepared`: what each transactional sink gave, by operator. `done`: the run had ended.
    """

    flow: str
    epoch: int
    done: bool
    shape: dict[str, dict[str, Any]]
    files: tuple[FileMark, ...]
    prepared: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION

    def to_bytes(self) -> bytes:
        """A line with the checksum, then JSON."""
        body = json.dumps(asdict(self), indent=1, allow_nan=False).encode()
        return sha256(body).hexdigest().encode() + b"\n" + body

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """The manifest; raises `DamagedError`."""
        check, _, body = data.partition(b"\n")
        if sha256(body).hexdigest().encode() != check:
            raise DamagedError("its checksum does not fit")
        found = json.loads(body)
        if found["version"] != VERSION:
            raise DamagedError(f"it is of version {found['version']}, and this is version {VERSION}")
        return cls(**{**found, "files": tuple(FileMark(**one) for one in found["files"])})


def shape_of(plan: Compiled) -> dict[str, dict[str, Any]]:
    """What of a plan has to stay for a checkpoint to fit: operators by name, and how they are wired."""
    names = [op.node.name for op in plan.ops]
    # Operators on workers are one stage where their provision is the same: what it holds is kept by its name.
    shared = {op.index: {"workers": stage.name} for stage in plan.stages for op in stage.on_workers}
    return {op.node.name: _shape(op, names) | shared.get(op.index, {}) for op in plan.ops}


def _shape(op: Op, names: list[str]) -> dict[str, Any]:
    inputs = [
        names[port.node] + (".diverted" if port.output == "diverted" else "") for port in op.node.inputs
    ]
    found: dict[str, Any] = {"verb": op.node.verb, "calls": op.mode, "reads": inputs}
    if isinstance(op.fn, WindowFold):
        found["window"] = {name: getattr(op.fn.window, name) for name in ("size", "slide", "gap", "late")}
    elif isinstance(op.fn, Join):
        found["within"] = op.fn.within
    return found


def need_fit(manifest: Manifest, flow: str, shape: dict[str, dict[str, Any]]) -> None:
    """Raise `CheckpointError` unless it is a checkpoint of this flow as it is now."""
    if manifest.flow != flow:
        raise CheckpointError(
            f"the checkpoints are those of flow {manifest.flow!r}, and this is flow {flow!r}.",
            hint="Give each flow a folder of its own.",
        )
    problems = list(misfits(manifest.shape, shape))
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise CheckpointError(
            f"flow {flow!r} does not fit to its checkpoint {manifest.epoch}:{lines}\n",
            hint="Undo that, or begin anew in another folder.",
        )


def misfits(then: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> Iterable[str]:
    """Why a checkpoint of one plan is none of another, one sentence each."""
    for name in then:
        if name not in now:
            yield f"operator {name!r} ({then[name]['verb']}) is in the checkpoint and not in the flow"
    for name in now:
        if name not in then:
            yield f"operator {name!r} ({now[name]['verb']}) is in the flow and not in the checkpoint"
        elif then[name] != now[name]:
            keys = {**then[name], **now[name]}
            differ = [what for what in keys if then[name].get(what) != now[name].get(what)]
            was = ", ".join(f"{what}={then[name].get(what)!r}" for what in differ)
            is_now = ", ".join(f"{what}={now[name].get(what)!r}" for what in differ)
            yield f"operator {name!r} had {was} in the checkpoint, and has {is_now} now"
