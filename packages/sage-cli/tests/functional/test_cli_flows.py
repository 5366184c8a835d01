"""`sage run` with pipelines that need no engine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
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


def test_code_beside_the_pipeline_runs_if_it_is_allowed(sage: Any, home: Any) -> None:
    (home / "flows").mkdir()
    (home / "flows" / "mine.py").write_text("def loud(text): return text.upper()\n")
    (home / "flows" / "loud.yaml").write_text(COPY.replace("  - sink", "  - map: mine:loud\n  - sink"))
    (home / "in.txt").write_text("one\n")
    refused = sage("run", "flows/loud.yaml", "--allow", "mine:quiet")
    assert refused.returncode == 2
    assert "code named 'mine:loud' is not allowed; allowed is mine:quiet" in refused.stderr
    for allowed in ("mine:loud", "mine:*"):
        done = sage("run", "flows/loud.yaml", "--allow", allowed)
        assert (done.returncode, done.stdout) == (0, '"ONE"\n'), done.stderr


def test_a_missing_pipeline_exits_5(sage: Any, home: Any) -> None:
    assert sage("run", "missing.yaml").returncode == 5


# ---- with checkpoints --------------------------------------------------------------------------------------

LARGE = """\
name: large
steps:
  - source: {use: lines, with: {path: in.txt}}
  - sink: {use: lines, with: {path: out.txt}}
"""
TEXT = "".join(f"line {number}\n" for number in range(400_000))
OPTIONS = ("run", "large.yaml", "--checkpoints", "kept", "--every", "0.001")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_ended_goes_on(sage: Any, home: Any, number: signal.Signals) -> None:
    (home / "large.yaml").write_text(LARGE)
    (home / "in.txt").write_text(TEXT)
    argv = [str(Path(sys.executable).with_name("sage")), *OPTIONS]
    env = {**os.environ, "SAGE_HOME": str(home)}
    # In the background of a script children do not hear SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(argv, cwd=home, env=env, stderr=subprocess.PIPE, text=True) as process:
        signal.signal(signal.SIGINT, before)
        assert process.stderr
        while process.poll() is None and not any((home / "kept").glob("manifest-*")):
            time.sleep(0.001)  # a file is waited for, no time
        process.send_signal(number)
        talk = process.stderr.read()
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 0), talk
    if number == signal.SIGINT:
        assert "large: stopped in" in talk
        assert "What was done is kept in kept: the same command goes on from there." in talk

    done = sage(*OPTIONS)
    assert done.returncode == 0, done.stderr
    assert re.search(r"large: done in [\d.]+ s, from checkpoint \d+ on\n", done.stderr)
    assert (home / "out.txt").read_text() == TEXT

    again = sage(*OPTIONS)
    assert again.returncode == 0
    assert again.stderr == "large: nothing to do; its run that is kept in kept had come to its end\n"
    report = json.loads(sage(*OPTIONS, "--json").stderr)
    assert report["already_done"]
    assert report["epoch"] > 1


def test_after_a_failure_the_same_command_goes_on(sage: Any, home: Any) -> None:
    (home / "large.yaml").write_text(
        LARGE.replace("use: lines, with: {path: in", "use: jsonl, with: {path: in")
    )
    good = "".join(f'"{number}"\n' for number in range(100_000))
    (home / "in.txt").write_text(good + "not JSON\n")
    done = sage(*OPTIONS)
    assert done.returncode == 2
    assert "in.txt:100001:1: not JSON" in done.stderr
    assert done.stderr.endswith("What was done is kept in kept: the same command goes on from there.\n")

    (home / "in.txt").write_text(good + '"the end"\n')
    done = sage(*OPTIONS)
    assert done.returncode == 0, done.stderr
    assert (home / "out.txt").read_text().endswith("99999\nthe end\n")
    assert (home / "out.txt").read_text().count("\n") == 100_001


def test_an_error_before_any_checkpoint_promises_nothing(sage: Any, home: Any) -> None:
    (home / "copy.yaml").write_text(COPY.replace("lines", "jsonl"))
    (home / "in.txt").write_text("not JSON\n")
    done = sage("run", "copy.yaml", "--checkpoints", "kept")
    assert done.returncode == 2
    assert "in.txt:1:1: not JSON" in done.stderr
    assert "goes on" not in done.stderr


def test_a_folder_is_for_one_pipeline(sage: Any, home: Any) -> None:
    (home / "copy.yaml").write_text(COPY)
    (home / "in.txt").write_text("one\n")
    assert sage("run", "copy.yaml", "--checkpoints", "kept").returncode == 0
    (home / "copy.yaml").write_text(COPY.replace("name: copy", "name: other"))
    done = sage("run", "copy.yaml", "--checkpoints", "kept")
    assert done.returncode == 1
    assert "the checkpoints are those of flow 'copy', and this is flow 'other'" in done.stderr
    assert "Give each flow a folder of its own." in done.stderr
    done = sage("run", "copy.yaml", "--checkpoints", "in.txt")
    assert done.returncode != 0
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_damaged_checkpoint_is_a_warning(sage: Any, home: Any) -> None:
    (home / "copy.yaml").write_text(COPY)
    (home / "in.txt").write_text("one\n")
    assert sage("run", "copy.yaml", "--checkpoints", "kept").returncode == 0
    (home / "kept" / "manifest-00000002").write_text("damaged")
    done = sage("run", "copy.yaml", "--checkpoints", "kept")
    assert "warning: checkpoint 2 is damaged" in done.stderr
