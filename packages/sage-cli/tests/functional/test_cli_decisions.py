"""`sage explain` and `sage policy`: what people read of the control plane's decisions."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from sage.common.api import Decision

Run = Callable[..., subprocess.CompletedProcess[str]]

DECISION: dict[str, Any] = {
    "request_id": "req-1",
    "at": 1.0,
    "request_class": "chat",
    "tenant": "default",
    "model": "tiny",
    "route": "chat/completions",
    "policy": "hybrid",
    "engine": "llm-0",
    "reason": "earliest predicted finish",
    "outcome": "done",
    "queue_s": 0.0012,
    "ttft_s": 0.0212,
    "latency_s": 0.5,
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "attempts": 1,
}
CANDIDATES = [
    {"engine": "llm-0", "running": 2, "free": 30, "predicted_s": 0.018, "cached_tokens": 512},
    {"engine": "llm-1", "running": 0, "free": 32, "predicted_s": None, "cached_tokens": 0},
]
POLICIES = {
    "name": "hybrid",
    "available": ["fifo", "hybrid"],
    "summaries": {"fifo": "In order of arrival.", "hybrid": "Meets the most goals."},
}


def explained(running: Run, stack: Any, **more: Any) -> dict[str, str]:
    """The rows of what is printed, by their first word; the rest under the empty name."""
    stack.answer("GET", "/admin/v1/decisions/req-1", {**DECISION, **more})
    rows, _, rest = running("explain", "req-1").stdout.partition("\n\n")
    return {row[:11].strip(): row[11:] for row in rows.splitlines()} | {"": rest}


def test_where_why_and_how_long(running: Run, stack: Any) -> None:
    rows = explained(running, stack)
    assert rows["request"] == "req-1 (chat, tenant default, chat/completions)"
    assert rows["engine"] == "llm-0"
    assert rows["why"] == "earliest predicted finish (policy hybrid)"
    assert (rows["queued"], rows["first byte"], rows["latency"]) == ("1.2 ms", "21.2 ms", "500.0 ms")
    assert rows["tokens"] == "3 in, 2 out"
    assert (rows["outcome"], rows["goals"]) == ("done", "none")


def test_as_json_it_is_what_the_server_said(running: Run, stack: Any) -> None:
    stack.answer("GET", "/admin/v1/decisions/req-1", DECISION)
    found = json.loads(running("explain", "req-1", "--json").stdout)
    assert found == Decision(**DECISION).model_dump(mode="json")


def test_goals_and_what_was_known_beforehand(running: Run, stack: Any) -> None:
    rows = explained(
        running,
        stack,
        slo={"ttft_s": 2.0, "tpot_s": 0.1},
        deadline_s=9.0,
        prompt_tokens_estimate=250,
        output_tokens_p50=64.0,
        cached_tokens=192,
        ahead=3,
        ahead_s=0.42,
    )
    assert rows["goals"] == ("first token within 2000.0 ms, a token every 100.0 ms, dropped after 9000.0 ms")
    assert rows["expected"] == "about 250 tokens in, 64 out, 192 of them cached at the engine"
    assert rows["ahead"] == "3 requests waited before it (420.0 ms of engine time)"
    assert explained(running, stack, ahead=0)["ahead"] == "nothing waited before it"


def test_predicted_against_actual(running: Run, stack: Any) -> None:
    rows = explained(running, stack, predicted_s=0.018, actual_s=0.02, output_tokens_p50=8.0)
    assert rows["predicted"] == (
        "18.0 ms from the engine's start to the first token; it took 20.0 ms (10% off)"
    )
    rows = explained(running, stack, predicted_s=0.018)
    assert rows["predicted"] == "18.0 ms from the engine's start to the answer"
    assert "predicts no times" in explained(running, stack)["predicted"]


def test_the_engines_that_it_could_have_gone_to(running: Run, stack: Any) -> None:
    table = explained(running, stack, candidates=CANDIDATES)[""].splitlines()
    assert table[0].split()[:2] == ["CHOSEN", "ENGINE"]
    assert table[1].split() == ["*", "llm-0", "2", "30", "18.0", "ms", "512"]
    assert table[2].split() == ["llm-1", "0", "32", "-", "0"]


def test_without_them_it_says_how_to_have_them(running: Run, stack: Any) -> None:
    assert "`x-sage-explain: 1`" in explained(running, stack)[""]


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({"retries": 1, "attempts": 2}, "done, 1 retry, 2 calls to engines"),
        ({"hedges": 2, "crashes": 1}, "done, 2 hedges, 1 engine crash"),
        ({"retries": 2, "crashes": 2}, "done, 2 retries, 2 engine crashes"),
        ({"outcome": "rejected", "refusal": "forecast", "engine": None}, "rejected (forecast)"),
    ],
)
def test_what_happened(running: Run, stack: Any, fields: dict[str, Any], outcome: str) -> None:
    rows = explained(running, stack, **fields)
    assert rows["outcome"] == outcome
    assert rows["engine"] == fields.get("engine", "llm-0") or rows["engine"] == "never placed"


def test_the_policy_in_force(running: Run, stack: Any) -> None:
    stack.answer("GET", "/admin/v1/policy", POLICIES)
    assert running("policy", "show").stdout == "hybrid: Meets the most goals.\n"
    assert json.loads(running("policy", "show", "--json").stdout) == {
        "name": "hybrid",
        "summary": "Meets the most goals.",
    }


def test_all_policies(running: Run, stack: Any) -> None:
    stack.answer("GET", "/admin/v1/policy", POLICIES)
    lines = running("policy", "list").stdout.splitlines()
    assert lines[1].split(maxsplit=1) == ["fifo", "In order of arrival."]
    assert lines[2].split(maxsplit=2) == ["*", "hybrid", "Meets the most goals."]
    assert json.loads(running("policy", "list", "--json").stdout) == POLICIES


def test_another_policy_is_put_in_force(running: Run, stack: Any) -> None:
    stack.answer("PUT", "/admin/v1/policy", {**POLICIES, "name": "fifo"})
    done = running("policy", "use", "fifo")
    assert (done.stdout, done.stderr) == ("", "policy in force: fifo\n")
    assert stack.asked[-1][3] == {"name": "fifo"}
    assert json.loads(running("policy", "use", "fifo", "--json").stdout)["name"] == "fifo"


def test_a_policy_that_there_is_not_is_refused(running: Run, stack: Any) -> None:
    stack.answer("PUT", "/admin/v1/policy", {"error": {"message": "There is no policy named 'x'."}}, 400)
    done = running("policy", "use", "x")
    assert (done.returncode, done.stderr) == (2, "error: There is no policy named 'x'.\n")
