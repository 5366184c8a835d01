"""A signal while `sage up` waits: a real serving process, an engine that never answers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sage.platform.daemon import alive

NEVER_READY = """\
ports: {gateway: 0, health: 0, admin: 0}
engines:
  - {name: far, kind: openai, model: m, url: "http://127.0.0.1:1/v1"}
"""


@pytest.fixture(autouse=True)
def signals_are_heard() -> Iterator[None]:
    """Below `nohup` SIGHUP is ignored, and in the background of a script SIGINT: by children, too."""
    heard: dict[int, Any] = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in heard.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_what_up_has_started(sage: Any, number: signal.Signals) -> None:
    sage.home.mkdir()
    (sage.home / "sage.yaml").write_text(NEVER_READY)
    argv = [str(Path(sys.executable).with_name("sage")), "up"]
    env = {**os.environ, "SAGE_HOME": str(sage.home)}
    with subprocess.Popen(argv, cwd=sage.home, env=env, stderr=subprocess.PIPE, text=True) as up:
        assert up.stderr
        pid = int(up.stderr.readline().split("pid ")[1].split(",")[0])
        assert alive(pid)
        up.send_signal(number)
        assert "Traceback" not in up.stderr.read()
    assert up.returncode == 130
    assert not alive(pid)
    assert not (sage.state / "run.json").exists()
