from __future__ import annotations

import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sage.common import errors, paths
from sage.common.clock import Clock, SystemClock
from sage.common.config import PortsConfig
from sage.common.errors import ConflictError, SageError
from sage.common.ids import new_id, new_secret
from sage.common.ports import SagePorts, find_free, is_free
from sage.common.testing import VirtualClock


def test_every_error_is_exported_and_fills_the_openai_body() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        error = kind("What happened.", hint="What to do.", param="model")
        assert isinstance(error, SageError)
        body = error.to_openai()["error"]
        assert body == {
            "message": "What happened. What to do.",
            "type": kind.type,
            "param": "model",
            "code": kind.code,
        }
        assert 400 <= kind.status < 600
        assert kind.exit_code in (1, 2, 3, 4, 5)


def test_a_taken_port_is_seen_and_passed_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_free(port)
        with pytest.raises(ConflictError, match=f"No free port between {port} and {port}"):
            find_free((port, port))
    assert is_free(port)
    assert find_free((port, port)) == port


def test_ports_left_out_are_not_given() -> None:
    first = find_free((20000, 29999))
    assert find_free((20000, 29999), taken=[first]) > first


def test_the_two_port_tables_agree() -> None:
    defaults, configured = SagePorts(), PortsConfig()
    for name in PortsConfig.model_fields:
        assert getattr(defaults, name) == getattr(configured, name)


def test_sage_home_holds_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGE_HOME", str(tmp_path))
    found = paths.SagePaths.default()
    assert {found.state, found.cache, found.config} == {tmp_path / n for n in ("state", "cache", "config")}
    assert found.run_file == tmp_path / "state/run.json"
    assert found.default_key_file.parent == found.admin_token_file.parent == found.logs.parent == found.state
    monkeypatch.delenv("SAGE_HOME")
    assert "sage" in str(paths.SagePaths.default().state)


def test_ids_are_unique_and_have_their_form() -> None:
    assert len({new_id("req") for _ in range(1000)}) == 1000
    secret = new_secret("sk-sage", "ab12")
    assert secret.startswith("sk-sage-ab12.")
    assert len(secret.partition(".")[2]) == 43


def test_ids_of_many_threads_are_unique() -> None:
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda _: [new_id("t") for _ in range(1500)], range(8)))
    ids = {one for some in drawn for one in some}
    assert len(ids) == 12_000
    assert all(re.fullmatch(r"t-[0-9a-f]{16}", one) for one in ids)


FORKED = """
import os
from sage.common.ids import new_id
new_id("x")
child = os.fork()
if child:
    os.waitpid(child, 0)
print("\\n".join(new_id("x") for _ in range(50)), flush=True)
"""


def test_a_forked_process_draws_ids_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=True)
    assert len(set(done.stdout.split())) == 100


def test_the_virtual_clock_moves_only_when_told() -> None:
    clock: Clock = (virtual := VirtualClock(now=5, wall=100))
    assert (clock.now(), clock.wall()) == (5, 100)
    virtual.advance(2.5)
    assert (clock.now(), clock.wall()) == (7.5, 102.5)
    with pytest.raises(ValueError, match="cannot go back by 1 s"):
        virtual.advance(-1)


def test_the_system_clock_goes_forward() -> None:
    clock = SystemClock()
    assert clock.now() <= clock.now()
    assert clock.wall() > 1_600_000_000
