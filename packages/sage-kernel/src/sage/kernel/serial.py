"""Plans as plain data: `to_dict`, `from_dict` and YAML pipelines; `schema` tells which keys there are.

    name: words
    steps:
      - source: {use: files, with: {folder: docs, glob: "**/*.md"}}
        id: docs
      - flatmap: {use: sage.split, with: {size: 500}, on_error: divert}
        id: pieces
      - sink: {use: jsonl, with: {path: pieces.jsonl}}
      - sink: stdout
        from: pieces.diverted

A step reads the one before it unless `from` names another, or two for a `join`; `merge` lists those it joins.
The body of an `iterate` is a list of steps: the first one reads the record that goes round, which others can
name as `from: round`, and the last one gives it back.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from typing import Any

from sage.common.errors import BadRequestError
from sage.kernel.options import Batch, Cache, Call, Retry, Use, Window
from sage.kernel.plan import (
    Builder,
    EventTime,
    Fold,
    Gate,
    Iterate,
    Join,
    Node,
    Plan,
    PlanError,
    Port,
    Spec,
    Verb,
    WindowFold,
)
from sage.kernel.provision_data import known, provision_data, read_provision
from sage.kernel.registry import nearest
from sage.kernel.schema import CACHE, CALL, COUNTS, NAMED, OPTIONS, REQUIRED, VERBS, WINDOW, WORDS
from sage.kernel.services import ServiceCall

__all__ = ["from_dict", "import_named", "to_dict"]

PLAIN_TYPES = {kind.__name__: kind for kind in (str, int, float, bool, dict, list, object)}
ERRORS = "sage.common.errors"


def to_dict(plan: Plan) -> dict[str, Any]:
    """The plan as plain data; raises one `PlanError` naming every operator that is code without a name."""
    problems: list[str] = []
    steps = [_step(plan, node, problems) for node in plan.nodes]
    if problems:
        raise PlanError(plan.name, problems)
    return {"name": plan.name, "steps": steps}


def from_dict(data: Any, *, allow: tuple[str, ...] = (), where: str = "") -> Plan:
    """A plan from plain data; raises one `PlanError` listing every step that cannot be read."""
    problems: list[str] = []
    name = data.get("name") if isinstance(data, Mapping) else None
    title = where or (name if isinstance(name, str) else "unnamed")
    if not isinstance(data, Mapping) or not isinstance(name, str) or not isinstance(data.get("steps"), list):
        raise PlanError(title, ["a flow is {name: a string, steps: a list of steps}"])
    problems += [
        f"unknown key {key!r}{nearest(str(key), ('name', 'steps'))}"
        for key in data.keys() - {"name", "steps"}
    ]
    builder = Builder(name)
    reader = _Reader(builder, allow, problems)
    for i, step in enumerate(data["steps"]):
        reader.read(f"steps[{i}]", step)
    if problems:
        raise PlanError(title, problems)
    return builder.plan()


def _step(plan: Plan, node: Node, problems: list[str]) -> dict[str, Any]:
    origins = [f"{plan.nodes[p.node].name}{'.diverted' * (p.output == 'diverted')}" for p in node.inputs]
    if node.verb == "merge":
        return {"merge": origins, "id": node.name}
    body: dict[str, Any] = {}
    if node.verb == "requests":
        body["type"] = node.fn.__name__ if node.fn in PLAIN_TYPES.values() else _code(node, node.fn, problems)
    elif isinstance(node.fn, Spec):
        body |= _spec_data(node, node.fn, problems)
    elif node.verb != "reply":
        body |= _reference(node, node.fn, problems)
    body |= {name: value for name, value in _call_data(node, problems).items() if value is not None}
    if node.batch:
        body["batch"] = {"size": node.batch.size, "wait": node.batch.wait}
    body |= provision_data(node.provision)
    origin = origins if node.verb == "join" else origins[0] if origins else None
    return {node.verb: body, "id": node.name, **({"from": origin} if origin else {})}


def _spec_data(node: Node, spec: Any, problems: list[str]) -> dict[str, Any]:
    """The parts of an operator that is more than one function, without those that are as they are anyway."""
    found: dict[str, Any] = {}
    for part in fields(spec):
        value = getattr(spec, part.name)
        if part.name in NAMED and value is not None:
            found[part.name] = _reference(node, value, problems)
        elif isinstance(value, Window):
            found |= _spec_data(node, value, problems)
        elif isinstance(value, Plan):
            found[part.name] = [_step(value, inner, problems) for inner in value.nodes[1:-1]]
        elif value != part.default:
            found[part.name] = value
    return found


def _call_data(node: Node, problems: list[str]) -> dict[str, Any]:
    call, retry = node.call, None
    if call.retry:
        on = [
            e.__name__ if e.__module__ == "builtins" else f"{e.__module__}:{e.__name__}"
            for e in call.retry.on
        ]
        retry = {"attempts": call.retry.attempts, "backoff": call.retry.backoff, "on": on}
    on_error = None if call.on_error == "fail" else call.on_error
    return {
        "concurrency": call.concurrency,
        "order": call.order,
        "timeout": call.timeout,
        "retry": retry,
        "on_error": on_error,
        "cache": _spec_data(node, call.cache, problems) if call.cache is not None else None,
    }


def _reference(node: Node, fn: Any, problems: list[str]) -> dict[str, Any]:
    if isinstance(fn, Use):
        return {"use": fn.name, **({"with": dict(fn.params)} if fn.params else {})}
    if isinstance(fn, ServiceCall):
        return {"use": "service", "with": {"name": fn.name, **({"method": fn.method} if fn.method else {})}}
    if node.verb == "source" and isinstance(fn, list | tuple | range):
        return {"use": "items", "with": {"values": list(fn)}}
    return {"use": _code(node, fn, problems)}


def _code(node: Node, fn: Any, problems: list[str]) -> str:
    module, name = getattr(fn, "__module__", None), getattr(fn, "__qualname__", "")
    try:
        found = _attribute(import_module(module), name) if module and name else None
    except (ImportError, AttributeError):
        found = None
    if found is None or found is not fn:
        problems.append(
            f"{node.name!r} calls {fn!r}, which has no name to find it by: move it to the top level of a "
            "module, or register a factory and refer to it with use(...)"
        )
    return f"{module}:{name}"


def import_named(name: str, allow: tuple[str, ...]) -> Any:
    """What `module:qualname` names, if `allow` has it, or `module:*`. Raises BadRequestError."""
    module, _, qualname = name.partition(":")
    if name not in allow and f"{module}:*" not in allow:
        allowed = ", ".join(allow) or "nothing (`sage run --allow`, for jobs `jobs.code`)"
        raise BadRequestError(f"code named {name!r} is not allowed; allowed is {allowed}")
    try:
        return _attribute(import_module(module), qualname)
    except (ImportError, AttributeError) as error:
        raise BadRequestError(f"{name!r} cannot be imported: {error}") from error


def _attribute(target: Any, name: str) -> Any:
    for part in name.split("."):
        target = getattr(target, part)
    return target


def _seconds(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise BadRequestError(f"{name} is {value!r}, not a number of seconds")
    return float(value)


class _Reader:
    """Adds the steps of a document to a plan, noting whatever it cannot read."""

    def __init__(
        self, builder: Builder, allow: tuple[str, ...], problems: list[str], first: int | None = None
    ) -> None:
        self._builder = builder
        self._allow = allow
        self._problems = problems
        self._names = {} if first is None else {builder.nodes[first].name: first}
        self._last = first

    def read(self, at: str, step: Any) -> None:
        """Add one step."""
        verb = self._verb(at, step)
        if verb is None:
            return
        before = len(self._problems)
        inputs = self._inputs(at, verb, step)
        node = self._node(f"{at}.{verb}", verb, step[verb], str(step.get("id", "")), inputs)
        if len(self._problems) > before:
            # A stand-in keeps the names right, so that one mistake is reported once.
            node = Node(str(step.get("id", "")), verb, inputs)
        given = (node.fn, node.name, node.call, node.batch, node.provision)
        index = self._builder.add(verb, node.inputs, *given)
        self._names[self._builder.nodes[index].name] = index
        self._last = None if verb in ("sink", "reply") else index

    def _verb(self, at: str, step: Any) -> Verb | None:
        if not isinstance(step, Mapping):
            self._problems.append(f"{at} is {step!r}: a step is a mapping such as {{map: NAME}}")
            return None
        verbs = [verb for verb in VERBS if verb in step]
        extra = [str(key) for key in step if key not in (*VERBS, "id", "from")]
        if len(verbs) == 1 and not extra:
            return verbs[0]
        if extra:
            self._problems.extend(
                f"{at}: unknown key {key!r}{nearest(key, (*VERBS, 'id', 'from'))}" for key in extra
            )
        else:
            self._problems.append(
                f"{at} has {len(verbs)} verbs ({', '.join(verbs)}): one of {', '.join(VERBS)}"
            )
        return None

    def _inputs(self, at: str, verb: Verb, step: Mapping[str, Any]) -> tuple[Port, ...]:
        if verb in ("source", "requests"):
            if "from" in step:
                self._problems.append(f"{at}: a {verb} reads from nothing")
            return ()
        if verb == "join":
            return self._pair(at, step.get("from"))
        wanted = step["merge"] if verb == "merge" else [step["from"]] if "from" in step else None
        if wanted is not None and not isinstance(wanted, list):
            self._problems.append(f"{at}.merge lists the steps to join, it is not {wanted!r}")
            return ()
        if wanted is None:
            if self._last is None:
                self._problems.append(f"{at}: no step before it has an output: say which one with 'from'")
                return ()
            return (Port(self._last),)
        return tuple(port for name in wanted if (port := self._port(at, str(name))))

    def _pair(self, at: str, wanted: Any) -> tuple[Port, ...]:
        if not isinstance(wanted, list) or len(wanted) != 2:
            self._problems.append(f"{at}: a join reads two steps: from: [LEFT, RIGHT], not {wanted!r}")
            return ()
        return tuple(port for name in wanted if (port := self._port(at, str(name))))

    def _port(self, at: str, name: str) -> Port | None:
        if name in self._names:
            return Port(self._names[name])
        bare = name.removesuffix(".diverted")
        if bare in self._names:
            return Port(self._names[bare], "diverted")
        self._problems.append(f"{at}: no step above has the id {bare!r}{nearest(bare, self._names)}")
        return None

    def _node(self, at: str, verb: Verb, body: Any, name: str, inputs: tuple[Port, ...]) -> Node:
        if verb == "merge":
            return Node(name, verb, inputs)
        if isinstance(body, str) and "use" in OPTIONS[verb]:
            body = {"use": body}
        if not isinstance(body, Mapping | None):
            self._problems.append(f"{at} is {body!r}: it is a mapping, or the name of an operator")
            return Node(name, verb, inputs)
        body = body or {}
        for key in body:
            if key not in OPTIONS[verb]:
                self._problems.append(f"{at}: unknown option {key!r}{nearest(str(key), OPTIONS[verb])}")
        try:
            fn = self._fn(at, verb, body)
            batch = (
                Batch(**known("batch", body.get("batch", {}), ("size", "wait")))
                if verb == "map_batch"
                else None
            )
            return Node(name, verb, inputs, fn, self._call(verb, body), batch, read_provision(body))
        except (BadRequestError, TypeError) as error:
            self._problems.append(f"{at}: {error}")
            return Node(name, verb, inputs)

    def _call(self, verb: Verb, body: Mapping[str, Any]) -> Call:
        # A gate has a timeout too, which is its own and not that of a call.
        given = {name: body[name] for name in CALL if name in body and name not in REQUIRED.get(verb, ())}
        for name, kinds in (("concurrency", (int,)), ("timeout", (int, float))):
            if name in given and (not isinstance(given[name], kinds) or isinstance(given[name], bool)):
                raise BadRequestError(f"{name} is {given[name]!r}, not a number")
        if "retry" in given:
            retry = known("retry", given["retry"], ("attempts", "backoff", "on"))
            if "on" in retry:
                retry["on"] = tuple(self._error(str(text)) for text in retry["on"])
            given["retry"] = Retry(**retry)
        if "cache" in given:
            cache = known("cache", given["cache"], CACHE)
            if "key" in cache:
                cache["key"] = self._referred("cache.key", cache["key"])
            given["cache"] = Cache(**cache)
        return Call(**given)

    def _fn(self, at: str, verb: Verb, body: Mapping[str, Any]) -> Any:
        if verb == "requests":
            kind = str(body.get("type", "object"))
            return PLAIN_TYPES.get(kind) or import_named(kind, self._allow)
        if verb == "reply":
            return None
        if verb in REQUIRED:
            return self._spec(at, verb, body)
        return self._referred(at, body)

    def _spec(self, at: str, verb: Verb, body: Mapping[str, Any]) -> Any:
        """The parts of an operator that is more than one function."""
        given: dict[str, Any] = {}
        for name in OPTIONS[verb]:
            if name in NAMED and (name in body or name in REQUIRED[verb]):
                given[name] = self._referred(f"{at}.{name}", body.get(name))
            elif name in REQUIRED[verb] or (name not in CALL and name in body):
                given[name] = self._part(at, name, body.get(name))
        if verb == "window":
            window = Window(**{name: given.pop(name) for name in WINDOW if name in given})
            return WindowFold(window, **given)
        kinds: dict[str, Any] = {"scan": Fold, "event_time": EventTime, "join": Join}
        return (kinds | {"iterate": Iterate, "gate": Gate})[verb](**given)

    def _part(self, at: str, name: str, value: Any) -> Any:
        if name == "body":
            return self._body(f"{at}.body", value)
        if name in COUNTS and (not isinstance(value, int) or isinstance(value, bool)):
            raise BadRequestError(f"{name} is {value!r}, not a whole number")
        if name in WORDS and not isinstance(value, str):
            raise BadRequestError(f"{name} is {value!r}, not a text")
        return value if name in (*COUNTS, *WORDS) else _seconds(name, value)

    def _body(self, at: str, steps: Any) -> Plan:
        """What a loop goes round."""
        if not isinstance(steps, list) or not steps:
            raise BadRequestError(f"body is {steps!r}: it is a list of steps, at least one")
        builder = Builder("iterate")
        reader = _Reader(builder, self._allow, self._problems, builder.add("requests", (), object, "round"))
        for i, step in enumerate(steps):
            reader.read(f"{at}[{i}]", step)
        if reader._last is None:
            raise BadRequestError("the last step of its body gives nothing back, and it goes round")
        builder.add("reply", (Port(reader._last),))
        return builder.plan()

    def _referred(self, at: str, body: Any) -> Any:
        body = {"use": body} if isinstance(body, str) else body
        if not isinstance(body, Mapping) or not isinstance(body.get("use"), str):
            raise BadRequestError(f"{at} names no operator: say use: NAME")
        name, params = body["use"], body.get("with", {})
        if not isinstance(params, Mapping):
            raise BadRequestError(f"'with' is {params!r}: it is a mapping of parameters")
        if ":" not in name:
            return Use(name, dict(params))
        if params:
            raise BadRequestError(f"{name!r} is code, which takes no 'with'; a registered factory does")
        return import_named(name, self._allow)

    def _error(self, name: str) -> type[Exception]:
        module, _, qualname = name.rpartition(":")
        found = getattr(builtins if not module else import_module(ERRORS), qualname, None)
        if module not in ("", ERRORS):
            found = import_named(name, self._allow)
        if not (isinstance(found, type) and issubclass(found, Exception)):
            raise BadRequestError(f"retry.on has {name!r}, which is no exception")
        return found
