"""From what was submitted to a flow, in the process of a job."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sage.common.errors import BadRequestError, NotFoundError
from sage.kernel.compile import Compiled, compile_plan
from sage.kernel.flow import Flow
from sage.kernel.jobs.messages import Source
from sage.kernel.plan import PlanError
from sage.kernel.registry import Registry, nearest
from sage.kernel.runtime.keeper import need_checkpointable
from sage.kernel.runtime.shared import ServiceFactory
from sage.kernel.schema import VERBS
from sage.kernel.serial import import_named

__all__ = ["check", "load", "services_of", "with_settings"]


def load(source: Source) -> Flow:
    """The flow; this process then works in the folder of the job, and finds modules in its path.

    Raises NotFoundError for a folder that is not there, BadRequestError for code that is not allowed or makes
    no flow, and PlanError.
    """
    if source.folder:
        if not Path(source.folder).is_dir():
            raise NotFoundError(f"The folder {source.folder} of the job does not exist.")
        os.chdir(source.folder)
    sys.path[:0] = source.path
    if source.plan is not None:
        return Flow.from_dict(with_settings(source.plan, source.settings), allow=source.allow)
    return _called(source.flow, import_named(source.flow, source.allow), source.settings)


def services_of(source: Source) -> dict[str, ServiceFactory]:
    """What makes each service, once the flow is loaded: nothing is made yet.

    Raises BadRequestError for code that is not allowed or makes none.
    """
    found: dict[str, ServiceFactory] = {}
    for name, code in source.services.items():
        try:
            made = import_named(code, source.allow)
        except BadRequestError as error:
            error.message = f"service {name!r}: {error.message}"
            raise
        if not isinstance(made, Flow) and not callable(made):
            raise BadRequestError(
                f"service {name!r}: {code!r} is a {type(made).__name__}; valid is a class or function that "
                "makes the service, or a Flow that answers requests."
            )
        found[name] = made
    return found


def check(flow: Flow, registry: Registry, services: Mapping[str, ServiceFactory]) -> list[Compiled]:
    """The flow, and those behind its services, compiled.

    Raises PlanError with all that keeps one of them from being run.
    """
    if _answers(flow):
        raise PlanError(flow.name, ["it answers requests: a job reads its sources to their ends"])
    plan = compile_plan(flow.plan, registry, services)
    need_checkpointable(plan)
    plans = [plan]
    for name, made in services.items():
        if isinstance(made, Flow):
            if not _answers(made):
                raise PlanError(made.name, [f"it is service {name!r} and answers no requests"])
            plans.append(compile_plan(made.plan, registry, services))
    return plans


def _answers(flow: Flow) -> bool:
    return any(node.verb == "requests" for node in flow.plan.nodes)


def with_settings(plan: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The plan with other parameters: `STEP.PARAMETER` is one of the step with that id.

    Raises BadRequestError that names the steps there are.
    """
    steps = plan.get("steps")
    if not settings or not isinstance(steps, list):
        return dict(plan)
    changed = [dict(step) if isinstance(step, Mapping) else step for step in steps]
    known = {step["id"]: step for step in changed if isinstance(step, dict) and "id" in step}
    for name, value in settings.items():
        ident, dot, parameter = name.partition(".")
        if not dot or not parameter or ident not in known:
            there = ", ".join(map(str, known)) or "none"
            raise BadRequestError(
                f"--set {name}: valid is STEP.PARAMETER, where STEP is the id of a step; there are: {there}"
                f"{nearest(ident, map(str, known))}."
            )
        _set(known[ident], parameter, value)
    return {**plan, "steps": changed}


def _set(step: dict[str, Any], parameter: str, value: Any) -> None:
    verb = next((verb for verb in VERBS if verb in step), None)
    body = {"use": step[verb]} if verb and isinstance(step[verb], str) else verb and step[verb]
    if verb is None or not isinstance(body, Mapping) or "use" not in body:
        raise BadRequestError(f"--set {step['id']}.{parameter}: that step names no operator.")
    step[verb] = {**body, "with": {**body.get("with", {}), parameter: value}}


def _called(name: str, found: Any, settings: Mapping[str, Any]) -> Flow:
    made = found
    if not isinstance(found, Flow):
        if not callable(found):
            raise BadRequestError(
                f"{name!r} is a {type(found).__name__}; a Flow or a function that makes one does."
            )
        try:
            inspect.signature(found).bind(**settings)
        except TypeError as error:
            raise BadRequestError(f"{name!r} cannot be called with these settings: {error}.") from error
        made = found(**settings)
    elif settings:
        raise BadRequestError(
            f"{name!r} is a Flow, which takes no settings; a function that returns one does."
        )
    if not isinstance(made, Flow):
        raise BadRequestError(f"{name!r} returns a {type(made).__name__}, not a Flow.")
    return made
