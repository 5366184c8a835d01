"""`sage job` against a running stack without engines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(120)

FLOWS = """
import asyncio
from sage.kernel import Flow


async def numbers():
    number = 0
    while True:
        yield number
        number += 1
        await asyncio.sleep(0.001)


def endless(word="record"):
    def say(item):
        if item < 3:
            print(word, item, flush=True)

    flow = Flow("endless")
    flow.source(numbers, name="numbers").sink(say, name="say")
    return flow


class Store:
    def find(self, word):
        return {"one": 1, "two": 2}[word]


def broken():
    flow = Flow("broken")
    flow.source([1, 0]).map(lambda x: 1 / x, name="divide").sink(print)
    return flow
"""
FIND = """\
name: find
steps:
  - source: {use: lines, with: {path: in.txt}}
  - map: {use: service, with: {name: store, method: find}}
  - sink: {use: jsonl, with: {path: found.jsonl}}
"""
COPY = """\
name: copy
steps:
  - source: {use: lines, with: {path: in.txt}}
    id: in
  - sink: {use: jsonl, with: {path: out.jsonl}}
"""

GATED = """\
name: gated
steps:
  - source: {use: items, with: {values: [{amount: 7}, {amount: 8}, {amount: 9}]}}
  - gate: {inbox: refunds, timeout: 3600, on_error: skip}
  - sink: {use: jsonl, with: {path: decided.jsonl}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a user whose stack runs."""
    home = tmp_path_factory.mktemp("jobs")
    (home / "cliflows.py").write_text(FLOWS)
    (home / "copy.yaml").write_text(COPY)
    (home / "gated.yaml").write_text(GATED)
    (home / "find.yaml").write_text(FIND)
    (home / "in.txt").write_text("one\ntwo\n")
    ports = {"gateway": 0, "admin": 0, "health": 0}
    jobs = {"code": ["cliflows:*"], "path": [str(home)]}
    (home / "stack.yaml").write_text(json.dumps({"ports": ports, "jobs": jobs}))
    env = {**os.environ, "SAGE_HOME": str(home)}
    with subprocess.Popen(
        [sys.executable, "-m", "sage.gateway", "--config", "stack.yaml"],
        cwd=home,
        env=env,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            while not (home / "state" / "run.json").exists():
                assert process.poll() is None
                time.sleep(0.02)  # of another process's start no event tells
            yield home
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait() == 0


class Jobs:
    """`sage job …` in that home."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [Path(sys.executable).with_name("sage"), "job", *arguments],
            cwd=self.home,
            env={**os.environ, "SAGE_HOME": str(self.home)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        with self.start(*arguments) as process:
            out, err = process.communicate(timeout=60)
        assert process.returncode == code, err
        assert "Traceback" not in err
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json").stdout)


@pytest.fixture
def job(home: Path) -> Jobs:
    return Jobs(home)


def test_a_file_becomes_a_job_that_reads_and_writes_where_it_was_submitted(job: Jobs) -> None:
    done = job("submit", "copy.yaml", "--name", "first", "--every", "2")
    assert done.stdout == "first\n"
    assert "`sage job watch first`" in done.stderr
    assert job("watch", "first").stdout.splitlines()[-1] == "job first is finished"
    assert (job.home / "out.jsonl").read_text() == '"one"\n"two"\n'
    shown = job("show", "first").stdout
    rows = dict(line.split(maxsplit=1) for line in shown.splitlines() if line)
    assert (rows["state"], rows["flow"], rows["node"]) == ("finished", "copy", "local")
    assert rows["placement"].startswith("pack: ")
    assert rows["checkpoint"] == "none yet, every 2 s"
    assert rows["in"].split()[:2] == ["0", "2"]
    found = job.json("show", "first")
    assert (found["state"], found["every"], len(found["operators"])) == ("finished", 2.0, 2)
    again = job("submit", "copy.yaml", "--name", "first", code=1)
    assert "error: There is a job named 'first' already. Give this one another name." in again.stderr
    job("delete", "first")
    job("show", "first", code=5)


def test_settings_go_to_the_step_that_they_name(job: Jobs) -> None:
    (job.home / "other.txt").write_text("three\n")
    made = job.json("submit", "copy.yaml", "--set", "in.path=other.txt", "--name", "other")
    assert (made["name"], made["state"]) == ("other", "queued")
    job("watch", "other")
    assert (job.home / "out.jsonl").read_text() == '"three"\n'


def test_code_is_followed_paused_resumed_and_stopped(job: Jobs) -> None:
    asked = ("--set", "word=number", "--restart", "fixed:2:0", "--name", "code", "--cpu", "0.2")
    job("submit", "cliflows:endless", *asked)
    with job.start("logs", "code", "--follow") as following:
        assert following.stdout is not None
        first = [following.stdout.readline() for _ in range(3)]
        assert first == ["number 0\n", "number 1\n", "number 2\n"]
        assert job("pause", "code").stderr.startswith("job code is paused")
        assert job("resume", "code").stderr.startswith("job code is queued")
        with job.start("watch", "code", "--json") as watching:
            assert watching.stdout is not None
            while (found := json.loads(watching.stdout.readline()))["state"] != "running":
                assert found["state"] in ("queued", "starting")
            assert (found["restart"], found["resources"]["cpu"]) == ("fixed:2:0", 0.2)
            stopped = job.json("stop", "code")
            assert (stopped["state"], stopped["pid"]) == ("finished", None)
            rest = [json.loads(line)["state"] for line in watching.stdout]
            assert rest[-1] == "finished"
        assert watching.returncode == 0
    assert following.returncode == 0
    assert job("stop", "code", code=1).stderr.startswith("error: Job code is finished; it cannot be stopped")
    assert job("logs", "code", "-n", "1").stdout.startswith("number ")


def test_a_pipeline_calls_services(job: Jobs) -> None:
    job("submit", "find.yaml", "--service", "store=cliflows:Store")
    assert job("watch", "find").stdout.splitlines()[-1] == "job find is finished"
    assert (job.home / "found.jsonl").read_text() == "1\n2\n"
    rows = dict(line.split(maxsplit=1) for line in job("show", "find").stdout.splitlines() if line)
    assert rows["services"] == "store (cliflows:Store)"
    job("delete", "find")


def test_what_waits_at_a_gate_is_decided_on(job: Jobs) -> None:
    job("submit", "gated.yaml")
    with job.start("watch", "gated", "--json") as watching:
        assert watching.stdout is not None
        while json.loads(watching.stdout.readline())["gates"] != {"refunds": 3}:
            pass
        shown = job("show", "gated").stdout
        assert "3 wait at refunds" in shown
        head, *rows = job("gates", "gated").stdout.splitlines()
        assert head.split() == ["GATE", "RECORD", "SINCE", "UNTIL", "WHAT"]
        assert [row.endswith(f'{{"amount": {amount}}}') for row, amount in zip(rows, (7, 8, 9), strict=True)]
        [gate] = job.json("gates", "gated")["gates"]
        seven, eight, nine = (one["id"] for one in gate["records"])

        wrong = job("decide", "gated", "refunds", seven, "maybe", code=2)
        assert "decision: 'maybe' is not valid" in wrong.stderr
        wrong = job("decide", "gated", "refunds", seven, "approve", "--reason", "because", code=2)
        assert "a reason is for a record that is rejected" in wrong.stderr
        assert "there is no inbox 'else'" in job("decide", "gated", "else", seven, "approve", code=5).stderr

        done = job("decide", "gated", "refunds", seven, "approve")
        assert done.stderr == f"record {seven} at gate refunds of job gated: approve\n"
        assert "has nothing with the id" in job("decide", "gated", "refunds", seven, "reject", code=5).stderr
        found = job.json("decide", "gated", "refunds", eight, "approve", "--value", '{"amount": 1}')
        assert found == {"id": eight, "gate": "refunds", "decision": "approve"}
        job("decide", "gated", "refunds", nine, "reject", "--reason", "too much")
        rest = [json.loads(line)["state"] for line in watching.stdout]
        assert rest[-1] == "finished"
    assert (job.home / "decided.jsonl").read_text() == '{"amount": 7}\n{"amount": 1}\n'
    assert "what waits at its gates is in its checkpoint" in job("gates", "gated", code=1).stderr


def test_what_fails_exits_with_1_and_says_why(job: Jobs) -> None:
    job("submit", "cliflows:broken", "--restart", "fixed:1:0", "--name", "bad")
    watched = job("watch", "bad", code=1)
    last = watched.stdout.splitlines()[-1]
    assert last.startswith("job bad is failed: operator 'divide' failed on item 1")
    assert last.endswith("gave up after 1 restarts")
    assert "ZeroDivisionError" in job("logs", "bad").stdout


def test_a_job_is_stopped_now_and_deleted_while_it_runs(job: Jobs) -> None:
    job("submit", "cliflows:endless", "--name", "one")
    assert job("stop", "one", "--now").stderr == "job one is cancelled: stopped on request\n"
    job("submit", "cliflows:endless", "--name", "two")
    deleted = job.json("delete", "two")
    assert deleted["deleted"] is True
    lines = job("list").stdout.splitlines()
    assert lines[0].split() == ["NAME", "STATE", "FLOW", "RESTARTS", "NODE", "CREATED", "ID"]
    names = {line.split()[0]: line.split()[1] for line in lines[1:]}
    assert (names["one"], "two" in names) == ("cancelled", False)
    assert {found["name"] for found in job.json("list")} == set(names)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("submit", "none.yaml"), 5, "'none.yaml' does not exist"),
        (("submit", "cliflows.py"), 2, "not YAML"),
        (("submit", "find.yaml"), 2, "no service is named 'store'; this environment has none"),
        (("submit", "find.yaml", "--service", "store"), 2, "valid is --service KEY=VALUE"),
        (("submit", "find.yaml", "--service", "store=os"), 2, "services.store: 'os' is not valid"),
        (("submit", "find.yaml", "--service", "store=os:open"), 2, "service 'store': code named 'os:open'"),
        (("submit", "os:system"), 2, "'os:system' is not allowed; allowed is cliflows:*"),
        (("submit", "cliflows:none"), 2, "has no attribute 'none'"),
        (("submit", "copy.yaml", "--set", "in.pth=x"), 2, "unknown parameter 'pth'; did you mean 'path'?"),
        (("submit", "copy.yaml", "--set", "path=x"), 2, "valid is STEP.PARAMETER"),
        (("submit", "copy.yaml", "--set", "path"), 2, "valid is --set KEY=VALUE"),
        (("submit", "copy.yaml", "--set", "in.path=gone"), 5, "'gone' does not exist"),
        (("submit", "copy.yaml", "--restart", "often"), 2, "valid is none, fixed:TIMES"),
        (("submit", "copy.yaml", "--name", "a b"), 2, "name: 'a b' is not valid"),
        (("submit", "copy.yaml", "--gpu", "8"), 2, "lacks gpu; nearest is 'local': gpu 8 (has"),
        (("submit", "copy.yaml", "--label", "zone=a"), 2, "lacks label zone=a"),
        (("submit", "copy.yaml", "--memory", "lots"), 2, "memory"),
        (("show", "none"), 5, "There is no job 'none'; there are:"),
        (("watch", "none"), 5, "There is no job 'none'"),
        (("logs", "none"), 5, "There is no job 'none'"),
        (("pause", "none"), 5, "There is no job 'none'"),
    ],
)
def test_what_is_wrong_is_one_clear_error(
    job: Jobs, arguments: tuple[str, ...], code: int, words: str
) -> None:
    done = job(*arguments, code=code)
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert words in done.stderr


def test_without_a_stack_it_says_how_to_start_one(tmp_path: Path) -> None:
    done = Jobs(tmp_path)("list", code=3)
    assert "hint: " in done.stderr
