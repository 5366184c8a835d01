"""Starting and stopping a serving process, with a real one that plays its part by script."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sage.common.api import RunInfo
from sage.common.config import EngineConfig, GatewayConfig, PortsConfig, SageConfig
from sage.common.errors import ConflictError, NotFoundError, SageError, UnauthorizedError, UnreachableError
from sage.common.paths import SagePaths
from sage.middleware import stack
from sage.middleware.models import nano_folder
from sage.platform.daemon import alive

PROGRAM = (sys.executable, str(Path(__file__).with_name("fake_gateway.py")))


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[SagePaths]:
    here = SagePaths(state=tmp_path / "state", cache=tmp_path / "cache", config=tmp_path / "config")
    yield here
    stack.stop(here, grace=5)


def config(behaviour: str, start_timeout_s: float = 60) -> SageConfig:
    engine = EngineConfig(name="llm-0", kind="transformers", model=behaviour, start_timeout_s=start_timeout_s)
    return SageConfig(engines=(engine,))


def start(paths: SagePaths, behaviour: str) -> tuple[RunInfo, list[str]]:
    said: list[str] = []
    return stack.start(config(behaviour), paths, on_progress=said.append, command=PROGRAM), said


def pid_of(said: list[str]) -> int:
    return int(said[0].split("pid ")[1].split(",")[0])


def run_file(paths: SagePaths, pid: int, started_at: float) -> None:
    paths.state.mkdir(parents=True)
    url = "http://127.0.0.1:1"
    run = RunInfo(pid=pid, version="0", base_url=url, admin_url=url, health_url=url, started_at=started_at)
    paths.run_file.write_text(run.model_dump_json())


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_start_reports_each_state_once_and_returns_when_ready(paths: SagePaths) -> None:
    run, said = start(paths, "ready")
    assert run == stack.read_run(paths)
    assert run.pid == pid_of(said)
    assert said[1:] == ["llm-0 (transformers, ready): starting", "llm-0 (transformers, ready): ready"]


def test_the_effective_configuration_is_private_and_complete(paths: SagePaths) -> None:
    start(paths, "ready")
    file = paths.state / "effective.yaml"
    assert file.stat().st_mode & 0o777 == 0o600
    assert SageConfig.model_validate(json.loads(file.read_text())) == config("ready")


def test_stop_ends_it_and_says_whether_there_was_one(paths: SagePaths) -> None:
    run, _ = start(paths, "ready")
    assert stack.stop(paths)
    assert not alive(run.pid)
    assert not paths.run_file.exists()
    assert not stack.stop(paths)


def test_a_second_start_is_refused_and_leaves_the_first_alone(paths: SagePaths) -> None:
    run, _ = start(paths, "ready")
    with pytest.raises(ConflictError, match=f"pid {run.pid}") as caught:
        start(paths, "ready")
    assert "sage down" in caught.value.hint
    assert stack.read_run(paths) == run


def test_of_two_starts_at_once_the_loser_leaves_the_winner_alone(paths: SagePaths, tmp_path: Path) -> None:
    gate, won, said = tmp_path / "gate", [], []

    def overtake(line: str) -> None:
        """After this start has looked for another stack, and before its own process has the lock."""
        said.append(line)
        if line.startswith("gateway:"):
            won.append(start(paths, "ready")[0])
            gate.touch()

    program = (*PROGRAM, "--after", str(gate))
    with pytest.raises(SageError, match=r"is in use by process \d+"):
        stack.start(config("ready", start_timeout_s=77), paths, on_progress=overtake, command=program)
    assert not alive(pid_of(said))
    assert stack.read_run(paths) == won[0]
    assert alive(won[0].pid)
    assert SageConfig.model_validate_json((paths.state / "effective.yaml").read_bytes()) == config("ready")
    assert [file.name for file in paths.state.glob("effective*")] == ["effective.yaml"]


def test_a_degraded_engine_is_waited_for(paths: SagePaths) -> None:
    _, said = start(paths, "recovers")
    assert [line.rpartition(" ")[2] for line in said[1:]] == ["starting", "degraded", "ready"]


def test_a_stopped_stack_can_be_started_again(paths: SagePaths) -> None:
    first, _ = start(paths, "ready")
    stack.stop(paths)
    second, _ = start(paths, "ready")
    assert second.pid != first.pid


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("dies", r"^Port 8888 on 127\.0\.0\.1 is in use\."),
        ("silent", r"ended at once and said nothing"),
        ("fails", r"Engine llm-0 did not start: no space left on device"),
    ],
)
def test_a_failed_start_says_why_and_leaves_nothing(paths: SagePaths, behaviour: str, message: str) -> None:
    said: list[str] = []
    with pytest.raises(SageError, match=message) as caught:
        stack.start(config(behaviour), paths, on_progress=said.append, command=PROGRAM)
    assert str(paths.logs) in caught.value.hint
    assert not alive(pid_of(said))
    assert not paths.run_file.exists()


def test_the_reason_is_not_that_of_an_earlier_start(paths: SagePaths) -> None:
    with pytest.raises(SageError, match="Port 8888"):
        start(paths, "dies")
    with pytest.raises(SageError, match="said nothing"):
        start(paths, "silent")


@pytest.mark.parametrize("begin", ["gateway", "llm-0"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, BrokenPipeError])
def test_an_interrupted_start_leaves_nothing(
    paths: SagePaths, begin: str, error: type[BaseException]
) -> None:
    said: list[str] = []

    def interrupt(line: str) -> None:
        said.append(line)
        if line.startswith(begin):
            raise error

    with pytest.raises(error):
        stack.start(config("ready"), paths, on_progress=interrupt, command=PROGRAM)
    assert not alive(pid_of(said))
    assert not paths.run_file.exists()
    assert not list(paths.state.glob("effective*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_what_can_be_interrupted_like_ctrl_c(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # SIGHUP is ignored below nohup
    try:
        with pytest.raises(KeyboardInterrupt), stack.interruptible():
            signal.raise_signal(number)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


class _Signals:
    """Its finaliser runs when a signal comes: what the handler raises there, Python drops."""

    def __init__(self, number: signal.Signals) -> None:
        self._number = number

    def __del__(self) -> None:
        signal.raise_signal(self._number)


def _signal_and_wait(number: signal.Signals, deadline: float) -> None:
    _Signals(number)
    while time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_python_drops_comes_again(number: signal.Signals) -> None:
    deadline = time.monotonic() + 30
    hook = sys.unraisablehook
    with pytest.raises(KeyboardInterrupt), stack.interruptible():
        _signal_and_wait(number, deadline)
    assert time.monotonic() < deadline
    assert sys.unraisablehook is hook


def test_other_exceptions_that_python_drops_are_reported_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails:
        def __del__(self) -> None:
            raise ValueError("dropped")

    reported: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: reported.append(found.exc_type))
    with stack.interruptible():
        Fails()
    assert reported == [ValueError]


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stack.interruptible():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("drain_s", "drained"), [(0.0, False), (30.0, True)])
def test_stop_waits_as_long_as_the_configuration_lets_it_drain(
    paths: SagePaths, monkeypatch: pytest.MonkeyPatch, drain_s: float, drained: bool
) -> None:
    monkeypatch.setattr(stack, "_STOP_MARGIN_S", 0.0)
    told = config("drains").model_copy(update={"gateway": GatewayConfig(drain_s=drain_s)})
    stack.start(told, paths, on_progress=lambda _: None, command=PROGRAM)
    assert stack.stop(paths)
    assert (paths.state / "drained").exists() == drained


def test_a_start_that_takes_too_long_is_given_up(paths: SagePaths) -> None:
    said: list[str] = []
    with pytest.raises(SageError, match=r"not ready in time \(gateway not listening\)"):
        stack.start(
            config("hangs", start_timeout_s=0.2),
            paths,
            on_progress=said.append,
            command=PROGRAM,
            gateway_timeout=0.2,
        )
    assert not alive(pid_of(said))


def test_a_state_directory_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    here = SagePaths(state=tmp_path / "file" / "state", cache=tmp_path, config=tmp_path)
    with pytest.raises(SageError, match="Not a directory"):
        stack.start(config("ready"), here, on_progress=print, command=PROGRAM)


def test_without_a_stack_the_hint_is_sage_up(paths: SagePaths) -> None:
    with pytest.raises(UnreachableError, match="No stack is running") as caught:
        stack.read_run(paths)
    assert "sage up" in caught.value.hint


def test_a_dead_stack_is_told_from_one_that_never_ran(paths: SagePaths) -> None:
    run_file(paths, dead_pid(), time.time())
    with pytest.raises(UnreachableError, match="ended without a word") as caught:
        stack.read_run(paths)
    assert "gateway.log" in caught.value.hint
    assert not stack.stop(paths)
    assert not paths.run_file.exists()


def test_a_pid_that_was_given_to_another_process_is_never_killed(paths: SagePaths) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        run_file(paths, other.pid, started_at=1000.0)  # long before that process was born
        with pytest.raises(UnreachableError):
            stack.read_run(paths)
        assert not stack.stop(paths)
        assert other.poll() is None
        other.communicate(b"\n")


def test_a_run_file_of_another_version_is_explained(paths: SagePaths) -> None:
    paths.state.mkdir(parents=True)
    paths.run_file.write_text('{"pid": "many"}')
    with pytest.raises(SageError, match="not what a stack of this version writes"):
        stack.read_run(paths)
    paths.run_file.unlink()


def test_secrets_are_read_only_when_private(paths: SagePaths) -> None:
    start(paths, "ready")
    assert stack.admin_client(paths).engines().engines[0].name == "llm-0"
    paths.admin_token_file.chmod(0o644)
    with pytest.raises(SageError, match="Others can read"):
        stack.admin_client(paths)
    paths.admin_token_file.chmod(0o600)
    paths.admin_token_file.write_text("another")
    with pytest.raises(UnauthorizedError, match="wrong token"):
        stack.admin_client(paths).engines()


def test_the_quick_configuration_has_both_engines_and_real_embeddings(paths: SagePaths) -> None:
    made = stack.quick_config(None, "transformers", paths)
    llm, embed = made.engines
    assert (llm.name, llm.kind, llm.model_id) == ("llm-0", "transformers", "sage-nano")
    assert (Path(llm.model), llm.random_weights) == (nano_folder(), False)
    assert (embed.name, embed.kind, embed.task, embed.random_weights) == (
        "embed-0",
        "embedding",
        "embed",
        False,
    )
    assert stack.quick_config(None, "transformers", paths).engines == made.engines


def test_the_quick_configuration_keeps_what_was_set(paths: SagePaths) -> None:
    base = SageConfig(ports=PortsConfig(gateway=23456))
    made = stack.quick_config("owner/name", "vllm", paths, base=base)
    assert made.ports.gateway == 23456
    assert (made.engines[0].kind, made.engines[0].model) == ("vllm", "owner/name")
    assert not made.engines[0].random_weights


def test_the_quick_llm_can_run_in_another_environment(paths: SagePaths) -> None:
    llm, embed = stack.quick_config(
        None, "vllm", paths, engine_python=Path(os.path.relpath(sys.executable))
    ).engines
    assert (llm.python, embed.python) == (os.path.abspath(os.path.relpath(sys.executable)), "")
    with pytest.raises(NotFoundError, match="no Python interpreter at"):
        stack.quick_config(None, "vllm", paths, engine_python=Path("no-such-python"))


def test_a_missing_model_folder_is_refused(paths: SagePaths) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        stack.quick_config("./no-such-folder", "transformers", paths)


def test_a_default_port_in_use_gives_way_and_a_chosen_one_stays(paths: SagePaths) -> None:
    usual = PortsConfig().gateway
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind(("127.0.0.1", usual))
            holder.listen()
        except OSError:
            pass  # somebody else holds it, which is what the test needs
        assert stack.quick_config(None, "transformers", paths).ports.gateway == 0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        chosen = SageConfig(ports=PortsConfig(gateway=port))
        assert stack.quick_config(None, "transformers", paths, base=chosen).ports.gateway == port


def test_the_serving_process_outlives_its_parent(paths: SagePaths) -> None:
    run, _ = start(paths, "ready")
    assert os.getsid(run.pid) == run.pid
