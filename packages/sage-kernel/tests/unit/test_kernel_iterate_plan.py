"""Loops as plans: what is refused, drawn and written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jsonschema
import pytest

from sage.kernel import (
    Failure,
    Flow,
    LocalEnvironment,
    PlanError,
    Registry,
    Stream,
    Window,
    flow_schema,
    parse_yaml,
    use,
)
from sage.kernel.compile import compile_plan

HERE = __name__


def halved(x: int) -> int:
    return x // 2


async def wait(x: int) -> int:
    return x


def small(x: int) -> bool:
    return x < 2


def looped(body: Callable[[Any], Any], **options: Any) -> Flow:
    flow = Flow("looped")
    settings: dict[str, Any] = {"until": small, "max_rounds": 3, **options}
    flow.source([5]).iterate(body, **settings).sink(print)
    return flow


def counted(s: Stream[Any]) -> Stream[Any]:
    return s.keyby(halved).scan(int, lambda n, x: (n + 1, x))


def sunk(s: Stream[Any]) -> Stream[Any]:
    s.sink(print)
    return s.map(halved)


def sourced(s: Stream[Any]) -> Stream[Any]:
    return s.merge(cast(Flow, s.flow).source([1]))


@pytest.mark.parametrize(
    ("body", "options", "told"),
    [
        (lambda s: s.map(halved), {"max_rounds": 0}, "'iterate' has max_rounds=0: it is at least 1"),
        (lambda s: s.map(halved), {"until": 3}, "'iterate' needs a function as until, not 3"),
        (
            lambda s: s.map(halved),
            {"on_rounds": "stop"},
            "on_rounds='stop': it is 'fail', 'emit' or 'divert'",
        ),
        (
            lambda s: s.map(halved),
            {"on_rounds": "divert"},
            "diverts what runs out of rounds and nothing reads",
        ),
        (lambda s: s, {}, "in the body of 'iterate' is nothing to do"),
        (counted, {}, "in the body of 'iterate': 'scan' keeps state"),
        (sunk, {}, "in the body of 'iterate': 'print' is a sink"),
        (sourced, {}, "in the body of 'iterate': it has requests and a source"),
        (lambda s: s.flatmap(lambda x: [x]), {}, "is a flatmap: a record that goes round stays one record"),
        (lambda s: s.event_time(float), {}, "needs event times, which a record has outside of the loop only"),
        (
            lambda s: s.keyby(halved).window(Window(1)).collect(),
            {},
            "which a record has outside of the loop only",
        ),
        (lambda s: s.map(3), {}, "in the body of 'iterate': 'int' needs something to call, not 3"),
        (lambda s: s.map(wait, concurrency=0), {}, "in the body of 'iterate': 'wait' has concurrency=0"),
        (lambda s: s.map(halved, on_error="divert"), {}, "'halved' diverts and nothing reads its .diverted"),
        (lambda s: s.map(halved, on_error="divert").diverted, {}, "what goes round is a .diverted stream"),
        (lambda s: s.map(use("nowhere")), {}, "no function operator is named 'nowhere'"),
        (lambda s: s.map(halved), {"until": use("nowhere")}, "no function operator is named 'nowhere'"),
    ],
)
def test_a_body_that_cannot_go_round_is_refused(
    body: Callable[[Any], Any], options: dict[str, Any], told: str
) -> None:
    with pytest.raises(PlanError) as caught:
        looped(body, **options).check()
    assert told in str(caught.value)
    assert len(caught.value.problems) == len(set(caught.value.problems))


def test_misuse_in_a_body_is_found_before_the_run() -> None:
    with pytest.raises(PlanError, match="'iterate/halved' calls a sync function, for which timeout"):
        LocalEnvironment().check(looped(lambda s: s.map(halved, timeout=1)))
    numbers = Flow("looped").source([1])
    with pytest.raises(PlanError, match="a stream of flow 'looped' is used here"):
        numbers.iterate(lambda s: numbers, until=small, max_rounds=1)


def test_two_loops_may_have_one_body() -> None:
    flow = Flow("twice")
    numbers = flow.source([9])
    for name in ("one", "other"):
        numbers.iterate(lambda s: s.map(halved), until=small, max_rounds=9, name=name).sink(print)
    flow.check()
    names = [op.node.name for op in compile_plan(flow.plan, Registry()).all_ops]
    assert names.count("one/halved") == names.count("other/halved") == 1
    same = looped(lambda s: s.map(halved, name="a").map(halved, name="a"))
    with pytest.raises(PlanError, match="in the body of 'iterate': 2 operators are named 'a'"):
        same.check()


def test_a_loop_is_drawn_as_a_subgraph() -> None:
    flow = looped(lambda s: s.map(halved).map(wait), name="agent")
    assert flow.explain().splitlines() == [
        "flowchart LR",
        '  n0(["source"])',
        '  subgraph n1["iterate agent"]',
        '    n1_0(["round"])',
        '    n1_1["map halved"]',
        '    n1_2["map wait"]',
        '    n1_3[("until small")]',
        "    n1_0 --> n1_1",
        "    n1_1 --> n1_2",
        "    n1_2 --> n1_3",
        "    n1_3 -. at most 3 rounds .-> n1_0",
        "  end",
        '  n2[("sink print")]',
        "  n0 --> n1",
        "  n1 --> n2",
    ]


def rescued(failure: Failure[Any]) -> int:
    return int(failure.item)


def both(s: Stream[int]) -> Stream[int]:
    tried = s.map(halved, on_error="divert", name="try")
    inner = tried.iterate(lambda t: t.map(wait, concurrency=2), until=small, max_rounds=1, name="inner")
    return inner.merge(s.filter(small), tried.diverted.map(rescued), name="all")


def test_a_plan_with_loops_survives_the_round_trip_and_fits_the_schema() -> None:
    flow = Flow("loops")
    stream = flow.source([5], name="numbers").iterate(
        both,
        until=small,
        max_rounds=4,
        on_rounds="divert",
        concurrency=9,
        order="input",
        timeout=5,
        name="outer",
    )
    stream.sink(use("stdout"), name="out")
    stream.diverted.sink(use("stdout"), name="over")
    flow.check()
    data = flow.to_dict()
    jsonschema.validate(data, flow_schema())
    again = Flow.from_dict(data, allow=(f"{HERE}:*",))
    assert again.to_dict() == data
    again.check()
    assert again.plan.nodes[1].fn.body.nodes[1:] == flow.plan.nodes[1].fn.body.nodes[1:]


YAML = f"""
name: down
steps:
  - source: {{use: items, with: {{values: [9, 1, 6]}}}}
  - iterate:
      until: "{HERE}:small"
      max_rounds: 9
      order: input
      body:
        - filter: {{use: parity, with: {{odd: true}}}}
        - map: "{HERE}:halved"
          id: odds
        - filter: {{use: parity, with: {{odd: false}}}}
          from: round
        - map: "{HERE}:halved"
        - map: "{HERE}:wait"
          id: evens
        - merge: [odds, evens]
  - sink: {{use: collected}}
"""


def test_a_loop_in_yaml_runs() -> None:
    out: list[Any] = []
    registry = Registry(entry_points=False)
    registry.register("collected", lambda: out.append, role="sink")
    flow = parse_yaml(YAML, allow=(f"{HERE}:*",))
    with pytest.raises(PlanError, match="no function operator is named 'parity'"):
        LocalEnvironment(registry=registry).run_sync(flow)
    registry.register("parity", lambda odd: lambda x: x % 2 == odd)
    LocalEnvironment(registry=registry).run_sync(flow)
    assert out == [1, 0, 1]


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ({"until": f"{HERE}:small", "max_rounds": 2}, "body is None: it is a list of steps"),
        ({"until": f"{HERE}:small", "max_rounds": 2, "body": []}, "body is []: it is a list of steps"),
        (
            {"until": f"{HERE}:small", "max_rounds": "many", "body": [{"map": f"{HERE}:halved"}]},
            "max_rounds is 'many', not a whole number",
        ),
        ({"max_rounds": 2, "body": [{"map": f"{HERE}:halved"}]}, "names no operator: say use: NAME"),
        ({"until": f"{HERE}:small", "max_rounds": 2, "body": [{"mop": "x"}]}, "body[0]: unknown key 'mop'"),
        (
            {"until": f"{HERE}:small", "max_rounds": 1, "body": [{"map": f"{HERE}:halved"}], "retry": {}},
            "unknown option 'retry'",
        ),
    ],
)
def test_what_a_document_gets_wrong_is_told(step: dict[str, Any], told: str) -> None:
    data = {
        "name": "bad",
        "steps": [{"source": {"use": "items", "with": {"values": [1]}}}, {"iterate": step}],
    }
    with pytest.raises(PlanError) as caught:
        Flow.from_dict(data, allow=(f"{HERE}:*",))
    assert told in str(caught.value)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, flow_schema())


def test_the_last_step_of_a_body_gives_something_back() -> None:
    body = [{"map": f"{HERE}:halved"}, {"sink": "stdout"}]
    steps = [
        {"source": {"use": "items", "with": {"values": [1]}}},
        {"iterate": {"until": f"{HERE}:small", "max_rounds": 1, "body": body}},
    ]
    with pytest.raises(PlanError, match="the last step of its body gives nothing back"):
        Flow.from_dict({"name": "bad", "steps": steps}, allow=(f"{HERE}:*",))
