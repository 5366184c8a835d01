"""Every rule that a plan must keep: those of `plan`, and those of loops, gates, caches and kept state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import isfinite

from sage.kernel.options import Use
from sage.kernel.plan import Fold, Gate, Iterate, Node, Plan

__all__ = ["problems"]


def problems(plan: Plan) -> list[str]:
    """Everything that is wrong with a plan, and with the bodies of its loops, without running anything."""
    return [*_rules(plan), *_inboxes(plan)]


def _rules(plan: Plan) -> Iterator[str]:
    yield from plan.problems()
    for index, node in enumerate(plan.nodes):
        if isinstance(node.fn, Iterate):
            yield from _iterate(node, node.fn)
            if node.fn.on_rounds == "divert" and not plan.readers(index, "diverted"):
                yield f"{node.name!r} diverts what runs out of rounds and nothing reads its .diverted"
        elif isinstance(node.fn, Gate):
            yield from _gate(node, node.fn)
        elif isinstance(node.fn, Fold) and not node.fn.ttl >= 0:
            yield f"{node.name!r} has ttl={node.fn.ttl:g}: it is at least 0 seconds, and 0 keeps all state"
        if node.call.cache is not None and node.call.cache.key is not None:
            yield from _called(node, "cache.key", node.call.cache.key)


def _iterate(node: Node, spec: Iterate) -> Iterator[str]:
    yield from _called(node, "until", spec.until)
    if spec.max_rounds < 1:
        yield f"{node.name!r} has max_rounds={spec.max_rounds}: it is at least 1"
    if spec.on_rounds not in ("fail", "emit", "divert"):
        yield f"{node.name!r} has on_rounds={spec.on_rounds!r}: it is 'fail', 'emit' or 'divert'"
    inside = f"in the body of {node.name!r}"
    *steps, end = spec.body.nodes
    if len(steps) < 2:
        yield f"{inside} is nothing to do: it gives the stream that it was given"
    elif any(port.output == "diverted" for port in end.inputs):
        yield f"{inside}: what goes round is a .diverted stream: merge it with the others first"
    for inner in spec.body.nodes:
        if inner.verb == "scan":
            yield (
                f"{inside}: {inner.name!r} keeps state, which a record that begins its rounds again after a "
                "restart would change twice: put the scan before or behind the loop"
            )
        elif inner.verb == "sink":
            yield f"{inside}: {inner.name!r} is a sink: end the stream that leaves the loop with it"
        elif inner.verb == "flatmap":
            yield f"{inside}: {inner.name!r} is a flatmap: a record that goes round stays one record"
    # What its own rules say of a flatmap or of event times is said in the terms of requests.
    said = ("is a flatmap before the reply", "a flow of requests has no event times")
    yield from (f"{inside}: {text}" for text in _rules(spec.body) if not any(s in text for s in said))
    for inner in spec.body.nodes:
        if inner.verb in ("event_time", "window", "join"):
            yield f"{inside}: {inner.name!r} needs event times, which a record has outside of the loop only"


def _gate(node: Node, spec: Gate) -> Iterator[str]:
    if spec.when is not None:
        yield from _called(node, "when", spec.when)
    if not spec.inbox.strip():
        yield f"{node.name!r} names no inbox: that is where its records are found and decided on"
    if not (spec.timeout > 0 and isfinite(spec.timeout)):
        yield f"{node.name!r} has timeout={spec.timeout:g}: it is more than 0 seconds, and finite"
    if spec.on_timeout not in ("reject", "approve"):
        yield f"{node.name!r} has on_timeout={spec.on_timeout!r}: it is 'reject' or 'approve'"
    if spec.limit < 1:
        yield f"{node.name!r} has limit={spec.limit}: at least 1 record must find room, and none are endless"


def _called(node: Node, what: str, fn: object) -> Iterator[str]:
    if not (isinstance(fn, Use) or callable(fn)):
        yield f"{node.name!r} needs a function as {what}, not {fn!r}"


def _inboxes(plan: Plan) -> Iterator[str]:
    for inbox, times in Counter(_inbox_names(plan)).items():
        if times > 1:
            yield f"{times} gates use the inbox {inbox!r}: each has one of its own"


def _inbox_names(plan: Plan) -> Iterator[str]:
    for node in plan.nodes:
        if isinstance(node.fn, Gate):
            yield node.fn.inbox
        elif isinstance(node.fn, Iterate):
            yield from _inbox_names(node.fn.body)
