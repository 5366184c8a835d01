"""The smoke suite over real sockets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sage.benchmark.suites import smoke
from sage.common.api import EngineList, EngineStatus, PolicyStatus
from sage.common.errors import EngineError, NotFoundError, UsageError


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
