"""Plans: building, checking, explaining."""

from __future__ import annotations

import asyncio
import copy
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

import sage.kernel
from sage.common.errors import SageError, UsageError
from sage.kernel import Batch, Failure, Flow, LocalEnvironment, PlanError, Registry, Retry, use
from sage.kernel.compile import Edge, compile_plan
from sage.kernel.modes import mode_of


def inc(x: int) -> int:
    return x + 1


async def wait(x: int) -> int:
    return x


def problems(flow: Flow) -> str:
    with pytest.raises(PlanError) as caught:
        flow.check()
    assert isinstance(caught.value, SageError)
    return "\n".join(caught.value.problems)


def test_building_runs_nothing() -> None:
    calls: list[object] = []
    flow = Flow("quiet")

    def numbers() -> list[int]:
        calls.append("source")
        return [1]

    flow.source(numbers).map(calls.append).sink(calls.append)
    flow.check()
    flow.explain()
    assert calls == []


def test_a_plan_is_a_snapshot() -> None:
    flow = Flow("grows")
    stream = flow.source([1])
    before = flow.plan
    stream.sink(print)
    assert len(before.nodes) == 1
    assert len(flow.plan.nodes) == 2
    with pytest.raises(AttributeError):
        before.name = "other"  # type: ignore[misc]


def test_check_lists_every_problem_at_once() -> None:
    flow = Flow("bad")
    flow.source([1], name="a").map(inc, name="a").sink(print)
    flow.source("text", name="b").filter(inc, on_error="divert", name="loose")  # type: ignore[arg-type]
    text = problems(flow)
    assert "2 operators are named 'a'" in text
    assert "'b' would read a string letter by letter" in text
    assert "'loose' diverts and nothing reads its .diverted" in text
    assert "what 'loose' makes reaches no sink" in text


def test_the_error_survives_a_copy() -> None:
    error = PlanError("x", ["one", "two"])
    again = copy.copy(error)
    assert (str(again), again.problems) == (str(error), error.problems)


def test_an_empty_flow_needs_a_name_a_source_and_an_end() -> None:
    assert len(problems(Flow(" ")).splitlines()) == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"concurrency": 0}, "concurrency=0"),
        ({"timeout": 0}, "timeout=0"),
        ({"order": "key"}, "order='key'"),
        ({"on_error": "ignore"}, "on_error='ignore'"),
    ],
)
def test_options_out_of_range(options: dict[str, object], said: str) -> None:
    flow = Flow("options")
    flow.source([1]).map(wait, **options).sink(print)  # type: ignore[call-overload]
    assert said in problems(flow)


def test_something_to_call_is_needed() -> None:
    flow = Flow("call")
    flow.source([1]).map(3).sink(4)  # type: ignore[call-overload]
    assert problems(flow).count("needs something to call") == 2


def test_diverted_is_read_only_where_something_diverts() -> None:
    flow = Flow("divert")
    stream = flow.source([1]).map(inc)
    stream.sink(print)
    stream.diverted.sink(print)
    assert "does not divert" in problems(flow)


def test_requests_and_replies_belong_together() -> None:
    alone = Flow("alone")
    alone.reply(alone.source([1]))
    assert "it replies to nothing" in problems(alone)
    silent = Flow("silent")
    silent.requests(int).sink(print)
    assert "get no reply" in problems(silent)
    mixed = Flow("mixed")
    mixed.reply(mixed.requests(int).merge(mixed.source([1])).flatmap(lambda x: [x]))
    text = problems(mixed)
    assert "requests and a source" in text
    assert "is a flatmap before the reply" in text


def test_a_stream_stays_in_its_flow() -> None:
    one, other = Flow("one"), Flow("other")
    with pytest.raises(PlanError, match="'other' is used here"):
        one.source([1]).merge(other.source([2]))


def test_options_check_themselves() -> None:
    with pytest.raises(UsageError, match="size >= 1"):
        Batch(0)
    with pytest.raises(UsageError, match="attempts >= 1"):
        Retry(0)
    with pytest.raises(UsageError, match="at least 1"):
        LocalEnvironment(batch=0)


def test_backoff_doubles_up_to_its_limit() -> None:
    retry = Retry(attempts=100, backoff=0.5)
    assert [retry.ceiling(n) for n in (1, 2, 3)] == [0.5, 1.0, 2.0]
    assert retry.ceiling(5000) == 30.0


def test_sync_functions_refuse_the_options_of_async_ones() -> None:
    flow = Flow("sync")
    flow.source([1]).map(inc, timeout=1, retry=Retry()).sink(print)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="timeout, retry would do nothing"):
        compile_plan(flow.plan, Registry())


def test_flatmap_and_filter_do_not_wait() -> None:
    flow = Flow("waits")
    flow.source([1]).flatmap(wait).sink(print)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="takes a sync function"):
        compile_plan(flow.plan, Registry())


def test_how_something_is_called_is_seen() -> None:
    class Waits:
        async def __call__(self, x: int) -> int:
            return x

    async def parts(x: int) -> AsyncIterator[int]:
        yield x

    assert mode_of(inc) == mode_of(int) == mode_of(len) == "sync"
    assert mode_of(wait) == mode_of(Waits()) == "async"
    assert mode_of(parts) == "parts"


def test_adjacent_sync_operators_are_one_stage() -> None:
    flow = Flow("stages")
    stream = flow.source([1]).map(inc).filter(bool).map(wait).map(inc).map(inc)
    stream.sink(print)
    stream.keyby(inc).scan(int, lambda s, x: (s, x)).sink(print)
    stages = compile_plan(flow.plan, Registry()).stages
    assert [[op.node.verb for op in stage.ops] for stage in stages] == [
        ["source", "map", "filter"],
        ["map", "map", "map"],
        ["sink"],
        ["scan", "sink"],
    ]
    assert stages[1].outs == [Edge(2), Edge(3)]


def test_names_are_made_from_functions_and_stay_unique() -> None:
    flow = Flow("names")
    flow.source([1]).map(inc).map(inc).map(lambda x: x).map(use("named")).sink(print)
    assert [n.name for n in flow.plan.nodes] == ["source", "inc", "inc-2", "map", "named", "print"]


def test_explain_draws_every_edge() -> None:
    flow = Flow("drawn")
    stream = flow.source([1]).map(inc, on_error="divert", name='say "hi"')
    stream.sink(print)
    stream.diverted.sink(print)
    assert flow.explain().splitlines() == [
        "flowchart LR",
        '  n0(["source"])',
        "  n1[\"map say 'hi'\"]",
        '  n2[("sink print")]',
        '  n3[("sink print-2")]',
        "  n0 --> n1",
        "  n1 --> n2",
        "  n1 -. diverted .-> n3",
    ]


def test_all_is_what_is_exported() -> None:
    assert len(sage.kernel.__all__) == len(set(sage.kernel.__all__))
    assert all(hasattr(sage.kernel, name) for name in sage.kernel.__all__)


def test_importing_the_kernel_imports_nothing_heavy() -> None:
    code = "import sage.kernel, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"pydantic", "ruamel.yaml", "fastapi", "aiohttp", "torch", "ray", "typer", "importlib.metadata"}
    assert heavy.isdisjoint(loaded)
    assert "asyncio" not in loaded  # a plan is built and checked without the runtime


def test_a_plain_run_imports_what_it_needs() -> None:
    code = """
import sys
from sage.kernel import Flow, LocalEnvironment
flow = Flow("plain")
flow.source([1, 2]).map(abs).sink(print)
LocalEnvironment().run_sync(flow)
print(*sys.modules)
"""
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert loaded[:2] == ["1", "2"]
    heavy = {"structlog", "rich", "pydantic", "psutil", "apsw", "sage.kernel.scheduler", "sage.kernel.jobs"}
    assert heavy.isdisjoint(loaded)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'RemoteThing'"):
        _ = sage.kernel.RemoteThing  # type: ignore[attr-defined]


def test_failures_are_values() -> None:
    assert Failure(1, "op", "E: x", 2) == Failure(1, "op", "E: x", 2)
    assert asyncio.iscoroutinefunction(LocalEnvironment().run)
