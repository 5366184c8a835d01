"""One measurement of one engine, in the interpreter that it is installed in: CPU seconds as JSON on stdout.

python benchmarks/dataflow/peers.py ENGINE TASK ITEMS

An engine is used as its own documentation shows. The functions are the same for all: those at the top. It is
started by `compare.py`.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

KEYS = 100
CLIENTS = 64


def inc(x: int) -> int:
    return x + 1


def nothing(_: Any) -> None:
    return None


def key_of(x: int) -> int:
    return x % KEYS


def add(total: int, x: int) -> tuple[int, int]:
    return total + x, total


def digest(x: int) -> int:
    """About 10 microseconds of work."""
    for _ in range(150):
        x = (x * 48271) % 2147483647
    return x


async def at_once(ask: Callable[[int], Awaitable[Any]], items: int) -> None:
    """Ask for every item, `CLIENTS` at a time."""
    numbers = iter(range(items))

    async def client() -> None:
        for x in numbers:
            await ask(x)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


def cpu() -> float:
    """Of this process and of those of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


# ---- SAGE ------------------------------------------------------------------------------------------------


def sage(task: str, items: int) -> Callable[[], Any]:
    from sage.kernel import Checkpoints, Flow, LocalEnvironment

    flow = Flow(task)
    if task == "request":
        flow.reply(flow.requests(int).map(inc).map(inc).map(inc).map(inc).map(inc))

        async def serve() -> None:
            async with await LocalEnvironment().submit(flow) as job:
                for x in range(items):
                    await job.request(x)

        return lambda: asyncio.run(serve())
    if task == "durable":
        flow.reply(flow.requests(int).map(inc).map(inc).map(inc).map(inc).map(inc))

        async def serve_kept() -> None:
            with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
                environment = LocalEnvironment(checkpoints=Checkpoints(folder))
                async with await environment.submit(flow) as job:
                    await at_once(job.request, items)

        return lambda: asyncio.run(serve_kept())
    stream = flow.source(range(items))
    if task == "process":
        stream.map(digest, parallelism=2).sink(nothing)
    elif task == "thread":
        from sage.kernel import Parallel

        stream.map(digest, parallelism=Parallel(2, "thread")).sink(nothing)
    elif task == "fold":
        stream.map(inc).map(inc).map(inc).keyby(key_of).scan(int, add).sink(nothing)
    else:
        stream.map(inc).map(inc).map(inc).sink(nothing)
    return lambda: LocalEnvironment(batch=1 if task == "maps-1" else 64).run_sync(flow)


# ---- bytewax ---------------------------------------------------------------------------------------------


def bytewax(task: str, items: int) -> Callable[[], Any]:
    import bytewax.operators as op
    from bytewax.dataflow import Dataflow
    from bytewax.outputs import DynamicSink, StatelessSinkPartition
    from bytewax.testing import TestingSource, cluster_main, run_main

    class Part(StatelessSinkPartition[Any]):
        def write_batch(self, items: list[Any]) -> None:
            for item in items:
                nothing(item)

    class Nothing(DynamicSink[Any]):
        def build(self, _step: str, _index: int, _count: int) -> Part:
            return Part()

    flow = Dataflow("flow")
    stream = op.input("in", flow, TestingSource(range(items), batch_size=1 if task == "maps-1" else 64))
    if task == "thread":
        stream = op.map("digest", op.redistribute("share", stream), digest)
        op.output("out", stream, Nothing())
        return lambda: cluster_main(flow, [], 0, worker_count_per_proc=2)
    for name in ("a", "b", "c"):
        stream = op.map(name, stream, inc)
    if task == "fold":

        def fold(total: int | None, x: int) -> tuple[int, int]:
            return add(total or 0, x)

        stream = op.stateful_map("fold", op.key_on("key", stream, lambda x: str(key_of(x))), fold)
    op.output("out", stream, Nothing())
    return lambda: run_main(flow)


# ---- Quix Streams: its stream of functions, which runs without a broker ----------------------------------


def quix(_task: str, items: int) -> Callable[[], Any]:
    from quixstreams.core.stream import Stream

    run = Stream().add_apply(inc).add_apply(inc).add_apply(inc).add_update(nothing).compose_single()

    def go() -> None:
        for x in range(items):
            run(x, None, 0, [])

    return go


# ---- request and reply: Hamilton, Haystack, LangGraph ----------------------------------------------------


def hamilton(_task: str, items: int) -> Callable[[], Any]:
    from hamilton import ad_hoc_utils, driver

    def one(x: int) -> int:
        return inc(x)

    def two(one: int) -> int:
        return inc(one)

    def three(two: int) -> int:
        return inc(two)

    def four(three: int) -> int:
        return inc(three)

    def five(four: int) -> int:
        return inc(four)

    module = ad_hoc_utils.create_temporary_module(one, two, three, four, five)
    dag = driver.Builder().with_modules(module).build()

    def go() -> None:
        for x in range(items):
            dag.execute(["five"], inputs={"x": x})

    return go


def haystack(_task: str, items: int) -> Callable[[], Any]:
    from haystack import Pipeline, component

    @component
    class Inc:
        @component.output_types(x=int)
        def run(self, x: int) -> dict[str, int]:
            return {"x": inc(x)}

    pipeline = Pipeline()
    for number in range(5):
        pipeline.add_component(f"inc{number}", Inc())
    for number in range(4):
        pipeline.connect(f"inc{number}.x", f"inc{number + 1}.x")
    pipeline.warm_up()

    def go() -> None:
        for x in range(items):
            pipeline.run({"inc0": {"x": x}})

    return go


def langgraph(task: str, items: int) -> Callable[[], Any]:
    from typing import TypedDict

    from langgraph.graph import END, START, StateGraph

    class State(TypedDict):
        x: int

    def step(state: State) -> dict[str, int]:
        return {"x": inc(state["x"])}

    graph = StateGraph(State)
    names = [f"inc{number}" for number in range(5)]
    for name in names:
        graph.add_node(name, step)
    for left, right in zip([START, *names], [*names, END], strict=True):
        graph.add_edge(left, right)
    if task == "durable":
        from langgraph.checkpoint.memory import InMemorySaver

        kept = graph.compile(checkpointer=InMemorySaver())

        async def ask(x: int) -> Any:
            return await kept.ainvoke({"x": x}, {"configurable": {"thread_id": str(x)}})

        return lambda: asyncio.run(at_once(ask, items))
    app = graph.compile()

    def go() -> None:
        for x in range(items):
            app.invoke({"x": x})

    return go


# ---- concurrent.futures: what everybody has --------------------------------------------------------------


def futures(task: str, items: int) -> Callable[[], Any]:
    from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
    from multiprocessing import get_context

    def results() -> Iterator[Any]:
        if task == "thread":
            with ThreadPoolExecutor(2) as threads:
                yield from threads.map(digest, range(items))
        else:
            with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
                yield from processes.map(digest, range(items), chunksize=256)

    def go() -> None:
        for result in results():
            nothing(result)

    return go


ENGINES = {
    "SAGE": sage,
    "bytewax": bytewax,
    "Quix Streams": quix,
    "Hamilton": hamilton,
    "Haystack": haystack,
    "LangGraph": langgraph,
    "concurrent.futures": futures,
}


def main() -> None:
    engine, task, items = sys.argv[1], sys.argv[2], int(sys.argv[3])
    make = ENGINES[engine]
    make(task, 1)()  # imports, caches
    run = make(task, items)
    start, wall = cpu(), time.perf_counter()
    run()
    print(json.dumps({"cpu": cpu() - start, "wall": time.perf_counter() - wall}))


if __name__ == "__main__":
    main()
