"""Clocks, windows and joins as plain data."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from sage.kernel import (
    Flow,
    LocalEnvironment,
    Pane,
    PlanError,
    Registry,
    Window,
    flow_schema,
    parse_yaml,
    use,
)

HERE = __name__


def at_of(x: int) -> float:
    return float(x)


def key_of(x: int) -> int:
    return x % 2


def count(state: int, _: Any) -> int:
    return state + 1


def both(one: int, other: int) -> int:
    return one + other


def everything() -> Flow:
    flow = Flow("times")
    numbers = flow.source([1, 0, 2], name="numbers").event_time(at_of, lateness=2.5, name="clock")
    keyed = numbers.keyby(key_of)
    keyed.window(Window(10, slide=5, late=1, on_late="divert")).reduce(int, count, name="panes").sink(
        use("stdout"), name="out"
    )
    keyed.window(Window(gap=3)).reduce(int, count, merge=both, on_error="skip").sink(use("stdout"))
    keyed.join(keyed, within=4.0, on_late="fail", name="pairs").sink(use("stdout"))
    return flow


def test_a_plan_with_times_survives_the_round_trip_and_fits_the_schema() -> None:
    data = everything().to_dict()
    jsonschema.validate(data, flow_schema())
    again = Flow.from_dict(data, allow=(f"{HERE}:*", "builtins:int"))
    assert again.to_dict() == data
    assert [node.fn for node in again.plan.nodes[1:]][:2] == [
        node.fn for node in everything().plan.nodes[1:]
    ][:2]
    assert [n.inputs for n in again.plan.nodes] == [n.inputs for n in everything().plan.nodes]


YAML = f"""
name: counts
steps:
  - source: {{use: items, with: {{values: [1, 12, 3, 25]}}}}
  - event_time: {{at: "{HERE}:at_of", lateness: 10}}
    id: clock
  - window: {{key: "{HERE}:key_of", size: 10, init: "builtins:int", step: "{HERE}:count"}}
  - sink: {{use: collected}}
  - join: {{left: "{HERE}:key_of", right: "{HERE}:key_of", within: 1}}
    from: [clock, clock]
  - sink: {{use: collected}}
"""


def test_a_yaml_pipeline_with_windows_and_a_join_runs() -> None:
    out: list[Any] = []
    registry = Registry(entry_points=False)
    registry.register("collected", lambda: out.append, role="sink")
    flow = parse_yaml(YAML, allow=(f"{HERE}:*", "builtins:int"))
    LocalEnvironment(registry=registry).run_sync(flow)
    panes = [one for one in out if isinstance(one, Pane)]
    assert panes == [Pane(1, 0, 10, 2), Pane(0, 10, 20, 1), Pane(1, 20, 30, 1)]
    assert sorted(one for one in out if not isinstance(one, Pane)) == [(1, 1), (3, 3), (12, 12), (25, 25)]


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ({"event_time": {"at": f"{HERE}:at_of", "lateness": "soon"}}, "lateness is 'soon', not a number"),
        ({"event_time": {}}, "names no operator: say use: NAME"),
        ({"window": {"key": f"{HERE}:key_of", "size": 1, "gap": 1}}, "names no operator"),
        ({"join": {"left": f"{HERE}:key_of", "right": f"{HERE}:key_of"}}, "a join reads two steps"),
        (
            {"join": {"left": f"{HERE}:key_of", "right": f"{HERE}:key_of"}, "from": ["n", "n"]},
            "within is None, not a number of seconds",
        ),
    ],
)
def test_what_a_document_gets_wrong_is_told(step: dict[str, Any], told: str) -> None:
    first = {"source": {"use": "items", "with": {"values": [1]}}, "id": "n"}
    with pytest.raises(PlanError) as caught:
        Flow.from_dict({"name": "bad", "steps": [first, step]}, allow=(f"{HERE}:*",))
    assert told in str(caught.value)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"name": "bad", "steps": [first, step]}, flow_schema())
