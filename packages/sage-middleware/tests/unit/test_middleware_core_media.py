"""Sound and pictures take slots like anything else, and teach the cost model of an engine nothing."""

from __future__ import annotations

import pytest
from msgspec import structs

from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.placement import MEDIA_SILENT_S
from sage.middleware.control_plane.types import EngineChanged, Job
from sage.middleware.engines.port import Capability, Usage
from sage.middleware.testing.core import CoreBench
from sage.middleware.testing.policies import chat_job, chat_spec


def media_job(ident: str, *, stream: bool) -> Job:
    return structs.replace(
        chat_job(ident),
        needs=frozenset((Capability.SPEECH,)),
        request_class=RequestClass.COMPLETION,
        stream=stream,
        prompt_bytes=0,
        max_tokens=None,
    )


def bench() -> CoreBench:
    spec = chat_spec("e0", max_running=1)
    return CoreBench("hybrid", structs.replace(spec, capabilities=spec.capabilities | {Capability.SPEECH}))


def serve(one: CoreBench, job: Job) -> None:
    one.arrive(job)
    one.at += 7.0
    if job.stream:
        one.begin(job.id)
    one.at += 5.0
    one.finish(job.id, Usage(11, 900))
    assert one.outcome(job.id) == "done"


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_is_learned_of_them(stream: bool) -> None:
    one, untouched = bench(), bench()
    for at in range(8):
        serve(one, media_job(f"m{at}", stream=stream))
    llm, fresh = one.core.engines["e0"].llm, untouched.core.engines["e0"].llm
    assert (llm.samples, llm.ttft(100, 0), llm.tpot(1)) == (0, fresh.ttft(100, 0), fresh.tpot(1))
    one.arrive(chat_job("c"))
    untouched.arrive(chat_job("c"))
    assert one.record("c").output_p50 == untouched.record("c").output_p50
    serve(one := bench(), structs.replace(chat_job("s"), stream=True))
    assert one.core.engines["e0"].llm.samples == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_picture_that_takes_its_time_is_no_hang(stream: bool) -> None:
    one = bench()
    one.arrive(media_job("m", stream=stream))
    assert one.wait(MEDIA_SILENT_S) == []
    assert one.outcome("m") == "running"
    one.wait(70.0)
    assert one.outcome("m") != "running"


def test_they_take_a_slot_and_give_it_back() -> None:
    one = bench()
    one.arrive(media_job("a", stream=True))
    one.arrive(media_job("b", stream=False))
    assert one.waiting(RequestClass.COMPLETION) == 1
    one.cancel("a")
    assert one.engine("b") == "e0"


def test_an_engine_that_is_described_anew_is_what_it_says_now() -> None:
    """One that gets a voice while it runs has the time that sound takes from then on."""
    spec = chat_spec("e0", max_running=1)
    one = CoreBench("hybrid", spec)
    assert not one.core.engines["e0"].media
    spoken = structs.replace(spec, capabilities=spec.capabilities | {Capability.SPEECH})
    one.core.handle(EngineChanged(one.at, spoken))
    one.arrive(media_job("m", stream=False))
    (attempt,) = one.core.engines["e0"].attempts.values()
    assert attempt.silence == MEDIA_SILENT_S
