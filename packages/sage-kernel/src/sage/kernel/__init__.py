"""Layer 3: declarative dataflow plans and the runtime that runs them.

The runtime is imported when it is first asked for: who only builds or checks a plan needs no event loop.
"""

from typing import TYPE_CHECKING

from sage.kernel.flow import Connected, Flow, Keyed, Stream, Windowed
from sage.kernel.options import Batch, Checkpoints, Failure, Pane, Part, Retry, Use, Window, use
from sage.kernel.pipeline import load_yaml, parse_yaml
from sage.kernel.plan import Plan, PlanError
from sage.kernel.ports import Model, Replayable, Sink, SnapshotStore, Source, Transactional
from sage.kernel.registry import Registry, default_registry, operator
from sage.kernel.schema import flow_schema

if TYPE_CHECKING:
    from sage.kernel.runtime.environment import Environment, RemoteEnvironment
    from sage.kernel.runtime.job import Job, ReplyError, ReplyStream
    from sage.kernel.runtime.local import LocalEnvironment
    from sage.kernel.runtime.report import CheckpointError, OperatorError, OperatorReport, RunReport
    from sage.kernel.runtime.run import Run

__all__ = [
    "Batch",
    "CheckpointError",
    "Checkpoints",
    "Connected",
    "Environment",
    "Failure",
    "Flow",
    "Job",
    "Keyed",
    "LocalEnvironment",
    "Model",
    "OperatorError",
    "OperatorReport",
    "Pane",
    "Part",
    "Plan",
    "PlanError",
    "Registry",
    "RemoteEnvironment",
    "Replayable",
    "ReplyError",
    "ReplyStream",
    "Retry",
    "Run",
    "RunReport",
    "Sink",
    "SnapshotStore",
    "Source",
    "Stream",
    "Transactional",
    "Use",
    "Window",
    "Windowed",
    "default_registry",
    "flow_schema",
    "load_yaml",
    "operator",
    "parse_yaml",
    "use",
]

_RUNTIME = {
    "CheckpointError": "report",
    "Environment": "environment",
    "Job": "job",
    "LocalEnvironment": "local",
    "OperatorError": "report",
    "OperatorReport": "report",
    "RemoteEnvironment": "environment",
    "ReplyError": "job",
    "ReplyStream": "job",
    "Run": "run",
    "RunReport": "report",
}


if not TYPE_CHECKING:  # else a type checker would accept any name

    def __getattr__(name: str) -> object:
        if name not in _RUNTIME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(f"sage.kernel.runtime.{_RUNTIME[name]}"), name)
        return value
