"""Services: what the operators of a run share by name."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import Any

import jsonschema
import pytest

from sage.common.errors import NotFoundError, UsageError
from sage.kernel import (
    Batch,
    Flow,
    LocalEnvironment,
    OperatorError,
    PlanError,
    Registry,
    call_service,
    flow_schema,
    parse_yaml,
    use,
)

LOG: list[str] = []


class Store:
    """A store of words that counts its lives."""

    def __init__(self) -> None:
        self.words = {"a": "alpha", "b": "beta"}

    async def setup(self) -> None:
        LOG.append("setup")

    async def find(self, key: str) -> str:
        await asyncio.sleep(0)
        return self.words[key]

    def size(self, _: object) -> int:
        return len(self.words)

    def __call__(self, key: str) -> str:
        return self.words[key].upper()

    def close(self) -> None:
        LOG.append("close")


find = call_service("store", Store.find)
size = call_service("store", Store.size)


async def longer(key: str) -> str:
    return f"{key}={await find(key)}"


@pytest.fixture(autouse=True)
def empty_log() -> None:
    LOG.clear()


def environment(**options: Any) -> LocalEnvironment:
    env = LocalEnvironment(**options)
    env.register_service("store", Store)
    return env


async def test_operators_share_what_is_set_up_and_closed_once() -> None:
    flow = Flow("words")
    out: list[Any] = []
    words = flow.source(["a", "b"])
    words.map(longer, order="input").sink(out.append)
    words.map(find, order="input").map(str.upper).sink(out.append)
    words.map(size).sink(out.append)
    words.map(call_service("store"), order="input").sink(out.append)
    words.map_batch(lambda xs: [size(x) for x in xs], Batch(2)).sink(out.append)
    env = environment()
    await env.run(flow)
    assert sorted(out, key=str) == sorted(
        ["a=alpha", "b=beta", "ALPHA", "BETA", 2, 2, "ALPHA", "BETA", 2, 2], key=str
    )
    assert LOG == ["setup", "close"]
    await env.run(flow)
    assert LOG == ["setup", "close"] * 2


async def test_requests_call_services_and_closing_ends_them() -> None:
    flow = Flow("served")
    flow.reply(flow.requests(str).map(longer))
    async with await environment().submit(flow) as job:
        assert await asyncio.gather(*(job.request(x) for x in "ab")) == ["a=alpha", "b=beta"]
        assert LOG == ["setup"]
    assert LOG == ["setup", "close"]
    with pytest.raises(UsageError, match="service 'store' is called outside of a run"):
        await find("a")


async def test_a_run_that_fails_closes_them_and_one_that_cannot_begin_too() -> None:
    def fails(x: str) -> str:
        raise ValueError(x)

    flow = Flow("fails")
    flow.source(["a"]).map(fails).sink(print)
    with pytest.raises(OperatorError):
        await environment().run(flow)
    assert LOG == ["setup", "close"]

    def broken() -> Store:
        raise ConnectionError("no such host")

    env = environment()
    env.register_service("other", broken)
    with pytest.raises(
        OperatorError, match="broken of service 'other' failed: ConnectionError: no such host"
    ):
        await env.run(flow)
    assert LOG == ["setup", "close"] * 2


async def test_an_operators_setup_may_call_a_service() -> None:
    class Reader:
        def setup(self) -> None:
            self.count = size(None)

        def __call__(self, x: str) -> str:
            return f"{x} of {self.count}"

        def close(self) -> None:
            LOG.append(f"reader closed with {size(None)} words")

    flow = Flow("reader")
    flow.reply(flow.requests(str).map(Reader()))
    async with await environment().submit(flow) as job:
        assert await job.request("a") == "a of 2"
    assert LOG == ["setup", "reader closed with 2 words", "close"]


@dataclass
class Ask:
    text: str


async def test_a_flow_of_requests_is_a_service_of_other_flows(gate: Any) -> None:
    answers = Flow("answers")
    answers.reply(answers.requests(Ask).map(lambda ask: ask.text).map(longer).map(gate))
    ask = call_service("answers")
    flow = Flow("asks")
    flow.reply(flow.requests(str).map(Ask).map(ask, timeout=60))
    env = environment()
    env.register_service("answers", answers)
    async with await env.submit(flow) as job:
        tasks = [asyncio.create_task(job.request(x)) for x in "ab"]
        await gate.until(2)
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        assert gate.cancelled == ["a=alpha"]
        gate.open("b=beta")
        assert await tasks[1] == "b=beta"
    assert LOG == ["setup", "close"]


def holder(**attributes: Any) -> Any:
    class Holder:
        def __call__(self, x: str) -> Any:
            return x

    found = Holder()
    vars(found).update(attributes)
    return found


missing = call_service("stroe")


def inside(x: str) -> list[Any]:
    return [missing(y) for y in x]


def of_the_name(x: str) -> Any:
    return x.missing  # type: ignore[attr-defined] # an attribute of that name is no call


class Method:
    def run(self, x: str) -> Any:
        return (lambda: missing(x))()


@pytest.mark.parametrize(
    "fn",
    [
        missing,
        inside,
        lambda x: missing(x),
        partial(lambda call, x: call(x), missing),
        holder(call=missing),
        Method().run,
        use("calls"),
        use("service", name="stroe"),
    ],
    ids=["itself", "inside", "lambda", "partial", "attribute", "method", "registered", "named"],
)
def test_an_unknown_service_is_found_before_anything_runs(fn: Any) -> None:
    registry = Registry(entry_points=False)
    registry.register("calls", lambda: inside)
    flow = Flow("unknown")
    flow.source(["a"]).map(fn, name="op").sink(print)
    told = "'op': no service is named 'stroe'; did you mean 'store'?; there are: store"
    with pytest.raises(PlanError) as caught:
        environment(registry=registry).check(flow)
    assert caught.value.problems == (told,)
    with pytest.raises(PlanError, match="this environment has none"):
        LocalEnvironment(registry=registry).run_sync(flow)
    assert LOG == []


def test_every_part_of_a_plan_is_looked_at() -> None:
    flow = Flow("parts")
    words = flow.source(["a"])
    words.keyby(inside).scan(int, lambda n, x: (n, x), name="scan").sink(print)
    looped = words.iterate(
        lambda s: s.map(inside, name="step").map(str), until=inside, max_rounds=1, name="loop"
    )
    looped.gate("desk", when=inside, timeout=1, name="gate").sink(inside)
    with pytest.raises(PlanError) as caught:
        environment().check(flow)
    assert [text.partition(":")[0] for text in caught.value.problems] == [
        "'scan'",
        "'loop'",
        "'loop/step'",
        "'gate'",
        "'inside'",
    ]


def test_what_only_looks_like_a_call_is_none() -> None:
    flow = Flow("looks")
    flow.source(["a"]).map(of_the_name).map(holder(call=longer)).sink(print)
    environment().check(flow)


async def test_a_call_that_is_made_up_on_the_way_tells_what_there_is() -> None:
    async def ask(x: str) -> Any:
        return call_service(x, "find")("a")

    flow = Flow("dynamic")
    flow.reply(flow.requests(str).map(ask))
    async with await environment().submit(flow) as job:
        with pytest.raises(NotFoundError, match="no service is named 'stor'; did you mean 'store'"):
            await job.request("stor")

    async def wrong(x: str) -> Any:
        return call_service("store", x)("a")

    other = Flow("wrong")
    other.reply(other.requests(str).map(wrong))
    async with await environment().submit(other) as job:
        with pytest.raises(UsageError, match="service 'store', a Store, has no method 'serch'"):
            await job.request("serch")


def test_a_registration_is_checked() -> None:
    with pytest.raises(UsageError, match="needs a name and a function or Flow"):
        LocalEnvironment().register_service("", Store)
    with pytest.raises(UsageError, match="needs a name and a function or Flow"):
        LocalEnvironment().register_service("store", 3)  # type: ignore[arg-type]


def test_a_service_call_travels_as_a_named_operator() -> None:
    flow = Flow("travels")
    words = flow.source(["a"], name="words").map(find, name="found").map(call_service("store"), name="whole")
    words.sink(use("stdout"), name="out")
    data = flow.to_dict()
    assert data["steps"][1]["map"] == {"use": "service", "with": {"name": "store", "method": "find"}}
    assert data["steps"][2]["map"] == {"use": "service", "with": {"name": "store"}}
    jsonschema.validate(data, flow_schema())
    assert Flow.from_dict(data).to_dict() == data
    registry, out = Registry(entry_points=False), list[Any]()
    registry.register("collected", lambda: out.append, role="sink")
    text = """
    name: words
    steps:
      - source: {use: items, with: {values: [a, b]}}
      - map: {use: service, with: {name: store, method: find}, order: input}
      - sink: collected
    """
    environment(registry=registry).run_sync(parse_yaml(text))
    assert out == ["alpha", "beta"]
