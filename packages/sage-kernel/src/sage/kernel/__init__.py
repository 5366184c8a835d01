"""Layer 3: declarative dataflow plans and the runtime that runs them."""

from sage.kernel.flow import Flow, Keyed, Stream
from sage.kernel.options import Batch, Failure, Part, Retry, Use, use
from sage.kernel.pipeline import load_yaml, parse_yaml
from sage.kernel.plan import Plan, PlanError
from sage.kernel.ports import Model, Sink, Source
from sage.kernel.registry import Registry, default_registry, operator
from sage.kernel.runtime.job import Job, ReplyError, ReplyStream
from sage.kernel.runtime.local import LocalEnvironment
from sage.kernel.runtime.report import OperatorError, OperatorReport, RunReport
from sage.kernel.serial import flow_schema

__all__ = [
    "Batch",
    "Failure",
    "Flow",
    "Job",
    "Keyed",
    "LocalEnvironment",
    "Model",
    "OperatorError",
    "OperatorReport",
    "Part",
    "Plan",
    "PlanError",
    "Registry",
    "ReplyError",
    "ReplyStream",
    "Retry",
    "RunReport",
    "Sink",
    "Source",
    "Stream",
    "Use",
    "default_registry",
    "flow_schema",
    "load_yaml",
    "operator",
    "parse_yaml",
    "use",
]
