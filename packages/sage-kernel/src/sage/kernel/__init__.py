"""Layer 3: declarative dataflow plans and the runtime that runs them.

The runtime is imported when it is first asked for: who only builds or checks a plan needs no event loop.
"""

from typing import TYPE_CHECKING

from sage.kernel.flow import Flow
from sage.kernel.options import Batch, Cache, Checkpoints, Failure, Pane, Part, Retry, Use, Window, use
from sage.kernel.pipeline import load_yaml, parse_yaml
from sage.kernel.plan import Plan, PlanError
from sage.kernel.ports import Model, Replayable, Sink, SnapshotStore, Source, Transactional
from sage.kernel.provision import Parallel, Scale
from sage.kernel.registry import Registry, default_registry, operator
from sage.kernel.schema import flow_schema
from sage.kernel.services import ServiceCall, call_service
from sage.kernel.stream import Connected, Keyed, Stream, Windowed

if TYPE_CHECKING:
    from sage.kernel.runtime.environment import Environment, RemoteEnvironment
    from sage.kernel.runtime.inbox import Inboxes, Parked, Reject, RejectedError
    from sage.kernel.runtime.job import Job, ReplyStream
    from sage.kernel.runtime.local import LocalEnvironment
    from sage.kernel.runtime.report import CheckpointError, OperatorError, OperatorReport, RunReport
    from sage.kernel.runtime.run import Run
    from sage.kernel.runtime.walk import ReplyError, RoundsError
    from sage.kernel.scheduler import Resources

__all__ = [
    "Batch",
    "Cache",
    "CheckpointError",
    "Checkpoints",
    "Connected",
    "Environment",
    "Failure",
    "Flow",
    "Inboxes",
    "Job",
    "Keyed",
    "LocalEnvironment",
    "Model",
    "OperatorError",
    "OperatorReport",
    "Pane",
    "Parallel",
    "Parked",
    "Part",
    "Plan",
    "PlanError",
    "Registry",
    "Reject",
    "RejectedError",
    "RemoteEnvironment",
    "Replayable",
    "ReplyError",
    "ReplyStream",
    "Resources",
    "Retry",
    "RoundsError",
    "Run",
    "RunReport",
    "Scale",
    "ServiceCall",
    "Sink",
    "SnapshotStore",
    "Source",
    "Stream",
    "Transactional",
    "Use",
    "Window",
    "Windowed",
    "call_service",
    "default_registry",
    "flow_schema",
    "load_yaml",
    "operator",
    "parse_yaml",
    "use",
]

_LAZY = {
    "CheckpointError": "runtime.report",
    "Environment": "runtime.environment",
    "Inboxes": "runtime.inbox",
    "Job": "runtime.job",
    "LocalEnvironment": "runtime.local",
    "OperatorError": "runtime.report",
    "OperatorReport": "runtime.report",
    "Parked": "runtime.inbox",
    "Reject": "runtime.inbox",
    "RejectedError": "runtime.inbox",
    "RemoteEnvironment": "runtime.environment",
    "ReplyError": "runtime.walk",
    "ReplyStream": "runtime.job",
    "Resources": "scheduler",
    "RoundsError": "runtime.walk",
    "Run": "runtime.run",
    "RunReport": "runtime.report",
}


if not TYPE_CHECKING:  # else a type checker would accept any name

    def __getattr__(name: str) -> object:
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(f"sage.kernel.{_LAZY[name]}"), name)
        return value
