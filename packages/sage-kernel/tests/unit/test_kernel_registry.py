"""Operators by name, and plans as plain data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest

from sage.common.errors import BadRequestError, NotFoundError, OverloadedError
from sage.kernel import (
    Batch,
    Flow,
    LocalEnvironment,
    PlanError,
    Registry,
    Retry,
    default_registry,
    flow_schema,
    load_yaml,
    operator,
    parse_yaml,
    use,
)
from sage.kernel.registry import Operator


def scale(
    factor: float, *, name: str = "x", mode: Literal["up", "down"] = "up", at: Path | None = None
) -> Any:
    return lambda x: (x * factor, name, mode, at)


class Adder:
    def __init__(self, amounts: list[int]) -> None:
        self.amounts = amounts

    def __call__(self, x: int) -> int:
        return x + sum(self.amounts)


def key_of(x: int) -> int:
    return x % 2


def count(state: int, x: int) -> tuple[int, int]:
    return state + 1, state + 1


async def wait(x: int) -> int:
    return x


def wait_all(xs: Any) -> Any:
    return xs


HERE = __name__


def test_parameters_fit_the_signature() -> None:
    made = Operator("scale", scale).bind({"factor": 2, "at": "a/b"})
    assert made == {"factor": 2.0, "at": Path("a/b")}
    assert isinstance(made["factor"], float)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, "parameter 'factor' is missing"),
        ({"factr": 1}, "unknown parameter 'factr'; did you mean 'factor'?"),
        ({"factor": "2"}, "parameter 'factor' is '2' (str), not float"),
        ({"factor": True}, "not float"),
        ({"factor": 1, "mode": "left"}, "not one of 'up', 'down'"),
        ({"factor": 1, "at": 3}, "not Path or null"),
    ],
)
def test_parameters_that_do_not_fit(params: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        Operator("scale", scale).bind(params)
    assert said in str(caught.value)


def test_every_parameter_problem_is_named_and_lists_are_checked() -> None:
    with pytest.raises(BadRequestError, match=r"unknown parameter 'x'.*'amounts' is missing"):
        Operator("add", Adder).bind({"x": 1})
    with pytest.raises(BadRequestError, match="'two'"):
        Operator("add", Adder).bind({"amounts": [1, "two"]})
    assert Operator("add", Adder).make({"amounts": [1, 2]})(1) == 4


def test_an_unknown_name_lists_what_there_is() -> None:
    registry = Registry(entry_points=False)
    with pytest.raises(
        NotFoundError, match=r"did you mean 'files'\?; there are: csv, files, http, .*, sql\."
    ):
        registry.get("file", "source")
    with pytest.raises(NotFoundError, match="'stdout' is a sink"):
        registry.get("stdout", "source")
    assert registry.names("sink")[-2:] == ["sql", "stdout"]


def test_installed_operators_are_found_by_entry_point() -> None:
    assert set(Registry(entry_points=False).names("function")) <= set(Registry().names("function"))


async def test_a_decorated_factory_is_used_by_name() -> None:
    @operator("test.double")
    def double() -> Any:
        return lambda x: 2 * x

    assert default_registry().names("function").count("test.double") == 1
    out: list[int] = []
    flow = Flow("named")
    flow.source(use("items", values=[1, 2])).map(use("test.double")).sink(out.append)
    await LocalEnvironment().run(flow)
    assert out == [2, 4]


def test_check_reports_named_operators_with_the_rest() -> None:
    flow = Flow("unknown")
    flow.source(use("items")).map(use("nowhere.op"), name="mine")
    with pytest.raises(PlanError) as caught:
        flow.check(Registry(entry_points=False))
    text = str(caught.value)
    assert "parameter 'values' is missing" in text
    assert "'mine': no function operator is named 'nowhere.op'" in text
    assert "no sink" in text


def everything() -> Flow:
    flow = Flow("all")
    numbers = flow.source([1, 0, 2], name="numbers")
    mapped = numbers.map(
        wait,
        concurrency=3,
        order="input",
        timeout=2.5,
        retry=Retry(2, 0.1, (TimeoutError, OverloadedError)),
        on_error="divert",
    )
    scanned = mapped.keyby(key_of).scan(int, count)
    batched = scanned.map_batch(wait_all, Batch(8, 0.5), on_error="skip")
    batched.merge(numbers, name="both").flatmap(use("spread", n=2)).filter(key_of).sink(use("stdout"))
    mapped.diverted.sink(use("jsonl", path="bad.jsonl"), name="bad")
    return flow


def test_a_plan_survives_the_round_trip_and_fits_the_schema() -> None:
    data = everything().to_dict()
    jsonschema.validate(data, flow_schema())
    again = Flow.from_dict(data, allow=(f"{HERE}:*", "builtins:int"))
    assert again.to_dict() == data
    assert again.plan.nodes[1] == everything().plan.nodes[1]
    assert [n.inputs for n in again.plan.nodes] == [n.inputs for n in everything().plan.nodes]


def test_a_service_survives_the_round_trip() -> None:
    flow = Flow("svc")
    flow.reply(flow.requests(int).map(wait))
    data = flow.to_dict()
    jsonschema.validate(data, flow_schema())
    assert Flow.from_dict(data, allow=(f"{HERE}:wait",)).to_dict() == data


def test_code_without_a_name_cannot_travel() -> None:
    flow = Flow("lambda")
    flow.source(x for x in [1]).map(lambda x: x).sink(print)
    with pytest.raises(PlanError) as caught:
        flow.to_dict()
    assert len(caught.value.problems) == 2
    assert "move it to the top level of a module" in str(caught.value)


def test_code_is_imported_only_when_allowed() -> None:
    data = {"name": "x", "steps": [{"source": "items"}, {"map": "os:system"}, {"sink": "stdout"}]}
    with pytest.raises(PlanError, match="'os:system' is not allowed; allowed is nothing"):
        Flow.from_dict(data)
    with pytest.raises(PlanError, match="cannot be imported"):
        Flow.from_dict({**data, "steps": [{"source": "no_such_module:x"}]}, allow=("no_such_module:*",))


async def test_a_yaml_pipeline_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry = Registry(entry_points=False)
    registry.register("upper", lambda: str.upper)
    registry.register("words", lambda: str.split)
    registry.register("text", lambda: lambda doc: doc.text)
    registry.register("size", lambda: lambda xs: [{"word": x, "size": len(x)} for x in xs])
    registry.register("long", lambda n: lambda x: len(x) > n)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("to be or not")
    out = tmp_path / "out.jsonl"
    file = tmp_path / "p.yaml"
    file.write_text(
        f"""
name: words
steps:
  - source: {{use: files, with: {{folder: {tmp_path / "in"}, glob: "*.txt"}}}}
  - map: text
  - flatmap: words
    id: words
  - map: upper
  - filter: {{use: long, with: {{n: 2}}}}
  - map_batch: {{use: size, batch: {{size: 2}}}}
  - sink: {{use: jsonl, with: {{path: {out}}}}}
  - map: {{use: upper}}
    from: words
  - sink: stdout
"""
    )
    report = await LocalEnvironment(registry=registry).run(load_yaml(file))
    assert out.read_text() == '{"word": "NOT", "size": 3}\n'
    assert capsys.readouterr().out == '"TO"\n"BE"\n"OR"\n"NOT"\n'
    assert report["words"].items_out == 4


def test_yaml_mistakes_are_listed_with_their_places() -> None:
    text = """
name: bad
stepz: 1
steps:
  - source: {use: items, wiht: {}}
  - map: {use: x, concurency: 3, retry: {atempts: 2}}
  - map: 5
  - mapp: x
  - map: x
    from: nowhere
  - sink: stdout
  - sink: stdout
  - {map: a, filter: b}
  - merge: x
  - just text
"""
    with pytest.raises(PlanError) as caught:
        parse_yaml(text, where="bad.yaml")
    said = "\n".join(caught.value.problems)
    for expected in (
        "unknown key 'stepz'; did you mean 'steps'?",
        "steps[0].source: unknown option 'wiht'; did you mean 'with'?",
        "steps[1].map: unknown option 'concurency'; did you mean 'concurrency'?",
        "steps[1].map: retry: unknown key 'atempts'; did you mean 'attempts'?",
        "steps[2].map is 5",
        "steps[3]: unknown key 'mapp'; did you mean 'map'?",
        "steps[4]: no step above has the id 'nowhere'",
        "steps[6]: no step before it has an output",
        "steps[7] has 2 verbs",
        "steps[8].merge lists the steps to join",
        "steps[9] is 'just text'",
    ):
        assert expected in said
    assert "bad.yaml" in str(caught.value)


def test_yaml_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(BadRequestError, match=r"p.yaml:1:\d+: not YAML"):
        parse_yaml("a: [", where="p.yaml")
    with pytest.raises(BadRequestError, match="not YAML"):
        parse_yaml("a: !!python/object:os.system {}", where="p.yaml")
    with pytest.raises(NotFoundError, match=r"missing.yaml' does not exist"):
        load_yaml(tmp_path / "missing.yaml")
    with pytest.raises(PlanError, match="a flow is"):
        parse_yaml("- 1")


@pytest.mark.parametrize(
    "step",
    [
        {"map": {"use": "x", "concurrency": 0}},
        {"map": {}},
        {"map": "x", "filter": "y"},
        {"merge": []},
        {"scan": {"key": "a"}},
        {"sink": {"use": "x", "on_error": "skip"}},
        {"source": "x", "from": "y"},
    ],
)
def test_the_schema_refuses_what_is_wrong(step: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"name": "x", "steps": [step]}, flow_schema())
