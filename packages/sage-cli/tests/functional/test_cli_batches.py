"""`sage batch` against a server with scripted answers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]

LINE = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": "x"}}


def batch(status: str = "in_progress", **changes: Any) -> dict[str, Any]:
    counts = {"total": 4, "completed": 2, "failed": 1}
    usual = {"id": "batch-1", "object": "batch", "endpoint": "/v1/embeddings", "input_file_id": "file-1"}
    times = {"completion_window": "24h", "created_at": 1_800_000_000, "expires_at": 1_800_086_400}
    return {**usual, **times, "status": status, "request_counts": counts, **changes}


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    file = tmp_path / 'in "1".jsonl'
    file.write_text(json.dumps(LINE) + "\n")
    return file


@pytest.fixture
def serving(running: Run, stack: Any) -> Run:
    """A server that takes an upload and knows one batch."""
    stored = {"id": "file-1", "bytes": 3, "created_at": 1, "filename": "in.jsonl", "purpose": "batch"}
    stack.answer("POST", "/v1/files", stored)
    stack.answer("POST", "/v1/batches", batch("validating"))
    stack.answer("GET", "/v1/batches/batch-1", batch())
    return running


def test_a_file_is_uploaded_and_run(serving: Run, stack: Any, jsonl: Path) -> None:
    done = serving("batch", "submit", str(jsonl))
    assert (done.returncode, done.stdout) == (0, "batch-1\n"), done.stderr
    assert "sage batch show batch-1" in done.stderr
    (_, path, key, form), (_, _, _, asked) = stack.asked
    assert (path, key) == ("/v1/files", "Bearer sk-sage-key")
    assert b'filename="in \\"1\\".jsonl"' in form
    assert b'name="purpose"\r\n\r\nbatch\r\n' in form
    assert jsonl.read_bytes() in form
    assert asked == {
        "input_file_id": "file-1",
        "endpoint": "/v1/embeddings",
        "completion_window": "24h",
    }


def test_waiting_ends_with_the_batch(serving: Run, stack: Any, jsonl: Path) -> None:
    counts = {"total": 4, "completed": 4, "failed": 0}
    stack.answer("GET", "/v1/batches/batch-1", batch("completed", request_counts=counts))
    done = serving("batch", "submit", str(jsonl), "--wait", "--json", "--window", "2h", "--endpoint", "/v1/x")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "completed"
    assert "completed: 4/4, 0 failed" in done.stderr
    asked = stack.asked[1][3]
    assert (asked["completion_window"], asked["endpoint"]) == ("2h", "/v1/x")


def test_waiting_for_what_fails_tells_why(serving: Run, stack: Any, jsonl: Path) -> None:
    problem = {"code": "invalid_url", "message": "url is '/v1/x'.", "param": "url", "line": 3}
    stack.answer("GET", "/v1/batches/batch-1", batch("failed", errors={"object": "list", "data": [problem]}))
    done = serving("batch", "submit", str(jsonl), "--wait")
    assert (done.returncode, done.stdout) == (1, "batch-1\n")
    assert "line 3: url is '/v1/x'. (invalid_url)" in done.stderr


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (None, 5, "Cannot read"),
        ("", 2, "no request of a batch"),
        ("[1]", 2, "no request"),
        ("{}", 2, "no request"),
    ],
)
def test_a_file_that_is_none(
    serving: Run, tmp_path: Path, content: str | None, code: int, words: str
) -> None:
    file = tmp_path / "wrong"
    if content is not None:
        file.write_text(content)
    done = serving("batch", "submit", str(file))
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_the_list_goes_over_pages(serving: Run, stack: Any) -> None:
    ids = {"first_id": "x", "last_id": "x"}
    stack.answer(
        "GET",
        "/v1/batches?limit=100",
        {"data": [batch(id=f"b{n}") for n in range(100)], "has_more": True, **ids},
    )
    stack.answer(
        "GET", "/v1/batches?limit=50&after=b99", {"data": [batch(id="last")], "has_more": False, **ids}
    )
    done = serving("batch", "list", "--limit", "150")
    lines = done.stdout.splitlines()
    assert len(lines) == 102, done.stderr
    assert lines[0].split() == ["ID", "STATUS", "DONE", "FAILED", "ENDPOINT", "CREATED"]
    assert lines[-1].split()[:4] == ["last", "in_progress", "3/4", "1"]
    shown = serving("batch", "list", "--limit", "150", "--json")
    assert len(json.loads(shown.stdout)) == 101


def test_one_is_shown(serving: Run) -> None:
    done = serving("batch", "show", "batch-1")
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert (rows["status"], rows["done"], rows["failed"]) == ("in_progress", "3/4", "1")
    assert rows["created_at"] == "2027-01-15 08:00:00 UTC"
    assert json.loads(serving("batch", "show", "batch-1", "--json").stdout)["id"] == "batch-1"


def test_one_is_cancelled(serving: Run, stack: Any) -> None:
    stack.answer("POST", "/v1/batches/batch-1/cancel", batch("cancelling"))
    done = serving("batch", "cancel", "batch-1")
    assert (done.returncode, "is cancelling" in done.stderr) == (0, True)
    gone = serving("batch", "cancel", "none")
    assert (gone.returncode, "Traceback" in gone.stderr) == (5, False)


def test_results_are_passed_on_as_they_are(serving: Run, stack: Any) -> None:
    early = serving("batch", "results", "batch-1")
    assert (early.returncode, early.stdout) == (5, "")
    assert "is in_progress and has no results" in early.stderr
    stack.answer(
        "GET", "/v1/batches/batch-1", batch("completed", output_file_id="file-o", error_file_id="file-e")
    )
    stack.answer("GET", "/v1/files/file-o/content", b'{"custom_id":"a"}\n')
    stack.answer("GET", "/v1/files/file-e/content", b'{"custom_id":"b"}\n')
    done = serving("batch", "results", "batch-1")
    assert (done.returncode, done.stdout) == (0, '{"custom_id":"a"}\n')
    assert "1 lines failed" in done.stderr
    assert serving("batch", "results", "batch-1", "--errors").stdout == '{"custom_id":"b"}\n'
