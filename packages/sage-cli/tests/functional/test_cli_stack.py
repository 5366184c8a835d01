"""The whole way, on real engines: up, chat, explain, embed, down."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sage.platform.daemon import alive

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(400)]

ANY_PORT = {f"SAGE_PORTS__{name}": "0" for name in ("GATEWAY", "ADMIN", "HEALTH")}


@pytest.fixture
def home(sage: Any) -> Iterator[Any]:
    sage.env.update(ANY_PORT)
    yield sage
    assert sage("down").returncode == 0


def test_up_chat_explain_embed_down(home: Any) -> None:
    up = home("up")
    assert up.returncode == 0, up.stderr
    lines = dict(line.split("=", 1) for line in up.stdout.splitlines())
    assert lines.keys() == {"OPENAI_BASE_URL", "OPENAI_API_KEY"}
    assert lines["OPENAI_API_KEY"].startswith("sk-sage-")
    assert "llm-0 (transformers, sage-nano): ready" in up.stderr

    status = json.loads(home("status", "--json").stdout)
    assert {engine["state"] for engine in status["engines"]} == {"ready"}
    assert home("up").returncode == 1, "a second one is refused"

    chat = home("chat", "--json", "--max-tokens", "8", "Hello")
    last = json.loads(chat.stdout.splitlines()[-1])
    assert chat.returncode == 0, chat.stderr
    assert last["usage"]["completion_tokens"] <= 8
    decision = json.loads(home("explain", last["request_id"], "--json").stdout)
    assert (decision["engine"], decision["outcome"]) == ("llm-0", "done")

    rows = home("embed", "--json", stdin="a cat\na kitten\n").stdout.splitlines()
    assert [len(json.loads(row)["embedding"]) for row in rows] == [384, 384]
    assert home("policy", "use", "fifo").returncode == 0
    assert home("policy", "use", "magic").returncode in (2, 5)

    assert home("reload").stdout == "nothing has changed\n"
    local = home.home / "sage.yaml"
    local.write_text("control_plane: {policy: edf}\ngateway: {drain_s: 7}\nports: {ray: 7}\n")
    report = json.loads(home("reload", "--json").stdout)
    assert [change["key"] for change in report["applied"]] == ["gateway.drain_s", "control_plane.policy"]
    assert [change["key"] for change in report["needs_restart"]] == ["ports.ray"]
    assert not any(report["engines"].values())
    assert json.loads((home.state / "effective.yaml").read_text())["gateway"]["drain_s"] == 7
    local.write_text("control_plane: {polices: edf}\n")
    wrong = home("reload")
    assert wrong.returncode == 2
    assert f"{local}:1: control_plane.polices: unknown key" in wrong.stderr
    local.unlink()

    pid = json.loads((home.state / "run.json").read_text())["pid"]
    assert home("down").returncode == 0
    assert not alive(pid)
    assert home("status").returncode == 3


def test_a_port_in_use_is_one_sentence_and_nothing_stays(home: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        home.env["SAGE_PORTS__GATEWAY"] = str(port)
        up = home("up")
    assert up.returncode == 1
    assert f"error: Port {port} on 127.0.0.1 cannot be used" in up.stderr
    assert "Traceback" not in up.stderr
    assert serving(home.state) == []


def test_a_missing_model_folder_starts_nothing(home: Any) -> None:
    up = home("up", "--model", "./no-such-folder")
    assert up.returncode == 5
    assert "no-such-folder does not exist" in up.stderr
    assert serving(home.state) == []


def serving(state: Path) -> list[str]:
    """Processes that serve this state directory."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if "sage.gateway" in line and str(state) in line]
