"""`sage bench` as a command, in a process of its own."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sage.benchmark.cli import app
from sage.common.errors import NotFoundError, UnreachableError, UsageError

CALL = "from sage.benchmark.cli import app; app()"


async def bench(*args: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CALL, *args, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def test_the_suites_are_listed() -> None:
    assert "smoke" in CliRunner().invoke(app, ["list"]).stdout
    listed = json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout)
    assert listed[0]["name"] == "smoke"


async def test_a_run_writes_its_four_files_and_prints_json(server: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, stdout, stderr = await bench(
        "run", "smoke", "--rate", "40", "--duration", "0.5", "--seed", "1", "--json",
        "--base-url", server.url, "--api-key", "sk-sage-test", "--out", str(out),
    )  # fmt: skip
    data = json.loads(stdout)
    assert code == (0 if data["valid"] else 1), stderr
    assert data == json.loads((out / "run.json").read_text())
    assert data["badges"] == ["UNCONFIRMED"]
    assert {"hardware", "versions", "git", "client"} == set(data["environment"])
    assert data["environment"]["versions"]["sage-benchmark"]
    assert {file.name for file in out.iterdir()} == {
        "run.json", "records.jsonl", "report.html", "report.md",
    }  # fmt: skip
    assert "report.html" in stderr


async def test_a_table_is_printed_without_json(server: Any, tmp_path: Path) -> None:
    _code, stdout, _err = await bench(
        "run", "smoke", "--rate", "40", "--duration", "0.5", "--base-url", server.url,
        "--api-key", "sk-sage-test", "--out", str(tmp_path),
    )  # fmt: skip
    assert "ttft_p50" in stdout
    assert "95 % interval" in stdout


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (["run", "nope"], NotFoundError, "There are: smoke"),
        (["run", "smoke", "--base-url", "http://127.0.0.1:9/v1"], UsageError, "--api-key"),
        (["run", "smoke"], UnreachableError, "sage up"),
    ],
)
def test_what_cannot_run_says_what_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], error: Any, message: Any
) -> None:
    monkeypatch.setenv("SAGE_HOME", str(tmp_path))
    monkeypatch.delenv("SAGE_API_KEY", raising=False)
    result = CliRunner().invoke(app, [*args, "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, error)
    assert message in str(result.exception)


def test_a_folder_that_cannot_be_made_is_one_clear_sentence(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    args = ["run", "smoke", "--base-url", "http://127.0.0.1:9/v1", "--api-key", "k", "--out", str(file / "x")]
    result = CliRunner().invoke(app, args)
    assert isinstance(result.exception, UsageError)
    assert "cannot be written" in str(result.exception)


def test_the_command_imports_nothing_heavy() -> None:
    probe = (
        "import sys, sage.benchmark.cli; "
        "print([m for m in ('aiohttp','numpy','pydantic','fastapi','torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
