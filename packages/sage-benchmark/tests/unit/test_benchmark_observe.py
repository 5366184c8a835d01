"""Rows of the fit from recordings made by hand, where each duration is worked out on paper."""

from __future__ import annotations

import numpy as np
import pytest

from sage.benchmark.simulate.observe import BOUNDS, BatchBounds, computing, embed_rows, handover, llm_rows
from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.simulator.recorded import Recording, SeenCall, SeenRequest
from sage.middleware.control_plane.types import Job, Slice
from sage.middleware.engines.port import Capability, EngineSpec, Usage

LLM = EngineSpec("llm", "vllm", "big", frozenset((Capability.CHAT,)), 8, chunk=100)
GREEDY = EngineSpec("mini", "embedding", "small", frozenset((Capability.EMBEDDINGS,)), 8)
SINGLE = EngineSpec("mini", "embedding", "small", frozenset((Capability.EMBEDDINGS,)), 8, batches=False)
ELASTIC = EngineSpec(
    "mini", "embedding", "small", frozenset((Capability.EMBEDDINGS,)), 8, cores=2, elastic=True
)
WIDE = BatchBounds(65536, 4096)


def recording(*calls: SeenCall, blocks: dict[str, tuple[int, ...]] | None = None) -> Recording:
    found = Recording()
    for call in calls:
        found.calls[call.number] = call
        ident = call.slices[0].id
        job = Job(ident, "m", RequestClass.CHAT, "t", frozenset(), 9, 9, None, prompt_bytes=1024,
                  blocks=(blocks or {}).get(ident, ()))  # fmt: skip
        found.requests[ident] = SeenRequest(job, call.sent, None)
    return found


def text(
    number: int, sent: float, ended: float, tokens: int = 50, texts: int = 1, threads: int = 0
) -> SeenCall:
    return SeenCall(
        number, "mini", (Slice(f"r{number}", 0, texts),), sent, threads, None, ended, Usage(tokens, 0)
    )


def chat(number: int, sent: float, first: float, ended: float, prompt: int, output: int) -> SeenCall:
    return SeenCall(number, "llm", (Slice(f"r{number}", 0, 1),), sent, 0, first, ended, Usage(prompt, output))


def test_a_call_at_an_idle_engine_is_a_batch_of_its_own() -> None:
    rows = embed_rows(GREEDY, recording(text(1, 0.0, 1.0), text(2, 5.0, 7.0, 80, 4)), [])[WIDE]
    assert rows.x.tolist() == [[1, 50, 1], [1, 80, 4]]
    assert rows.seconds.tolist() == [1.0, 2.0]


def test_what_waits_together_and_ends_together_was_one_batch() -> None:
    rows = embed_rows(GREEDY, recording(text(1, 0.0, 1.0), text(2, 0.2, 3.0), text(3, 0.4, 3.0, 70, 2)), [])[
        WIDE
    ]
    assert rows.x.tolist() == [[1, 50, 1], [1, 120, 3]]
    assert rows.seconds.tolist() == [1.0, 2.0]


def test_answers_of_one_batch_are_handed_over_a_moment_apart() -> None:
    rows = embed_rows(GREEDY, recording(text(1, 0.0, 1.0), text(2, 0.5, 2.0), text(3, 0.6, 2.04)), [])[WIDE]
    assert rows.x.tolist() == [[1, 50, 1], [1, 100, 2]]


def test_batches_that_are_not_known_for_sure_say_nothing_until_the_engine_ran_dry() -> None:
    torn = [text(1, 0.0, 1.0), text(2, 0.2, 2.0), text(3, 0.4, 4.0), text(4, 3.0, 5.0), text(5, 9.0, 9.5)]
    rows = embed_rows(GREEDY, recording(*torn), [])[WIDE]
    assert rows.seconds.tolist() == [1.0, 0.5]


def test_a_large_call_is_several_batches_by_small_bounds() -> None:
    found = embed_rows(GREEDY, recording(text(1, 0.0, 1.0, 5000, 60)), [])
    assert set(found) == set(BOUNDS)
    assert found[BatchBounds(2048, 64)].x[0].tolist() == [3, 5000, 60]
    assert found[BatchBounds(16384, 32)].x[0].tolist() == [2, 5000, 60]
    assert found[WIDE].x[0].tolist() == [1, 5000, 60]


def test_what_is_not_told_apart_is_as_by_default() -> None:
    found = embed_rows(ELASTIC, recording(text(1, 0.0, 1.0, threads=4)), [])
    assert next(iter(found)) == BatchBounds(2048, 64, scaling=0.8)


def test_answers_leave_one_after_the_other() -> None:
    together = [text(1, 0.0, 1.0), text(2, 0.5, 2.0), text(3, 0.6, 2.02), text(4, 0.7, 2.01)]
    assert handover(GREEDY, recording(*together)) == pytest.approx(0.01)
    assert handover(GREEDY, recording(text(1, 0.0, 1.0))) == 0.0
    assert handover(SINGLE, recording(*together)) == 0.0


def test_a_large_call_that_another_joined_says_nothing() -> None:
    joined = recording(text(1, 0.0, 1.0, 5000, 60), text(2, 0.5, 2.0))
    assert embed_rows(GREEDY, joined, [])[WIDE].seconds.tolist() == [1.0]


def test_an_engine_without_batches_takes_one_after_the_other() -> None:
    (rows,) = embed_rows(
        SINGLE, recording(text(1, 0.0, 1.0), text(2, 0.5, 2.5), text(3, 4.0, 5.0)), []
    ).values()
    assert rows.seconds.tolist() == [1.0, 1.5, 1.0]


def test_lent_threads_make_the_same_work_shorter() -> None:
    rows = embed_rows(ELASTIC, recording(text(1, 0.0, 1.0, 100, 2, threads=4)), [])[WIDE]
    assert rows.x[0] == pytest.approx(np.array([1, 100, 2]) / 2**0.8)


def test_where_threads_were_lent_what_they_give_is_tried() -> None:
    found = embed_rows(ELASTIC, recording(text(1, 0.0, 1.0, 100, 2, threads=4), text(2, 5.0, 6.0)), [])
    assert {bounds.scaling for bounds in found} == {0.0, 0.2, 0.4, 0.6, 0.8, 1.0}
    none, full = found[WIDE._replace(scaling=0.0)], found[WIDE._replace(scaling=1.0)]
    assert none.x[0].tolist() == [1, 100, 2]
    assert full.x[0].tolist() == [0.5, 50, 1]
    assert none.x[1].tolist() == full.x[1].tolist(), "its own threads are the measure"
    own = embed_rows(ELASTIC, recording(text(2, 5.0, 6.0)), [])
    assert set(own) == set(BOUNDS), "without lent threads there is nothing to try"


def test_lent_threads_beside_a_neighbour_say_nothing_about_the_engine() -> None:
    both = recording(text(1, 0.0, 1.0, threads=4), text(2, 5.0, 6.0, threads=4), text(3, 8.0, 9.0))
    rows = embed_rows(ELASTIC, both, [(5.5, 10.0)])[WIDE]
    assert rows.at.tolist() == [0.5, 8.5]


def test_the_share_of_time_beside_a_neighbour() -> None:
    rows = embed_rows(GREEDY, recording(text(1, 0.0, 2.0), text(2, 5.0, 6.0)), [(1.5, 5.5)])[WIDE]
    assert rows.beside == pytest.approx([0.25, 0.5])
    merged = computing([GREEDY], recording(text(1, 0.0, 2.0), text(2, 1.0, 3.0), text(3, 5.0, 6.0)))
    assert merged == [(0.0, 3.0), (5.0, 6.0)]


def test_an_answer_alone_has_its_own_tokens_and_its_own_prefill() -> None:
    rows = llm_rows(LLM, recording(chat(1, 0.0, 1.0, 5.0, 250, 41)), [])
    assert rows.x == pytest.approx(np.array([[40, 40, 0], [3, 0, 250]]))
    assert rows.seconds.tolist() == [4.0, 1.0]
    assert (rows.first.tolist(), rows.at.tolist()) == ([False, True], [3.0, 0.5])


def test_answers_side_by_side_share_tokens_and_prefill() -> None:
    rows = llm_rows(LLM, recording(chat(1, 0.0, 1.0, 5.0, 100, 41), chat(2, 2.0, 3.0, 5.0, 80, 21)), [])
    first = next(row for row in rows.x if row[0] == 40)
    second = next(row for row in rows.x if row[0] == 20)
    assert first.tolist() == pytest.approx([40, 60, 80], rel=1e-3)
    assert second.tolist() == pytest.approx([20, 40, 0], rel=1e-3, abs=1e-3)


def test_a_prefix_that_was_computed_there_is_not_computed_again() -> None:
    calls = [chat(1, 0.0, 1.0, 2.0, 400, 3), chat(2, 5.0, 5.5, 6.0, 400, 3)]
    shared = recording(*calls, blocks={"r1": (1, 2), "r2": (1, 2, 3)})
    assert [row[2] for row in llm_rows(LLM, shared, []).x] == [400, 200]
    other = recording(*calls, blocks={"r1": (1, 2), "r2": (7, 2, 3)})
    assert [row[2] for row in llm_rows(LLM, other, []).x] == [400, 400]


def test_what_was_never_used_has_no_rows() -> None:
    assert llm_rows(LLM, recording(text(1, 0.0, 1.0)), []).seconds.size == 0
    assert embed_rows(GREEDY, recording(chat(1, 0.0, 1.0, 2.0, 9, 9)), [])[WIDE].x.shape == (0, 3)
