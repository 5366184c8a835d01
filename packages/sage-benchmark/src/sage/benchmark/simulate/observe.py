"""What a recording says about the speed of each engine: calls as rows of a linear model.

LLM: a sequence of n tokens decodes through n - 1 iterations of `a + b · decoding + c · prefill tokens`
seconds, so the time from its first token to its last is `a·(n - 1) + b·(tokens that all sequences got
meanwhile) + c·(prompt tokens that were computed meanwhile)`. An idle engine's first token takes
`a·⌈tokens / chunk⌉ + c·tokens`. Embedding: a batch takes `s0 + s1·tokens + s2·texts`.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from statistics import median
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sage.benchmark.simulate.fit import Rows, fit_device
from sage.middleware.control_plane.simulator.fleet import EmbedEngine
from sage.middleware.control_plane.simulator.recorded import Recording, SeenCall
from sage.middleware.control_plane.simulator.shapes import BLOCK_BYTES
from sage.middleware.engines.port import EngineSpec

__all__ = [
    "BOUNDS",
    "MIN_ROWS",
    "BatchBounds",
    "caches_prefixes",
    "computing",
    "embed_rows",
    "handover",
    "llm_rows",
]

MIN_ROWS: Final = 8  # fewer say nothing about three weights
_MIN_TOKENS: Final = 8  # gaps of an answer: the ends of a shorter one are too large a part of it
_TOGETHER: Final = 0.05  # calls that end within this share of a batch ended with it
_INSTANT: Final = 1e-6
_PASSES: Final = 2
_SCALING: Final = float(EmbedEngine.model_fields["scaling"].default)
_SCALINGS: Final = (0.0, 0.2, 0.4, 0.6, _SCALING, 1.0)  # that are tried where threads were lent
_ALONE: Final = 0.1  # share of its time beside others in which a batch on lent threads still had them alone


class BatchBounds(NamedTuple):
    """At most so many tokens and texts in one batch, and the `scaling` of an elastic engine."""

    tokens: int
    texts: int
    scaling: float = _SCALING


# From small to large: `BOUNDS[0]` is the least that any engine takes at once.
BOUNDS: Final = tuple(
    BatchBounds(tokens, texts)
    for tokens in (1024, 2048, 4096, 8192, 16384, 65536)
    for texts in (32, 64, 128, 256, 4096)
)

# What a recording does not tell apart is taken to be as it is for our own embedding server.
_DEFAULT: Final = BatchBounds(
    int(EmbedEngine.model_fields["batch_tokens"].default),
    int(EmbedEngine.model_fields["batch_texts"].default),
)

Array = NDArray[np.float64]
Interval = tuple[float, float]
Count = Callable[[float], float]  # how much there was until a time


class _Row(NamedTuple):
    """One observation, see `Rows`; it lasted for `span`."""

    x: tuple[float, float, float]
    span: Interval
    steps: int
    first: bool = False


def llm_rows(spec: EngineSpec, recording: Recording, neighbours: Sequence[Interval]) -> Rows:
    """Rows of an LLM engine for `(a, b, c)`. `neighbours`: when others computed on its device.

    How many tokens the others got within a call's time follows from the pace of the iterations, which follows
    from the weights: the rows are made again with the pace of a first fit.
    """
    calls = sorted(_complete(spec, recording), key=_first)
    prefill = _uncached(spec, calls, recording)
    rows = _llm_rows(spec, calls, prefill, neighbours, lambda time: time)
    for _ in range(_PASSES if len(rows.seconds) >= MIN_ROWS else 0):
        interference, ((_, fit),) = fit_device([[rows]])
        pace = _pace(spec, calls, prefill, neighbours, (*fit.weights, interference))
        rows = _llm_rows(spec, calls, prefill, neighbours, pace)
    return rows


def _llm_rows(
    spec: EngineSpec,
    calls: Sequence[SeenCall],
    prefill: Sequence[float],
    neighbours: Sequence[Interval],
    pace: Count,
) -> Rows:
    """Rows where tokens come evenly in `pace`, the number of iterations until a time."""
    spans = [_decode(call) for call in calls]
    gaps = [max(0, _output(call) - 1) for call in calls]
    tokens = _amount([(pace(start), pace(end)) for start, end in spans], gaps)
    computed = _amount(_prefills(calls), prefill)
    beside = _amount(neighbours, [end - start for start, end in neighbours])
    idle = _found_idle(calls)
    rows: list[_Row] = []
    for call, (start, end), steps, prompt in zip(calls, spans, gaps, prefill, strict=True):
        if call.first is None:
            continue
        if steps >= _MIN_TOKENS:
            shared = tokens(pace(end)) - tokens(pace(start))
            # One step, however long: what such a row is off by is not noise that averages out.
            rows.append(_Row((steps, shared, computed(end) - computed(start)), (start, end), 1))
        if call.number in idle:
            chunks = math.ceil(prompt / spec.chunk) if spec.chunk else 1
            rows.append(_Row((chunks, 0.0, prompt), (call.sent, call.first), chunks, first=True))
    return _rows(rows, beside)


def _pace(
    spec: EngineSpec,
    calls: Sequence[SeenCall],
    prefill: Sequence[float],
    neighbours: Sequence[Interval],
    weights: Sequence[float],
) -> Count:
    """The number of iterations until a time, by `(a, b, c, interference)`."""
    a, b, c, interference = weights
    changes: list[tuple[float, float, float, float]] = []  # time, decoding, prefill tokens, neighbours
    for start, end in map(_decode, calls):
        changes += [(start, 1, 0, 0), (end, -1, 0, 0)]
    for (start, end), tokens in zip(_prefills(calls), prefill, strict=True):
        each = tokens / math.ceil(tokens / spec.chunk) if spec.chunk else tokens
        changes += [(start, 0, each, 0), (end, 0, -each, 0)]
    for start, end in neighbours:
        changes += [(start, 0, 0, 1), (end, 0, 0, -1)]
    table = np.array(sorted(changes))
    decoding, tokens_now, beside = np.cumsum(table[:, 1:], axis=0)[:-1].T
    prefilled = np.minimum(np.maximum(tokens_now, 0.0), spec.chunk or np.inf)
    seconds = (a + b * np.maximum(decoding, 0.0) + c * prefilled) * (1 + interference * (beside > 0))
    counts = np.concatenate([[0.0], np.cumsum(np.diff(table[:, 0]) / seconds)])
    return lambda time: float(np.interp(time, table[:, 0], counts))


def embed_rows(
    spec: EngineSpec, recording: Recording, neighbours: Sequence[Interval]
) -> dict[BatchBounds, Rows]:
    """Rows of an embedding or rerank engine for `(s0, s1, s2)`: batches whose calls are known for sure.

    How much it puts into one batch is not recorded, so that there are rows for each of `BOUNDS`, the default
    first: the same batches, counted differently. One that computes a call at a time has no bounds. Where
    batches ran on lent threads there are also rows for each of several `scaling`; those that shared these
    threads with another engine are left out, as they say more about that than about the engine.
    """
    calls = sorted(_complete(spec, recording), key=lambda call: call.sent)
    beside = _amount(neighbours, [end - start for start, end in neighbours])
    sent = [call.sent for call in calls]
    seen = []
    for members, span in _batches(calls) if spec.batches else _singles(calls):
        tokens = sum(_prompt(call) for call in members)
        texts = sum(piece.stop - piece.start for call in members for piece in call.slices)
        joined = bisect_left(sent, span[1]) > bisect_right(sent, span[0])
        if not (
            spec.batches and joined and _pieces(tokens, texts, BOUNDS[0]) > 1
        ):  # else others got in between
            share = _lent(spec, members)
            if share == 1.0 or _per_second(beside, span) < _ALONE:
                seen.append((tokens, texts, span, share))
    scalings = (
        sorted(_SCALINGS, key=_SCALING.__ne__)
        if any(share != 1.0 for _, _, _, share in seen)
        else (_SCALING,)
    )
    found = {}
    for bounds in sorted(BOUNDS, key=_DEFAULT.__ne__) if spec.batches else BOUNDS[-1:]:
        counted = [_pieces(tokens, texts, bounds) if spec.batches else 1 for tokens, texts, _, _ in seen]
        for scaling in scalings:
            rows = []
            for pieces, (tokens, texts, span, share) in zip(counted, seen, strict=True):
                speed = share**scaling
                rows.append(_Row((pieces / speed, tokens / speed, texts / speed), span, pieces))
            found[bounds._replace(scaling=scaling)] = _rows(rows, beside)
    return found


def handover(spec: EngineSpec, recording: Recording) -> float:
    """Seconds between two answers of one batch, at the median; 0 where no two calls were ever in one."""
    calls = sorted(_complete(spec, recording), key=lambda call: call.sent)
    gaps = [
        (max(ends) - min(ends)) / (len(ends) - 1)
        for members, _ in (_batches(calls) if spec.batches else ())
        if len(ends := [call.ended or call.sent for call in members]) > 1
    ]
    return median(gaps) if gaps else 0.0


def computing(specs: Iterable[EngineSpec], recording: Recording) -> list[Interval]:
    """When any of these engines had work, as intervals that do not overlap."""
    names = {spec.name for spec in specs}
    spans = sorted(
        (call.sent, call.ended) for call in recording.calls.values() if call.engine in names and call.ended
    )
    merged: list[Interval] = []
    for start, end in spans:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _rows(rows: Sequence[_Row], beside: Count) -> Rows:
    kept = [row for row in rows if row.span[1] - row.span[0] > _INSTANT]
    spans = [row.span for row in kept]
    return Rows(
        np.array([row.x for row in kept], dtype=np.float64).reshape(-1, 3),
        np.array([end - start for start, end in spans]),
        np.clip(np.array([_per_second(beside, span) for span in spans]), 0.0, 1.0),
        np.array([row.steps for row in kept]),
        np.array([(start + end) / 2 for start, end in spans]),
        np.array([row.first for row in kept], dtype=np.bool_),
    )


def _per_second(amount: Count, span: Interval) -> float:
    start, end = span
    return (amount(end) - amount(start)) / max(end - start, _INSTANT)


def _complete(spec: EngineSpec, recording: Recording) -> list[SeenCall]:
    return [c for c in recording.calls.values() if c.engine == spec.name and c.usage is not None]


def _prompt(call: SeenCall) -> int:
    return call.usage.prompt_tokens if call.usage else 0


def _output(call: SeenCall) -> int:
    return call.usage.completion_tokens if call.usage else 0


def _first(call: SeenCall) -> float:
    """When its first token came, as far as it showed."""
    return call.first if call.first is not None else call.ended or call.sent


def _decode(call: SeenCall) -> Interval:
    """From the first token to the last; an answer that was not streamed shows only the whole."""
    end = call.ended or call.sent
    return (call.first if call.first is not None else call.sent, end)


def _found_idle(calls: Sequence[SeenCall]) -> set[int]:
    """Calls from whose start to whose first token nothing else was there."""
    ordered = sorted(calls, key=lambda call: call.sent)
    found = set()
    busy_until = -math.inf
    for call, after in zip_longest(ordered, ordered[1:]):
        first = call.first if call.first is not None else call.sent
        if busy_until <= call.sent and (after is None or after.sent >= first):
            found.add(call.number)
        busy_until = max(busy_until, call.ended or call.sent)
    return found


def _prefills(calls: Sequence[SeenCall]) -> list[Interval]:
    """When each prompt was computed: after the one before it. `calls` in the order of first tokens."""
    spans = []
    before = previous = -math.inf
    for call in calls:
        first = _first(call)
        if first > previous:
            before, previous = previous, first
        spans.append((max(call.sent, before), first))
    return spans


def caches_prefixes(spec: EngineSpec) -> bool:
    """Whether the engine keeps what it computed of a prompt for those that begin alike."""
    return spec.kind != "transformers"


def _uncached(spec: EngineSpec, calls: Sequence[SeenCall], recording: Recording) -> list[float]:
    """Prompt tokens that an engine, with a prefix cache of `kv_tokens` if it has one, had to compute."""
    if not caches_prefixes(spec):
        return [float(_prompt(call)) for call in calls]
    cache: OrderedDict[int, int] = OrderedDict()
    held = 0
    uncached: dict[int, float] = {}
    moments = [(call.sent, 1, call) for call in calls]
    moments += [(_first(call), 0, call) for call in calls]
    for _, asks, call in sorted(moments, key=lambda moment: moment[:2]):
        seen = recording.requests.get(call.slices[0].id)
        blocks = seen.job.blocks if seen else ()
        each = (
            max(1, _prompt(call) * BLOCK_BYTES // seen.job.prompt_bytes)
            if seen and seen.job.prompt_bytes
            else 0
        )
        if asks:
            found = next((n for n, block in enumerate(blocks) if block not in cache), len(blocks))
            uncached[call.number] = float(
                max(1, _prompt(call) - sum(cache[block] for block in blocks[:found]))
            )
            continue
        for block in reversed(blocks):
            held += each if block not in cache else 0
            cache.setdefault(block, each)
            cache.move_to_end(block)
        while held > spec.kv_tokens:
            held -= cache.popitem(last=False)[1]
    return [uncached[call.number] for call in calls]


def _amount(spans: Sequence[Interval], amounts: Sequence[float]) -> Count:
    """How much there was until a time, where each amount comes evenly over its span."""
    if not spans:
        return lambda _: 0.0
    starts = np.array([start for start, _ in spans])
    ends = np.maximum(np.array([end for _, end in spans]), starts + _INSTANT)
    rates = np.array(amounts, dtype=np.float64) / (ends - starts)
    times = np.concatenate([starts, ends])
    order = np.argsort(times, kind="stable")
    times, slopes = times[order], np.cumsum(np.concatenate([rates, -rates])[order])
    totals = np.concatenate([[0.0], np.cumsum(slopes[:-1] * np.diff(times))])
    return lambda time: float(np.interp(time, times, totals))


def _batches(calls: Sequence[SeenCall]) -> list[tuple[list[SeenCall], Interval]]:
    """Batches of an engine that takes all that waits. One whose calls end apart says nothing, nor do those
    after it until the engine has run dry: which texts they held is not known.
    """
    found = []
    coming = deque(calls)
    left: list[SeenCall] = []
    free, clear = -math.inf, True
    while left or coming:
        if not left:
            clear = clear or coming[0].sent > free
            free = max(free, coming[0].sent)
        while coming and coming[0].sent <= free:
            left.append(coming.popleft())
        end = min(call.ended or free for call in left)
        later = [call for call in left if (call.ended or free) - end > _TOGETHER * max(0.0, end - free)]
        clear = clear and not later
        if clear:
            found.append((left, (free, end)))
        left, free = later, end
    return found


def _singles(calls: Sequence[SeenCall]) -> list[tuple[list[SeenCall], Interval]]:
    """Calls of an engine that computes one after the other, in order of arrival."""
    found: list[tuple[list[SeenCall], Interval]] = []
    free = -math.inf
    for call in calls:
        end = call.ended or call.sent
        found.append(([call], (max(free, call.sent), end)))
        free = max(free, end)
    return found


def _pieces(tokens: int, texts: int, bounds: BatchBounds) -> int:
    """How many batches an engine with these bounds makes of a call."""
    return max(1, math.ceil(tokens / bounds.tokens), math.ceil(texts / bounds.texts))


def _lent(spec: EngineSpec, members: Sequence[SeenCall]) -> float:
    """The threads that a batch ran on, as a multiple of the engine's own cores."""
    threads = max(call.threads for call in members)
    return threads / spec.cores if spec.elastic and threads and spec.cores else 1.0
