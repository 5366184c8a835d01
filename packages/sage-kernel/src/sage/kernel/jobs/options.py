"""What jobs may be, and what their processes get."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sage.common.jobs import JobSpec
from sage.kernel.jobs.messages import Source

__all__ = ["JobOptions", "source_of"]


def _nothing() -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, slots=True)
class JobOptions:
    """`code`: `module:name`, or `module:*`, that plans may name; it is looked for in the folders of `path`.
    `environment` gives what the processes get beside the environment of this one.
    """

    max_jobs: int = 1000
    max_plan_bytes: int = 48 * 1024
    code: tuple[str, ...] = ()
    path: tuple[Path, ...] = ()
    environment: Callable[[], Mapping[str, str]] = field(default=_nothing)


def source_of(spec: JobSpec, options: JobOptions) -> Source:
    """What the process of a job needs to make its flow."""
    return Source(
        spec.plan,
        spec.flow or "",
        dict(spec.settings),
        options.code,
        tuple(str(folder) for folder in options.path),
        spec.folder,
        dict(spec.services),
    )
