"""The commands as a user sees them: arguments in; stdout, stderr and the exit code out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

CHAT = [
    {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
    {"choices": [{"delta": {"content": "Hello, "}}]},
    {"choices": [{"delta": {"content": "wörld"}}]},
    {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}, "id": "c-1", "model": "tiny"},
]
DECISION = {
    "request_id": "req-1",
    "at": 1.0,
    "request_class": "chat",
    "tenant": "default",
    "model": "tiny",
    "route": "chat/completions",
    "policy": "hybrid",
    "engine": "llm-0",
    "reason": "fewest running (0 of 4)",
    "outcome": "done",
    "queue_s": 0.0012,
    "ttft_s": 0.02,
    "latency_s": 0.5,
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "attempts": 1,
}


def status() -> dict[str, Any]:
    engine = {"name": "llm-0", "kind": "transformers", "model": "tiny", "state": "ready", "url": "http://x"}
    queue = {"request_class": "chat", "waiting": 1, "waiting_bytes": 9, "oldest_s": 0.25, "shed": 0}
    return {
        "version": "26.11.0",
        "uptime_s": 61.4,
        "policy": "hybrid",
        "engines": [{**engine, "task": "generate", "max_running": 4, "running": 2, "random_weights": True}],
        "queues": [{**queue, "completed": 7, "failed": 0}],
    }


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from sage.cli.main import app\n"
        "try: app(['--help'], prog_name='sage')\n"
        "except SystemExit: pass\n"
        "heavy = {'fastapi', 'torch', 'aiohttp', 'pydantic_settings', 'pydantic', 'transformers', 'numpy'}\n"
        "heavy.add('rich')\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("up", "status", "chat", "embed", "run", "down", "doctor", "config", "explain", "policy"):
        assert f"\n  {command} " in done.stdout


def test_version(sage: Run) -> None:
    done = sage("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("sage 26.")


@pytest.mark.parametrize(
    "arguments", [("status",), ("chat", "hi"), ("embed", "hi"), ("explain", "req-1"), ("policy", "show")]
)
def test_without_a_stack_each_command_exits_3_with_a_hint(sage: Run, arguments: tuple[str, ...]) -> None:
    done = sage(*arguments)
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith("error: No stack is running")
    assert "hint: Start one with `sage up`." in done.stderr


def test_down_without_a_stack_is_no_error(sage: Run) -> None:
    done = sage("down")
    assert done.returncode == 0
    assert "nothing was running" in done.stderr


@pytest.mark.parametrize(
    "arguments", [("--nope",), ("chatt",), ("chat", "x", "--max-tokens", "0"), ("explain",)]
)
def test_wrong_usage_exits_2(sage: Run, arguments: tuple[str, ...]) -> None:
    done = sage(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error:" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_token_exits_4(running: Run, stack: Any) -> None:
    stack.answer("GET", "/admin/v1/status", {"error": {"message": "No such token."}}, 401)
    done = running("status")
    assert (done.returncode, done.stderr) == (4, "error: No such token.\n")


def test_an_unknown_request_exits_5(running: Run) -> None:
    assert running("explain", "req-2").returncode == 5


def test_debug_shows_the_traceback(sage: Any) -> None:
    sage.env["SAGE_DEBUG"] = "1"
    assert "Traceback" in sage("status").stderr


def test_status_as_text_and_as_json(running: Run, stack: Any) -> None:
    stack.answer("GET", "/admin/v1/status", status())
    text = running("status").stdout
    assert "sage 26.11.0, up 61 s, policy hybrid" in text
    assert [*next(row.split() for row in text.splitlines() if row.startswith("llm-0"))] == [
        "llm-0", "transformers", "tiny", "ready", "2/4", "0", "0", "0", "RANDOM-WEIGHTS",
    ]  # fmt: skip
    found = json.loads(running("status", "--json").stdout)
    assert found["engines"][0]["running"] == 2
    assert found["queues"][0]["completed"] == 7


def test_status_shows_who_met_the_goals_and_what_was_refused(running: Run, stack: Any) -> None:
    times = {"p50": 0.1, "p90": 0.2, "p99": 1.5}
    chat = {"request_class": "chat", "offered": 200, "met": 190, "done": 196, "failed": 1}
    bulk = {"request_class": "embed_bulk", "offered": 0, "met": 0, "done": 0, "failed": 0, "cancelled": 3}
    chat |= {"shed": {"forecast": 2, "queue_full": 1}, "retries": 4, "hedges": 5, "ttft_s": times}
    stack.answer("GET", "/admin/v1/status", {**status(), "classes": [chat, bulk]})
    lines = running("status").stdout.splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("CLASS"))
    assert lines[head + 1].split("  ")[0] == "chat"
    for cell in ("200", "95.0%", "100/1500 ms", "2 forecast, 1 queue_full"):
        assert cell in lines[head + 1]
    assert lines[head + 2].split() == ["embed_bulk", "0", "-", "3", "0", "0", "-", "-", "0"]


RELOADED = {
    "applied": [{"key": "control_plane.policy", "before": "hybrid", "after": "fifo"}],
    "needs_restart": [{"key": "ports.gateway", "before": 8888, "after": 1}],
    "engines": {"added": ["b"], "removed": ["a"], "replaced": [], "changed": []},
}


def test_reload_tells_what_it_did_and_what_it_did_not(running: Run, stack: Any) -> None:
    stack.answer("POST", "/admin/v1/config/reload", RELOADED)
    done = running("reload")
    assert done.returncode == 0
    assert [line.split(maxsplit=1) for line in done.stdout.splitlines()[1:]] == [
        ["added", "engine b"],
        ["removed", "engine a"],
        ["applied", 'control_plane.policy  "hybrid" → "fifo"'],
        ["needs", "restart  ports.gateway         8888 → 1"],
    ]
    assert "`sage down`, then `sage up`" in done.stderr
    assert json.loads(running("reload", "--json").stdout) == RELOADED
    stack.answer("POST", "/admin/v1/config/reload", {})
    assert running("reload").stdout == "nothing has changed\n"


def test_reload_of_a_wrong_configuration_exits_2_with_every_problem(running: Run, stack: Any) -> None:
    words = "The configuration has 2 problems:\n  sage.yaml:1: a\n  sage.yaml:2: b"
    stack.answer("POST", "/admin/v1/config/reload", {"error": {"message": words}}, status=400)
    done = running("reload")
    assert done.returncode == 2
    assert "sage.yaml:1: a" in done.stderr
    assert "sage.yaml:2: b" in done.stderr


def test_chat_streams_text_and_labels_random_weights(running: Run, stack: Any) -> None:
    stack.stream("/v1/chat/completions", *CHAT)
    done = running("chat", "Hi", "--system", "Be brief.", "--max-tokens", "8")
    assert (done.returncode, done.stdout) == (0, "[RANDOM-WEIGHTS] Hello, wörld\n")
    assert "RANDOM-WEIGHTS" in done.stderr
    assert "`sage explain req-1`" in done.stderr
    _, _, key, body = stack.asked[-1]
    assert key == "Bearer sk-sage-key"
    assert body["model"] == "tiny"
    assert body["max_tokens"] == 8
    assert [m["role"] for m in body["messages"]] == ["system", "user"]


def test_chat_labels_the_small_model_that_comes_along(running: Run, stack: Any) -> None:
    base = {"name": "llm-0", "kind": "transformers", "model": "sage-nano", "task": "generate"}
    nano = {**base, "state": "ready", "url": "", "max_running": 4, "random_weights": False}
    stack.answer("GET", "/admin/v1/engines", {"engines": [nano]})
    stack.stream("/v1/chat/completions", *CHAT)
    done = running("chat", "Hi")
    assert (done.returncode, done.stdout) == (0, "[sage-nano] Hello, wörld\n")
    assert "RANDOM-WEIGHTS" not in done.stderr


def test_quiet_leaves_only_data(running: Run, stack: Any) -> None:
    stack.stream("/v1/chat/completions", *CHAT)
    assert running("--quiet", "chat", "Hi").stderr == ""


def test_chat_reads_a_pipe_and_writes_ndjson(running: Run, stack: Any) -> None:
    stack.stream("/v1/chat/completions", *CHAT)
    done = running("chat", "--json", stdin="first\nsecond\n")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["text"] for line in lines[:-1]] == ["Hello, ", "wörld"]
    assert all(line["random_weights"] is True for line in lines)
    assert lines[-1]["usage"]["completion_tokens"] == 2
    assert lines[-1]["request_id"] == "req-1"
    assert stack.asked[-1][3]["messages"][0]["content"] == "first\nsecond"


def test_a_stream_that_breaks_off_is_a_failure(running: Run, stack: Any) -> None:
    stack.answer("POST", "/v1/chat/completions", b'data: {"choices": [{"delta": {"content": "He"}}]}\n\n')
    done = running("chat", "Hi")
    assert done.returncode == 1
    assert done.stdout.startswith("[RANDOM-WEIGHTS] He")
    assert "error: The answer broke off before its end." in done.stderr


@pytest.mark.parametrize("command", ["chat", "embed"])
def test_an_empty_pipe_is_wrong_usage(running: Run, command: str) -> None:
    done = running(command, stdin="\n")
    assert done.returncode == 2
    assert "error: Standard input is empty." in done.stderr


def test_an_unknown_model_names_those_there_are(running: Run) -> None:
    done = running("chat", "Hi", "--model", "gpt-9")
    assert done.returncode == 5
    assert "'gpt-9'; served are: tiny, minilm." in done.stderr


def test_embed_gives_one_line_per_text(running: Run, stack: Any) -> None:
    vectors = [{"embedding": [0.5, -0.25, 0.0, 1.0, 0.1]}, {"embedding": [0.0] * 5}]
    stack.answer("POST", "/v1/embeddings", {"data": vectors})
    lines = running("embed", "--json", stdin="one\n\ntwo\n").stdout.splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["one", "two"]
    assert stack.asked[-1][3] == {"model": "minilm", "input": ["one", "two"]}
    assert "+0.5000 -0.2500 +0.0000 +1.0000" in running("embed", "one", "two").stdout


RERANKER = {"name": "rerank-0", "kind": "embedding", "model": "ranker", "task": "rerank"}
RANKED = {"results": [{"index": 1, "relevance_score": 0.75}, {"index": 0, "relevance_score": 0.5}]}


def test_rerank_orders_documents_and_labels_random_weights(running: Run, stack: Any) -> None:
    engine = {**RERANKER, "state": "ready", "url": "", "max_running": 4, "random_weights": True}
    stack.answer("GET", "/admin/v1/engines", {"engines": [engine]})
    stack.answer("POST", "/v1/rerank", RANKED)
    done = running("rerank", "which?", "one", "two", "--top", "2")
    assert done.returncode == 0
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["SCORE", "[RANDOM-WEIGHTS]", "INDEX", "DOCUMENT"],
        ["0.7500", "1", "two"],
        ["0.5000", "0", "one"],
    ]
    assert "RANDOM-WEIGHTS" in done.stderr
    wanted = {"model": "ranker", "query": "which?", "documents": ["one", "two"], "top_n": 2}
    assert stack.asked[-1][3] == wanted
    lines = running("rerank", "which?", "--json", stdin="one\n\ntwo\n").stdout.splitlines()
    assert json.loads(lines[0]) == {"index": 1, "score": 0.75, "document": "two", "random_weights": True}
    assert stack.asked[-1][3] == {"model": "ranker", "query": "which?", "documents": ["one", "two"]}


def test_rerank_takes_no_other_model_by_itself(running: Run) -> None:
    done = running("rerank", "which?", "one")
    assert done.returncode == 5
    assert "no model to rerank with by default; served are: tiny, minilm." in done.stderr
    assert "Add an engine with `task: rerank`" in done.stderr


def test_down_ends_the_process_and_forgets_it(running: Any) -> None:
    pid = json.loads((running.state / "run.json").read_text())["pid"]
    done = running("down")
    assert (done.returncode, done.stderr) == (0, "stopped\n"), pid
    assert not (running.state / "run.json").exists()


@pytest.mark.parametrize("arguments", [("status",), ("--quiet", "status")])
def test_a_broken_local_file_keeps_nobody_from_the_stack(
    running: Any, stack: Any, arguments: tuple[str, ...]
) -> None:
    stack.answer("GET", "/admin/v1/status", status())
    (running.home / "sage.yaml").write_text("ports: {gatway: 1}\n")
    found = running(*arguments)
    assert (found.returncode, "llm-0" in found.stdout) == (0, True)
    assert found.stderr.startswith("warning: ")
    assert "gatway" in found.stderr
    assert f"looking in {running.state}." in found.stderr
    assert running("chat", "Hi").returncode == 2
    assert running("down").stderr.endswith("stopped\n")


def test_a_broken_file_that_was_named_is_refused(running: Any) -> None:
    (running.home / "mine.yaml").write_text("ports: {gatway: 1}\n")
    assert running("down", "--config", "mine.yaml").returncode == 2
    assert (running.state / "run.json").exists()


def test_the_fallback_heeds_the_environment(sage: Any, tmp_path: Any) -> None:
    sage.home.mkdir()
    (sage.home / "sage.yaml").write_text("nonsense: 1\n")
    sage.env["SAGE_STATE_DIR"] = str(tmp_path / "elsewhere")
    assert f"nothing was running for {tmp_path / 'elsewhere'}" in sage("down").stderr


def test_a_stack_is_found_by_the_configuration_it_was_started_with(running: Any, stack: Any) -> None:
    moved = running.home / "moved"
    running.state.rename(moved)
    (running.home / "mine.yaml").write_text(f"state_dir: {moved}\n")
    named = ("--config", "mine.yaml")
    stack.answer("GET", "/admin/v1/status", status())
    stack.answer("GET", "/admin/v1/policy", {"name": "fifo", "available": ["fifo"]})
    stack.answer("PUT", "/admin/v1/policy", {"name": "fifo", "available": ["fifo"]})
    stack.answer("GET", "/admin/v1/decisions/req-1", DECISION)
    stack.answer("POST", "/v1/embeddings", {"data": [{"embedding": [1.0]}]})
    stack.stream("/v1/chat/completions", *CHAT)
    asked = (
        ("chat", "hi"),
        ("embed", "hi"),
        ("explain", "req-1"),
        ("policy", "show"),
        ("policy", "list"),
        ("policy", "use", "fifo"),
    )
    for arguments in (*asked, ("status",)):
        assert running(*arguments).returncode == 3
        assert running(*arguments, *named).returncode == 0, arguments
    assert f"pid {json.loads((moved / 'run.json').read_text())['pid']}" in running("doctor", *named).stdout
    assert running("down", *named).stderr == "stopped\n"


@pytest.mark.parametrize("option", [("--engine", "vllm"), ("--engine-python", "python3")])
def test_an_engine_beside_a_configuration_that_has_engines_is_refused(
    sage: Any, option: tuple[str, str]
) -> None:
    sage("config", "init")
    done = sage("up", *option)
    assert done.returncode == 2
    assert "names its engines" in done.stderr


def test_an_interpreter_that_is_not_there_is_refused(sage: Any) -> None:
    done = sage("up", "--engine", "vllm", "--engine-python", "no/python")
    assert done.returncode == 5
    assert f"no Python interpreter at {sage.home / 'no/python'}" in done.stderr


def test_an_interrupt_exits_130(running: Any, stack: Any) -> None:
    code = (
        "import signal, sys; from sage.cli import main, output\n"
        "from sage.cli.commands import stack\n"
        "@main.app.command()\n"
        "def wait(): signal.raise_signal(signal.SIGINT)\n"
        "main.main(['wait'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert signal.SIGINT.name not in done.stderr


def test_a_reader_that_goes_away_is_no_traceback(running: Any, stack: Any) -> None:
    stack.answer("GET", "/admin/v1/status", status())
    read, write = os.pipe()
    os.close(read)
    program = [sys.executable, "-c", "from sage.cli.main import main; main()", "status"]
    env = {**os.environ, "SAGE_HOME": str(running.home)}
    done = subprocess.run(program, env=env, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert "Traceback" not in done.stderr
