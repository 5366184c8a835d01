"""Workloads: what streams draw, what a file may say, and what comes with the package."""

from __future__ import annotations

import statistics
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sage.common.errors import ConfigError, NotFoundError
from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.simulator.fleet import load_fleet
from sage.middleware.control_plane.simulator.shapes import Models, Setting
from sage.middleware.control_plane.simulator.types import SimRequest
from sage.middleware.control_plane.simulator.workloads import (
    Workload,
    available_workloads,
    json_schema,
    load_workload,
    models_of,
    read_workload,
)
from sage.middleware.control_plane.types import Slo
from sage.middleware.engines.port import Capability

MODELS = Models("chat-8b", "embed-small", "rerank-small")
POISSON = {"process": "poisson", "rate": 20}
WITHOUT_DATA = [
    name for name in available_workloads() if name not in ("azure_conversation", "mooncake_conversation")
]


def setting(seed: int = 0, duration: float = 60.0, load: float = 1.0, models: Models = MODELS) -> Setting:
    return Setting(seed, duration, models, load)


def draw(seed: int = 0, duration: float = 60.0, load: float = 1.0, **stream: Any) -> list[SimRequest]:
    workload = Workload.model_validate({"streams": [{"arrivals": POISSON, **stream}]})
    return list(workload.requests(setting(seed, duration, load)))


def chain(request: SimRequest) -> list[SimRequest]:
    """A request and all that follow it."""
    return [request, *(later for follow in request.follow for later in chain(follow))]


def refusal(tmp_path: Path, text: str) -> str:
    file = tmp_path / "load.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_workload(file)
    return str(caught.value)


@pytest.mark.parametrize("name", WITHOUT_DATA)
def test_a_ready_workload_is_in_order_repeatable_and_has_unique_ids(name: str) -> None:
    workload = load_workload(name)
    requests = list(workload.requests(setting()))
    assert [r.at for r in requests] == sorted(r.at for r in requests)
    assert all(0 <= r.at < 60 for r in requests)
    ids = [step.job.id for request in requests for step in chain(request)]
    assert len(ids) == len(set(ids)) > 50
    assert requests == list(workload.requests(setting()))
    assert requests != list(workload.requests(setting(seed=1)))
    assert workload.about


def test_every_ready_workload_finds_its_models_in_the_large_fleet() -> None:
    assert models_of(load_fleet("two_gpus_and_cpus")) == MODELS
    assert models_of(load_fleet("four_llms")) == Models("chat-8b")


def test_more_load_is_more_requests() -> None:
    assert len(draw(kind="embed", load=2.0)) == pytest.approx(2 * len(draw(kind="embed")), rel=0.1)


def test_a_stream_is_not_changed_by_another_beside_it() -> None:
    one = {"kind": "embed", "arrivals": POISSON}
    other = {"kind": "completion", "arrivals": POISSON}
    alone = list(Workload.model_validate({"streams": [one]}).requests(setting()))
    both = list(Workload.model_validate({"streams": [other, one]}).requests(setting()))
    assert [r for r in both if r.job.request_class is RequestClass.EMBED_INTERACTIVE] == alone


def test_chat_comes_at_its_rate_from_the_start() -> None:
    requests = draw(kind="chat", duration=400)
    assert len(requests) / 400 == pytest.approx(20, rel=0.1)
    assert sum(r.at < 100 for r in requests) == pytest.approx(2000, rel=0.15)
    assert {r.job.request_class for r in requests} == {RequestClass.CHAT}
    assert all(r.job.stream and r.job.needs == {Capability.CHAT} and not r.job.batch_key for r in requests)


def test_each_turn_of_a_conversation_begins_with_the_whole_of_the_last() -> None:
    requests = draw(kind="chat", duration=120, system_prompts=2)
    system = int(300 * 4.3) // 256
    assert len({r.job.blocks[:system] for r in requests}) == 2, "two system prompts are shared by all"
    by_first_own: dict[int, list[tuple[int, ...]]] = {}
    for request in requests:
        if len(request.job.blocks) > system:
            by_first_own.setdefault(request.job.blocks[system], []).append(request.job.blocks)
    grown = [pair for turns in by_first_own.values() for pair in pairwise(turns)]
    assert len(grown) > 200
    assert all(later[: len(earlier)] == earlier and len(later) > len(earlier) for earlier, later in grown)


def test_what_the_scheduler_is_told_is_an_estimate_of_what_is_true() -> None:
    requests = draw(kind="completion", duration=200)
    errors = [r.job.prompt_tokens / r.prompt_tokens for r in requests]
    assert statistics.mean(errors) == pytest.approx(4.3 / 4, rel=0.03)
    assert 0.04 < statistics.stdev(errors) < 0.15
    assert all(r.job.prompt_bytes > 0 and r.job.body_bytes > r.job.prompt_bytes for r in requests)
    assert all(0 < r.output_tokens <= (r.job.max_tokens or 0) for r in requests)


def test_embeddings_share_a_key_and_bulk_has_its_texts() -> None:
    bulk = draw(kind="bulk", texts=64, tokens=100)
    assert {(r.job.texts, r.prompt_tokens, r.output_tokens) for r in bulk} == {(64, 6400, 0)}
    assert {r.job.batch_key for r in bulk} == {"embed-small:embeddings"}
    single = draw(kind="embed")
    assert all(r.job.hedgeable and r.job.texts == 1 for r in single)
    assert {r.job.model for r in draw(kind="rerank", texts=20)} == {"rerank-small"}


def test_a_storm_comes_in_bursts() -> None:
    storm = draw(kind="bulk", texts=64, arrivals={"process": "burst", "size": 4, "every_s": 20, "first_s": 5})
    assert [r.at for r in storm] == [5.0] * 4 + [25.0] * 4 + [45.0] * 4


def test_the_steps_of_a_chain_share_the_deadline_of_the_first() -> None:
    for request in draw(kind="rag", deadline_s=6, slo={"ttft_s": 1.0}):
        embed, rerank, chat = chain(request)
        assert [s.job.request_class for s in (embed, rerank, chat)] == ["embed_interactive", "rerank", "chat"]
        assert [s.deadline for s in (embed, rerank, chat)] == [6, None, None]
        assert [s.job.parent for s in (embed, rerank, chat)] == ["", embed.job.id, embed.job.id]
        assert [s.job.slo for s in (embed, rerank, chat)] == [None, None, Slo(ttft=1.0)]
        assert rerank.at == chat.at == 0.005
        assert len({s.job.tenant for s in (embed, rerank, chat)}) == 1


def test_a_chain_without_documents_has_no_rerank() -> None:
    assert {len(chain(request)) for request in draw(kind="rag", documents=0)} == {2}


def test_a_noisy_tenant_sends_its_multiple_and_zipf_falls_with_rank() -> None:
    noisy = Counter(
        r.job.tenant for r in draw(kind="embed", duration=500, tenants={"count": 10, "noisy": 10})
    )
    assert noisy["tenant-0"] / noisy["tenant-5"] == pytest.approx(10, rel=0.25)
    zipf = Counter(r.job.tenant for r in draw(kind="embed", duration=500, tenants={"count": 4, "zipf": 1}))
    assert zipf["tenant-0"] / zipf["tenant-3"] == pytest.approx(4, rel=0.2)


def test_deadline_patience_priority_and_goal_go_into_each_request() -> None:
    slo = {"ttft_s": 1.0, "tpot_s": 0.05}
    request = draw(kind="batch", deadline_s=9, patience_s=3, priority=2, slo=slo, model="other")[0]
    assert (request.deadline, request.cancel_after, request.job.priority) == (9, 3, 2)
    assert request.job.slo == Slo(ttft=1.0, tpot=0.05)
    assert request.job.model == "other"


def test_a_fleet_that_lacks_a_model_is_named_before_anything_is_drawn() -> None:
    workload = load_workload("rag_chains")
    with pytest.raises(ConfigError, match="rag needs embeddings and rerank; the fleet has no engine"):
        workload.requests(setting(models=Models("chat-8b")))


def test_a_missing_workload_names_the_nearest_and_all() -> None:
    with pytest.raises(NotFoundError, match="nearest is mixed; there are azure_conversation, batch_beside"):
        load_workload("mixd")


def test_a_file_is_read_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "load.yaml"
    file.write_text("streams:\n  - {kind: embed, arrivals: {process: poisson, rate: 3}}\n")
    assert load_workload(str(file)).duration_s == 120


def test_every_problem_is_told_with_its_line_and_what_is_valid(tmp_path: Path) -> None:
    said = refusal(
        tmp_path,
        "streams:\n"
        "  - kind: chat\n"
        "    arrivals: {process: poison, rate: 3}\n"
        "  - kind: embed\n"
        "    texst: 3\n"
        "    arrivals:\n"
        "      process: gamma\n"
        "      rate: -1\n"
        "  - kind: chats\n"
        "  - arrivals: {process: poisson, rate: 1}\n",
    )
    assert "has 5 problems" in said
    assert "load.yaml:3: streams.0.arrivals: process is 'poison'; the nearest is poisson; valid are" in said
    assert "load.yaml:5: streams.1.texst: unknown key; the nearest is texts" in said
    assert "load.yaml:8: streams.1.arrivals.rate: Input should be greater than 0; found -1" in said
    assert "load.yaml:9: streams.2: kind is 'chats'; the nearest is chat" in said
    assert "load.yaml:10: streams.3: the key kind is missing" in said


def test_two_streams_of_one_name_are_refused(tmp_path: Path) -> None:
    said = refusal(tmp_path, "streams:\n" + 2 * "  - {kind: embed, arrivals: {process: poisson, rate: 3}}\n")
    assert "several streams are called embed; give each its own `name`" in said


@pytest.mark.parametrize(
    ("text", "words"),
    [("streams: []\n", "at least 1 item"), ("about: x\n", "streams: this key is required"), ("", "streams")],
)
def test_a_workload_without_streams_is_refused(tmp_path: Path, text: str, words: str) -> None:
    assert words in refusal(tmp_path, text)


def test_the_schema_names_every_kind() -> None:
    text = str(json_schema())
    assert all(kind in text for kind in ("chat", "rag", "replay", "bulk", "on_off", "diurnal"))
