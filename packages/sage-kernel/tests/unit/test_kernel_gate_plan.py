"""Gates as plans: what is refused, drawn and written."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from sage.kernel import Flow, PlanError, flow_schema, parse_yaml, use

HERE = __name__


def large(x: int) -> bool:
    return x > 9


def gated(**options: Any) -> Flow:
    flow = Flow("gated")
    settings: dict[str, Any] = {"inbox": "desk", "when": large, "timeout": 60, **options}
    flow.source([1]).gate(settings.pop("inbox"), **settings).sink(print)
    return flow


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"inbox": " "}, "names no inbox"),
        ({"when": 3}, "'desk' needs a function as when, not 3"),
        ({"timeout": 0}, "'desk' has timeout=0: it is more than 0 seconds, and finite"),
        ({"timeout": float("inf")}, "'desk' has timeout=inf"),
        ({"on_timeout": "wait"}, "on_timeout='wait': it is 'reject' or 'approve'"),
        ({"limit": 0}, "'desk' has limit=0"),
        ({"on_error": "divert"}, "'desk' diverts and nothing reads its .diverted"),
        ({"when": use("nowhere")}, "no function operator is named 'nowhere'"),
    ],
)
def test_a_gate_that_cannot_work_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(PlanError) as caught:
        gated(**options).check()
    assert told in str(caught.value)


def test_an_inbox_belongs_to_one_gate() -> None:
    flow = Flow("two")
    numbers = flow.source([1]).gate("desk", timeout=1)
    numbers.iterate(lambda s: s.gate("desk", timeout=1), until=large, max_rounds=1).sink(print)
    with pytest.raises(PlanError, match="2 gates use the inbox 'desk'"):
        flow.check()


def test_a_gate_is_drawn_with_its_outcome() -> None:
    assert '  n1{{"gate desk<br/>reject after 60 s"}}' in gated().explain().splitlines()


def test_a_gate_survives_the_round_trip_and_fits_the_schema() -> None:
    flow = Flow("gates")
    asked = flow.requests(int, name="asks").gate(
        "desk", when=large, timeout=90.5, on_timeout="approve", limit=5, on_error="divert", name="gate"
    )
    asked.diverted.sink(use("stdout"), name="lost")
    flow.reply(asked.gate("other", timeout=1.0, name="second"), name="answer")
    flow.check()
    data = flow.to_dict()
    assert data["steps"][1]["gate"] == {
        "inbox": "desk",
        "timeout": 90.5,
        "when": {"use": f"{HERE}:large"},
        "on_timeout": "approve",
        "limit": 5,
        "on_error": "divert",
    }
    assert data["steps"][3]["gate"] == {"inbox": "other", "timeout": 1.0}
    jsonschema.validate(data, flow_schema())
    again = Flow.from_dict(data, allow=(f"{HERE}:*",))
    assert again.plan == flow.plan


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ("{timeout: 1}", "inbox is None, not a text"),
        ("{inbox: desk}", "timeout is None, not a number of seconds"),
        ("{inbox: desk, timeout: soon}", "timeout is 'soon', not a number of seconds"),
        ("{inbox: desk, timeout: 1, limit: 1.5}", "limit is 1.5, not a whole number"),
        ("{inbox: desk, timeout: 1, whenn: x}", "unknown option 'whenn'; did you mean 'when'?"),
    ],
)
def test_what_a_document_gets_wrong_is_told(step: str, told: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_yaml(f"{{name: bad, steps: [{{requests: {{}}}}, {{gate: {step}}}, {{reply: {{}}}}]}}")
    assert told in str(caught.value)
