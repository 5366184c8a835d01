"""Random plans over integers, and what they come to, computed from lists alone.

A recipe is plain data. Its records have a value and, behind a step that needs them, a time. Whatever the
order in which records meet, the multiset of what comes out is the same.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from sage.kernel import Batch, Cache, Failure, Flow, Pane, Parallel, Stream, Window
from sage.kernel.testing.sinks import EpochFiles, Numbers

__all__ = [
    "STEPS",
    "Recipe",
    "build",
    "collected",
    "diverting",
    "expected",
    "hop",
    "negated",
    "odd",
    "triple",
]

_Records: TypeAlias = list[tuple[int, float]]
_Build: TypeAlias = Callable[[Stream[int]], Stream[int]]
_Compute: TypeAlias = Callable[[_Records], _Records]
LATE = 1e9
"""So much may come late that no window closes before the end: then the order does not matter."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """`records` numbers from each of `sources` sources, merged, through these steps."""

    steps: tuple[str, ...]
    records: int = 100
    sources: int = 1


async def hop(x: int) -> int:
    """One more, after some turns of the loop."""
    for _ in range(x % 4):
        await asyncio.sleep(0)
    return x + 1


async def doubled(xs: Sequence[int]) -> list[int]:
    """Twice each."""
    await asyncio.sleep(0)
    return [2 * x for x in xs]


def triple(x: int) -> int:
    """Three times it."""
    return 3 * x


def negated(x: int) -> int:
    """Below zero."""
    return -x


def odd(x: int) -> int:
    """Whether it is odd."""
    return x % 2


def copies(x: int) -> list[int]:
    """None, one or two of it."""
    return [x] * (x % 3)


def brittle(x: int) -> int:
    """Fails for one in five."""
    if x % 5 == 0:
        raise ValueError(f"no {x}")
    return x


async def brittle_later(x: int) -> int:
    """Fails for one in five, after a while."""
    return brittle(await hop(x) - 1)


def lessened(xs: Sequence[int]) -> list[int]:
    """Each less one."""
    return [x - 1 for x in xs]


def skewed(x: int) -> int:
    """Three in four have key 0, which is as good a key as any."""
    return 0 if x % 4 else x % 7


def counted(count: int, x: int) -> tuple[int, int]:
    """How many records of the key there were: the same, in whatever order they come."""
    return count + 1, 10 * count + skewed(x)


def time_of(x: int) -> float:
    """Some time."""
    return float(abs(x) % 50)


def value_of(pane: Pane[int, int]) -> int:
    """A pane as a number."""
    return int(pane.start) + 100 * pane.value + pane.key


def one_more(count: int, _: int) -> int:
    """Count."""
    return count + 1


def both(one: int, other: int) -> int:
    """The sum."""
    return one + other


def difference(pair: tuple[int, int]) -> int:
    """A pair as a number."""
    return 3 * pair[0] - pair[1]


def item_of(failure: Failure[int]) -> int:
    """What failed."""
    return failure.item


def _timed(stream: Stream[int]) -> Stream[int]:
    timed = stream.port in stream.flow.plan.timed()
    return stream if timed else stream.event_time(time_of, lateness=LATE)


def _diverting(stream: Stream[int]) -> Stream[int]:
    return stream.map(brittle_later, on_error="divert", concurrency=5)


def _windows(window: Window) -> _Build:
    def build(stream: Stream[int]) -> Stream[int]:
        windows = _timed(stream).keyby(skewed).window(window)
        return windows.reduce(int, one_more, merge=both).map(value_of)

    return build


def _joined(stream: Stream[int]) -> Stream[int]:
    keyed = _timed(stream).keyby(skewed)
    return keyed.join(keyed, within=1).map(difference)


def settled(x: int) -> bool:
    """Whether it can be divided by three."""
    return x % 3 == 0


def _looped(stream: Stream[int]) -> Stream[int]:
    return stream.iterate(lambda s: s.map(hop, concurrency=4), until=settled, max_rounds=3, concurrency=5)


def _gated(stream: Stream[int]) -> Stream[int]:
    inbox = f"inbox {len(stream.flow.plan.nodes)}"
    return stream.gate(inbox, when=odd, timeout=0.001, on_timeout="approve", limit=7)


def _panes(found: dict[tuple[int, float], int], size: float) -> _Records:
    return [(value_of(Pane(k, at, at + size, n)), at + size) for (k, at), n in found.items()]


def _tumbled(records: _Records) -> _Records:
    return _panes(Counter((skewed(x), t // 10 * 10) for x, t in records), 10)


def _sessions(records: _Records) -> _Records:
    found: _Records = []
    for key in {skewed(x) for x, _ in records}:
        run: list[float] = []
        for time in [*sorted(t for x, t in records if skewed(x) == key), float("inf")]:
            if run and time >= run[-1] + 3:
                pane = Pane(key, run[0], run[-1] + 3, len(run))
                found.append((value_of(pane), pane.end))
                run = []
            run.append(time)
    return found


def _pairs(records: _Records) -> _Records:
    return [
        (difference((x, y)), max(t, u))
        for x, t in records
        for y, u in records
        if skewed(x) == skewed(y) and abs(t - u) <= 1
    ]


def _counts(records: _Records) -> _Records:
    # Which time goes with which count depends on the order: `build` has no times behind a count.
    seen: Counter[int] = Counter()
    found = []
    for x, t in records:
        found.append((10 * seen[skewed(x)] + skewed(x), t))
        seen[skewed(x)] += 1
    return found


def _each(compute: Callable[[int], Iterable[int]]) -> _Compute:
    return lambda records: [(y, t) for x, t in records for y in compute(x)]


_SOUND = _each(lambda x: [x] if x % 5 else [])
STEPS: dict[str, tuple[_Build, _Compute]] = {
    "map": (lambda s: s.map(triple), _each(lambda x: [3 * x])),
    "filter": (lambda s: s.filter(odd), _each(lambda x: [x] * (x % 2))),
    "flatmap": (lambda s: s.flatmap(copies), _each(copies)),
    "threads": (lambda s: s.map(triple, parallelism=Parallel(2, "thread")), _each(lambda x: [3 * x])),
    "threads-any": (
        lambda s: s.flatmap(copies, parallelism=Parallel(3, "thread", "any")),
        _each(copies),
    ),
    "threads-divert": (
        lambda s: s.map(brittle, on_error="divert", parallelism=Parallel(2, "thread")),
        _SOUND,
    ),
    "async": (lambda s: s.map(hop, concurrency=6), _each(lambda x: [x + 1])),
    "ordered": (lambda s: s.map(hop, concurrency=3, order="input"), _each(lambda x: [x + 1])),
    "skip": (lambda s: s.map(brittle, on_error="skip"), _SOUND),
    "divert": (_diverting, _SOUND),
    "batch": (lambda s: s.map_batch(lessened, Batch(4)), _each(lambda x: [x - 1])),
    "async-batch": (
        lambda s: s.map_batch(doubled, Batch(3), concurrency=2, order="input"),
        _each(lambda x: [2 * x]),
    ),
    "merge": (lambda s: s.merge(s.map(negated)), _each(lambda x: [x, -x])),
    "count": (lambda s: s.keyby(skewed).scan(int, counted), _counts),
    "kept-count": (lambda s: s.keyby(skewed).scan(int, counted, ttl=LATE), _counts),
    "loop": (_looped, _each(lambda x: [x // 3 * 3 + 3])),
    "gate": (_gated, _each(lambda x: [x])),
    "cached": (lambda s: s.map(hop, cache=Cache(size=5), concurrency=4), _each(lambda x: [x + 1])),
    "window": (_windows(Window(10)), _tumbled),
    "session": (_windows(Window(gap=3)), _sessions),
    "join": (_joined, _pairs),
}


def build(recipe: Recipe, folder: Path) -> Flow:
    """The flow of a recipe; its sinks are folders below this one: "out", and "bad-N" where step N diverts."""
    flow = Flow("recipe")
    sources = [
        flow.source(Numbers(recipe.records)),
        *(flow.source(range(recipe.records)) for _ in range(1, recipe.sources)),
    ]
    stream = sources[0].merge(*sources[1:]) if recipe.sources > 1 else sources[0]
    for number, step in enumerate(recipe.steps):
        stream = STEPS[step][0](stream)
        if step.endswith("divert"):
            diverting(stream, folder, number)
    stream.sink(EpochFiles(folder / "out"), name="out")
    return flow


def diverting(stream: Stream[int], folder: Path, number: int) -> None:
    """Have what step `number` diverts in the folder "bad-NUMBER"."""
    stream.diverted.map(item_of).sink(EpochFiles(folder / f"bad-{number}"), name=f"bad-{number}")


def expected(recipe: Recipe) -> dict[str, Counter[int]]:
    """What has to be in each of the folders."""
    records = [(x, time_of(x)) for _ in range(recipe.sources) for x in range(recipe.records)]
    found: dict[str, Counter[int]] = {}
    timed = False
    for number, step in enumerate(recipe.steps):
        if step in ("window", "session", "join") and not timed:
            timed, records = True, [(x, time_of(x)) for x, _ in records]
        if step.endswith("divert"):
            found[f"bad-{number}"] = Counter(x for x, _ in records if x % 5 == 0)
        records = STEPS[step][1](records)
    return {**found, "out": Counter(x for x, _ in records)}


def collected(folder: Path) -> dict[str, Counter[int]]:
    """What is in them."""
    return {path.name: Counter(EpochFiles.records(path)) for path in folder.iterdir()}
