"""The generator and the smoke suite over real sockets."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sage.benchmark.load import Arrival, chat_request, drive, embed_request, models, send, session
from sage.benchmark.metrics import Record, e2e, ttft
from sage.benchmark.suites import smoke
from sage.common.api import EngineList, EngineStatus, PolicyStatus
from sage.common.errors import EngineError, NotFoundError, UnauthorizedError, UnreachableError, UsageError

CHAT = Arrival(0, 0.0, "chat")


async def ask(server: Any, mode: str = "ok", **target: Any) -> Any:
    server.chat = mode
    async with session(replace(server.target, **target)) as http:
        return await send(http, CHAT, chat_request("tiny", "Hello", 4), origin=0.0)


async def test_a_stream_is_timed_and_its_usage_read(server: Any) -> None:
    record = await ask(server)
    assert (record.outcome, record.status, record.request_id) == ("ok", 200, "req-1")
    assert len(record.pieces) == 3  # the empty role chunk is not a token
    assert (record.prompt_tokens, record.completion_tokens) == (5, 3)
    assert record.sent <= ttft(record) <= e2e(record)


async def test_a_stream_asks_for_usage(server: Any) -> None:
    await ask(server)
    assert server.seen[-1]["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("mode", "outcome", "error"),
    [
        ("shed", "shed", "queue full"),
        ("error", "failed", "engine died"),
        ("broken", "failed", r"without \[DONE\]"),
        ("empty", "failed", "held no text"),
    ],
)
async def test_faults_become_records(server: Any, mode: str, outcome: str, error: Any) -> None:
    record = await ask(server, mode)
    assert record.outcome == outcome
    assert re.search(error, record.error)


async def test_an_answer_that_never_ends_times_out(server: Any) -> None:
    record = await ask(server, "stall", timeout=0.2)
    assert record.outcome == "timeout"


async def test_a_server_that_is_gone_is_a_failed_record_and_an_unreachable_error(server: Any) -> None:
    gone = {"base_url": "http://127.0.0.1:9/v1"}
    assert (await ask(server, **gone)).outcome == "failed"
    target = replace(server.target, **gone)
    async with session(target) as http:
        with pytest.raises(UnreachableError, match="sage up"):
            await models(http, target)


async def test_a_wrong_key_is_said_so(server: Any) -> None:
    target = replace(server.target, api_key="sk-wrong")
    async with session(target) as http:
        with pytest.raises(UnauthorizedError, match="--api-key"):
            await models(http, target)


async def test_load_is_open_a_stalled_server_delays_no_later_request(server: Any) -> None:
    """All requests leave on time although not one answer ever comes."""
    server.chat = "stall"
    target = replace(server.target, timeout=1.0)
    arrivals = [Arrival(i, 0.01 * i, "chat") for i in range(20)]
    records: list[Record] = []
    async with session(target) as http:
        wall = await drive(http, arrivals, lambda _: chat_request("tiny", "Hi", 4), records.append)
    assert {record.outcome for record in records} == {"timeout"}
    assert max(record.sent for record in records) < 1.0 <= wall
    assert len(server.seen) == 20


async def test_no_request_leaves_before_its_time(server: Any) -> None:
    arrivals = [Arrival(i, 0.02 * i, "embed") for i in range(10)]
    records: list[Record] = []
    async with session(server.target) as http:
        await drive(http, arrivals, lambda _: embed_request("mini", "Hi"), records.append)
    assert all(record.sent >= record.intended for record in records)
    assert {record.outcome for record in records} == {"ok"}


class Admin:
    """The admin API's answers, as a port: the policy may change between two questions."""

    def __init__(self, *policies: str) -> None:
        self._policies = list(policies)

    def policy(self) -> PolicyStatus:
        return PolicyStatus(name=self._policies.pop(0), available=["fifo", "least_load"])

    def engines(self) -> EngineList:
        engine = EngineStatus(
            name="llm-0", kind="transformers", model="tiny", task="generate", state="ready", url="http://127.0.0.1:1",
            max_running=4, random_weights=True,
        )  # fmt: skip
        return EngineList(engines=[engine])


FAST = smoke.SmokeOptions(rate=60.0, duration=0.5, max_tokens=4)


async def test_the_smoke_suite_measures_both_classes(server: Any, tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    run, records = await smoke.run(server.target, FAST, file, admin=Admin("fifo", "fifo"))
    assert (run.policy, run.badges) == ("fifo", ["RANDOM-WEIGHTS"])
    assert (run.parameters["chat_model"], run.parameters["embed_model"]) == ("tiny", "mini")
    assert run.wall_s >= FAST.duration
    assert sum(row["issued"] for row in run.requests.values()) == len(records)
    assert {m.group for m in run.metrics} == {"chat", "embed", "client"}
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted(line["index"] for line in lines) == [record.index for record in records]


async def test_a_policy_that_changes_during_the_run_makes_it_invalid(server: Any, tmp_path: Path) -> None:
    run, _ = await smoke.run(server.target, FAST, tmp_path / "r", admin=Admin("fifo", "least_load"))
    assert any("from fifo to least_load" in reason for reason in run.invalid)


async def test_without_the_admin_api_the_run_says_unconfirmed(server: Any, tmp_path: Path) -> None:
    run, _ = await smoke.run(server.target, FAST, tmp_path / "r")
    assert (run.policy, run.badges) == ("unconfirmed", ["UNCONFIRMED"])


async def test_requests_differ_so_that_no_cache_answers(server: Any, tmp_path: Path) -> None:
    await smoke.run(server.target, FAST, tmp_path / "r")
    texts = [body["input"] for body in server.seen if "input" in body and body["input"] != "Hello"]
    assert len(set(texts)) == len(texts) > 0


async def test_a_class_that_is_never_answered_is_an_error_and_keeps_its_records(
    server: Any, tmp_path: Path
) -> Any:
    server.chat = "shed"
    with pytest.raises(NotFoundError, match=r"No model .* answers a chat call .*queue full"):
        await smoke.run(server.target, FAST, tmp_path / "r")
    server.chat = "ok"

    class Breaks(Admin):
        def policy(self) -> PolicyStatus:
            server.chat = "shed"
            return super().policy()

    with pytest.raises(EngineError, match="None of the"):
        await smoke.run(server.target, FAST, tmp_path / "r", admin=Breaks("fifo", "fifo"))
    assert (tmp_path / "r").read_text().count("queue full") > 0


@pytest.mark.parametrize(
    "options", [smoke.SmokeOptions(rate=0), smoke.SmokeOptions(rate=0.001), smoke.SmokeOptions(duration=-1)]
)
async def test_a_schedule_that_measures_nothing_is_refused(server: Any, tmp_path: Path, options: Any) -> None:
    with pytest.raises(UsageError):
        await smoke.run(server.target, options, tmp_path / "r")
    assert not server.seen
