"""Owners, orphans and records of stacks that are no more, with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from sage.common.errors import SageError, UnreachableError
from sage.common.paths import SagePaths
from sage.common.ports import find_free
from sage.platform.daemon import alive
from sage.platform.diagnosis import Finding, examine, repair, sqlite_finding
from sage.platform.orphans import Orphan, end_orphans, find_orphans
from sage.platform.runs import forget_stale, read_run, recorded_run
from sage.platform.service.mark import MARK, Mark
from sage.platform.state import StateDirectory, owner_of
from sage.platform.testing import scripted_service

PATIENCE_S = 20.0
SUPERVISE = """
import asyncio, json, sys
from pathlib import Path
from sage.platform.service import ServiceSpec, Supervisor
port, log, *argv = sys.argv[1:]
spec = ServiceSpec("svc", tuple(argv), f"http://127.0.0.1:{port}/health", Path(log))
async def main():
    supervisor = Supervisor()
    await supervisor.start(spec)
    print((await supervisor.wait_ready("svc")).pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
NAP = (sys.executable, "-c", "input()")


@pytest.fixture
def paths(tmp_path: Path) -> SagePaths:
    home = tmp_path / "home"
    (home / "state" / "logs").mkdir(parents=True)
    (home / "state").chmod(0o700)
    return SagePaths(state=home / "state", cache=home / "cache", config=home / "config")


@pytest.fixture
def nap() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    made: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, **env: str) -> subprocess.Popen[bytes]:
        command = [*NAP, *arguments]
        made.append(subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, **env}))
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.communicate()


def _finding(paths: SagePaths, name: str) -> Finding:
    return next(finding for finding in examine(paths) if finding.name == name)


def _record(paths: SagePaths, pid: int, started_at: float) -> None:
    urls = dict.fromkeys(("base_url", "admin_url", "health_url"), "http://127.0.0.1:1")
    paths.run_file.write_text(json.dumps({"pid": pid, "version": "1", "started_at": started_at, **urls}))


def _until_gone(*pids: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        os.sched_yield()


# ---- orphans -----------------------------------------------------------------------------------------------


def test_what_a_killed_guard_and_supervisor_leave_is_found_and_ended(paths: SagePaths) -> None:
    """Both killed by SIGKILL, and at once: that is the one gap of the guard."""
    port = find_free((20000, 29999))
    argv = scripted_service(port, family=True)
    command = [sys.executable, "-c", SUPERVISE, str(port), str(paths.logs / "svc.log"), *argv]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        service = psutil.Process(int(supervisor.stdout.readline()))
        family = sorted(child.pid for child in service.children(recursive=True))
        assert len(family) == 2
        assert find_orphans(paths.state) == [], "all is looked after"
        guard = service.ppid()
        supervisor.send_signal(signal.SIGSTOP)  # it may not clean up
        os.kill(guard, signal.SIGKILL)
        supervisor.kill()
    _until_gone(service.pid, guard)
    orphans = find_orphans(paths.state)
    assert sorted(orphan.pid for orphan in orphans) == family
    why = f"of service svc, whose supervisor {supervisor.pid} is gone"
    assert {orphan.why for orphan in orphans} == {why}
    found = _finding(paths, "orphans")
    assert (found.state, found.hint.startswith("Run: sage doctor --fix, or: kill ")) == ("fail", True)
    assert find_orphans(paths.state.parent / "other") == [], "another state directory's are not ours"

    ended = {f"{how} process {pid} ({why})" for pid in family for how in ("killed", "ended")}
    done = repair(paths)
    assert len(done) == 2
    assert set(done) <= ended
    assert not any(alive(pid) for pid in family)
    assert _finding(paths, "orphans") == Finding("orphans", "ok", "none")
    assert repair(paths) == []


def test_a_serving_process_without_a_record_is_found_and_left_while_it_may_start(
    paths: SagePaths, nap: Callable[..., subprocess.Popen[bytes]]
) -> None:
    serving = nap("sage.gateway", str(paths.state))
    (orphan,) = find_orphans(paths.state)
    assert (orphan.pid, orphan.may_start) == (serving.pid, True)
    assert find_orphans(paths.state, serving.pid) == []
    (left,) = repair(paths)
    assert left.startswith(f"left process {serving.pid} alone: it is ")
    assert alive(serving.pid)
    settled = Orphan(orphan.pid, orphan.why, orphan.seen, 31.0)
    assert list(end_orphans([settled])) == [f"ended process {serving.pid} ({orphan.why})"]
    assert not alive(serving.pid)


def test_a_process_of_the_same_number_made_later_is_not_touched(
    nap: Callable[..., subprocess.Popen[bytes]],
) -> None:
    later = nap()
    list(end_orphans([Orphan(later.pid, "long ago", time.time() - 3600, 1.0)]))
    assert alive(later.pid)


@pytest.mark.parametrize(
    "text",
    ["", "x", "[]", "{}", '{"name": 1, "supervisor": 1, "at": 1, "log": ""}', '{"name": "a", "pid": 1}'],
)
def test_a_mark_that_is_none_marks_nothing(
    text: str, paths: SagePaths, nap: Callable[..., subprocess.Popen[bytes]]
) -> None:
    assert Mark.of(text) is None
    nap(**{MARK: text})
    assert find_orphans(paths.state) == []


def test_a_mark_is_read_back() -> None:
    mark = Mark("a b", 7, 1.5, "/x/ä.log")
    assert Mark.of(mark.to_text()) == mark


# ---- owner -------------------------------------------------------------------------------------------------


def test_the_owner_is_told_and_looking_does_not_disturb_it(paths: SagePaths) -> None:
    assert owner_of(paths.state) is None
    assert owner_of(paths.state / "none") is None
    with StateDirectory(paths.state):
        assert owner_of(paths.state) == os.getpid()
        found = _finding(paths, "owner")
        assert (found.state, found.hint.endswith(f"kill {os.getpid()}")) == ("warn", True)
        _record(paths, os.getpid(), time.time())
        assert _finding(paths, "owner") == Finding("owner", "ok", f"process {os.getpid()}, the running stack")
    assert owner_of(paths.state) is None
    (paths.state / "owner.lock").write_text(str(os.getpid()))
    assert owner_of(paths.state) is None, "a number that was left is no owner"
    assert _finding(paths, "owner").found == f"no process owns {paths.state}"


# ---- records -----------------------------------------------------------------------------------------------


def test_a_stale_record_is_forgotten_and_a_true_one_kept(paths: SagePaths) -> None:
    assert not forget_stale(paths)
    _record(paths, os.getpid(), time.time())
    assert read_run(paths).pid == os.getpid()
    assert not forget_stale(paths)
    _record(paths, os.getpid(), 1.0)  # then, that number was another process's
    with pytest.raises(UnreachableError, match="ended without a word"):
        read_run(paths)
    assert repair(paths) == [f"removed {paths.run_file}, which spoke of a process that is gone"]
    assert recorded_run(paths) is None


def test_a_record_that_cannot_be_understood_stays(paths: SagePaths) -> None:
    paths.run_file.write_text("{}")
    with pytest.raises(SageError, match="is not what a stack of this version writes"):
        recorded_run(paths)
    (line,) = repair(paths)
    assert line.startswith(f"left {paths.run_file} as it is")
    assert paths.run_file.exists()


# ---- the rest ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "state"),
    [
        ("3.6.23", "ok"),
        ("3.7.0", "warn"),
        ("3.40.1", "warn"),
        ("3.51.2", "warn"),
        ("3.51.3", "ok"),
        ("3.54.1", "ok"),
    ],
)
def test_versions_of_sqlite_that_can_lose_what_they_hold(version: str, state: str) -> None:
    found = sqlite_finding(version)
    assert found.state == state
    assert found.found.startswith(version)
    assert bool(found.hint) is (state == "warn")


def test_the_findings_have_names_and_hints(paths: SagePaths) -> None:
    findings = examine(paths)
    assert [finding.name for finding in findings] == [
        "cpu", "memory", "gpu", "disk", "node", "sqlite", "state", "owner", "orphans",
    ]  # fmt: skip
    assert all(finding.state == "ok" or finding.hint for finding in findings)
    assert next(f for f in findings if f.name == "sqlite").state == "ok", "what SAGE ships is safe"
    paths.state.chmod(0o755)
    assert _finding(paths, "state").hint == f"Run: chmod 700 {paths.state}"


def test_nothing_is_made_by_looking(paths: SagePaths) -> None:
    elsewhere = SagePaths(paths.state / "no", paths.cache, paths.config)
    examine(elsewhere)
    assert repair(elsewhere) == []
    assert not elsewhere.state.exists()


def test_labels_that_are_none_are_a_finding(paths: SagePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGE_NODE_LABELS", "Zone=a")
    found = _finding(paths, "node")
    assert found.state == "fail"
    assert "the key 'Zone' is not valid" in found.found
