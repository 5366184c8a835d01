"""`parallelism`, `resources` and `scale` in plans: what is refused, and plans as data."""

from __future__ import annotations

from typing import Any

import jsonschema
import kernel_worker_ops as ops
import pytest

from sage.kernel import (
    Batch,
    Flow,
    Parallel,
    PlanError,
    Registry,
    Resources,
    Scale,
    flow_schema,
    parse_yaml,
    use,
)
from sage.kernel.compile import compile_plan

YAML = """
name: pieces
steps:
  - source: {use: items, with: {values: [1, 2]}}
  - map: {use: "kernel_worker_ops:increase", parallelism: 4}
  - filter:
      use: "kernel_worker_ops:odd"
      parallelism: {n: 2, kind: thread, order: any}
      scale: {min: 1, max: 3}
  - map_batch:
      use: "kernel_worker_ops:Logged"
      batch: {size: 8}
      parallelism: 1
      resources: {cpu: 2, gpu: 0.5, memory: 2GiB, labels: {zone: a}}
      scale: {max: 4, target_wait: 2}
  - sink: stdout
"""


def problems(flow: Flow, registry: Registry | None = None) -> str:
    with pytest.raises(PlanError) as caught:
        flow.check(registry)
    return "\n".join(caught.value.problems)


def test_code_that_cannot_be_sent_to_a_process_is_refused_with_the_way_out() -> None:
    flow, offset = Flow("closures"), 3
    numbers = flow.source([1])
    numbers.map(lambda x: x + 1, parallelism=2, name="lambda").sink(print)
    numbers.map(lambda x: x + offset, parallelism=Parallel(2, "thread")).sink(print)
    numbers.map_batch(type("Local", (), {"__call__": list}), parallelism=1, name="local").sink(print)
    found = problems(flow)
    assert "'lambda' runs in processes, and <function" in found
    assert "'local' runs in processes" in found
    assert (
        found.count("move it to the top level of a module, or run it in threads: Parallel(n, 'thread')") == 2
    )
    registry = Registry(entry_points=False)
    registry.register("bad", lambda: ops.increase)
    flow = Flow("factory")
    flow.source([1]).map(use("bad"), parallelism=2, name="made").sink(print)
    assert "'made' runs in processes, and the factory of 'bad' cannot be sent" in problems(flow, registry)


def test_what_would_do_nothing_on_workers_is_refused() -> None:
    async def wait(x: int) -> int:
        return x

    flow = Flow("misuse")
    numbers = flow.source([1])
    numbers.map(wait, parallelism=2, name="async").sink(print)
    numbers.map(wait, scale=Scale(1, 2), name="scaled").sink(print)
    numbers.map(ops.increase, scale=Scale(1, 2), name="alone").sink(print)
    numbers.map(ops.increase, parallelism=5, scale=Scale(1, 2), name="many").sink(print)
    found = problems(flow)
    assert "'async' is asynchronous and needs no workers: give it concurrency=, not parallelism=" in found
    assert "'scaled' is asynchronous: scale= counts workers" in found
    assert "'alone' has scale= and no workers to count" in found
    assert (
        "'many' begins with 5 workers, which its Scale(min=1, max=2, target_wait=0.5) does not allow" in found
    )


def test_what_a_factory_makes_is_seen_when_it_is_made() -> None:
    registry = Registry(entry_points=False)
    registry.register("wait", make_async)
    flow = Flow("made")
    flow.source([1]).map(use("wait"), parallelism=2).sink(print)
    flow.check(registry)
    with pytest.raises(PlanError, match="'wait' is asynchronous and needs no workers"):
        compile_plan(flow.plan, registry)


def make_async() -> Any:
    async def wait(x: int) -> int:
        return x

    return wait


def test_operators_with_state_do_not_run_on_workers() -> None:
    from dataclasses import replace

    from sage.kernel.plan import Plan
    from sage.kernel.portable import problems as of_plan
    from sage.kernel.provision import Provision

    flow = Flow("state")
    flow.source([1]).keyby(int).scan(int, lambda s, x: (s, x)).sink(print)
    nodes = [replace(node, provision=Provision(Parallel(2))) for node in flow.plan.nodes]
    found = list(of_plan(Plan("state", tuple(nodes)), Registry()))
    assert (
        "'scan' is a scan: only map, flatmap, filter, map_batch keep no state and run on workers" in found[1]
    )
    assert len(found) == 3


def test_neighbours_of_equal_setting_share_their_workers() -> None:
    flow, same = Flow("fused"), Parallel(2)
    stream = flow.source([1]).map(ops.increase, parallelism=same).filter(ops.odd, parallelism=2)
    stream = stream.map(ops.increase, parallelism=3).map(ops.increase).map(ops.increase, parallelism=3)
    stream.map_batch(ops.Logged, Batch(4), parallelism=3).map(ops.increase, parallelism=3).sink(print)
    stages = compile_plan(flow.plan, Registry()).stages
    assert [[op.index for op in stage.on_workers] for stage in stages] == [[], [1, 2], [3], [5], [6, 7]]
    assert [len(stage.ops) for stage in stages] == [1, 2, 2, 1, 3]


def test_plans_with_workers_are_data() -> None:
    flow = parse_yaml(YAML, allow=("kernel_worker_ops:*",))
    nodes = {node.verb: node.provision for node in flow.plan.nodes}
    assert nodes["map"].parallelism == Parallel(4)
    assert nodes["filter"].parallelism == Parallel(2, "thread", "any")
    assert nodes["filter"].scale == Scale(1, 3)
    assert nodes["map_batch"].resources == Resources(2, 0.5, "2GiB", labels={"zone": "a"})
    assert nodes["map_batch"].scale == Scale(1, 4, 2)
    data = flow.to_dict()
    jsonschema.validate(data, flow_schema())
    assert data["steps"][1]["map"]["parallelism"] == 4
    assert data["steps"][2]["filter"]["parallelism"] == {"n": 2, "kind": "thread", "order": "any"}
    assert Flow.from_dict(data, allow=("kernel_worker_ops:*",)).plan == flow.plan


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("parallelism: 0", "needs a whole n >= 1"),
        ("parallelism: {n: 2, kin: thread}", "unknown key 'kin'; did you mean 'kind'?"),
        ("parallelism: two", "parallelism is 'two', not a mapping of n, kind, order"),
        ("scale: {min: 3, max: 2}", "needs 1 <= min <= max"),
        ("resources: {cpu: 1.00001}", "valid are cores from 0 in steps of 0.001"),
        ("resources: {memory: much}", "Resources.memory is 'much'"),
    ],
)
def test_data_that_does_not_fit_is_refused(option: str, reason: str) -> None:
    text = f"""
    name: x
    steps:
      - source: {{use: items, with: {{values: [1]}}}}
      - map: {{use: "builtins:str", {option}}}
      - sink: stdout
    """
    with pytest.raises(PlanError) as caught:
        parse_yaml(text, allow=("builtins:*",))
    assert reason in str(caught.value)
