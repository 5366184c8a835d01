"""`sage run` with pipelines that need no engine."""

from __future__ import annotations

import json
from typing import Any

import pytest

COPY = """\
name: copy
steps:
  - source: {use: lines, with: {path: in.txt}}
  - sink: stdout
"""


@pytest.fixture
def home(sage: Any) -> Any:
    sage.home.mkdir()
    return sage.home


def test_a_pipeline_runs_to_its_end_and_reports_on_stderr(sage: Any, home: Any) -> None:
    (home / "copy.yaml").write_text(COPY)
    (home / "in.txt").write_text("one\ntwo\n")
    done = sage("run", "copy.yaml")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) if line.startswith(('"', "{")) else line for line in done.stdout.split()]
    assert "copy: done in" in done.stderr
    assert "OPERATOR" in done.stderr


def test_the_report_can_be_json(sage: Any, home: Any) -> None:
    (home / "copy.yaml").write_text(COPY)
    (home / "in.txt").write_text("one\ntwo\n")
    report = json.loads(sage("run", "copy.yaml", "--json").stderr)
    assert report["flow"] == "copy"
    assert report["operators"][0]["items_out"] == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [("name: [", "YAML"), ("- 1\n", "a list of steps"), (COPY.replace("stdout", "stdoot"), "stdout")],
)
def test_a_wrong_pipeline_is_one_clear_error(sage: Any, home: Any, text: str, words: str) -> None:
    (home / "bad.yaml").write_text(text)
    done = sage("run", "bad.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_pipeline_exits_5(sage: Any, home: Any) -> None:
    assert sage("run", "missing.yaml").returncode == 5
