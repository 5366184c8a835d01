"""`sage config` and `sage doctor`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
from ruamel.yaml import YAML


def test_init_writes_a_file_that_is_valid_and_fits_the_schema(sage: Any) -> None:
    assert sage("config", "init").returncode == 0
    file = sage.home / "sage.yaml"
    assert sage("config", "validate").stderr == "the configuration is valid (2 engines)\n"
    schema = json.loads(sage("config", "schema").stdout)
    jsonschema.validate(YAML(typ="safe").load(file), schema)


def test_init_never_overwrites(sage: Any) -> None:
    sage.home.mkdir()
    (sage.home / "sage.yaml").write_text("mine: 1\n")
    done = sage("config", "init")
    assert done.returncode == 1
    assert "is there already" in done.stderr
    assert (sage.home / "sage.yaml").read_text() == "mine: 1\n"


def test_show_tells_the_origin_of_each_value(sage: Any) -> None:
    sage.home.mkdir()
    (sage.home / "sage.yaml").write_text("ports:\n  gateway: 9000\n")
    sage.env["SAGE_PORTS__ADMIN"] = "9001"
    found = json.loads(sage("config", "show", "--origin", "--json").stdout)
    assert found["config"]["ports"]["gateway"] == 9000
    assert found["origin"]["ports.gateway"].endswith("sage.yaml:2")
    assert found["origin"]["ports.admin"] == "env SAGE_PORTS__ADMIN"
    assert found["origin"]["ports.health"] == "default"
    rows = {row.split()[0]: row for row in sage("config", "show", "--origin").stdout.splitlines()}
    assert "9001" in rows["ports.admin"]


def test_show_reaches_into_engines(sage: Any) -> None:
    sage("config", "init")
    rows = [row.split() for row in sage("config", "show").stdout.splitlines()]
    assert "embedding" in [row[1] for row in rows if len(row) > 1]


def test_an_unknown_key_exits_2_with_file_line_and_suggestion(sage: Any) -> None:
    sage.home.mkdir()
    (sage.home / "bad.yaml").write_text("ports:\n  gatway: 9000\n")
    for command in (("config", "validate"), ("up",)):
        done = sage(*command, "--config", "bad.yaml")
        assert done.returncode == 2
        assert "bad.yaml:2" in done.stderr
        assert "gateway" in done.stderr
        assert "Traceback" not in done.stderr


def test_doctor_on_a_fresh_home(sage: Any) -> None:
    done = sage("doctor", "--json")
    report = json.loads(done.stdout)
    states = {check["name"]: check["state"] for check in report["checks"]}
    assert report["ok"] is (done.returncode == 0) is True
    assert states["python"] == states["state"] == states["orphans"] == "ok"
    assert {"native", "cpu", "memory", "gpu", "disk", "port gateway", "engine vllm"} <= states.keys()
    assert {"node", "sqlite", "owner"} <= states.keys()
    assert report["repairs"] == []
    assert not sage.state.exists()


def test_doctor_finds_secrets_that_others_can_read(sage: Any) -> None:
    sage.pretend("http://127.0.0.1:1", os.getpid())
    (sage.state / "admin.token").chmod(0o644)
    done = sage("doctor")
    assert done.returncode == 1
    assert f"chmod 600 {sage.state / 'admin.token'}" in done.stdout


def test_doctor_sees_the_running_stack(running: Any, stack: Any) -> None:
    assert f"running at {stack.url}/v1" in running("doctor").stdout


def test_doctor_finds_an_orphan(sage: Any, tmp_path: Path) -> None:
    sage.state.mkdir(parents=True, mode=0o700)
    command = [sys.executable, "-c", "input()", "sage.gateway", str(sage.state)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as orphan:
        done = sage("doctor")
        assert done.returncode == 1
        assert f"kill {orphan.pid}" in done.stdout
        orphan.communicate(b"\n")


def test_doctor_repairs_what_a_dead_stack_left(sage: Any) -> None:
    sage.pretend("http://127.0.0.1:1", 2**22 + 1)  # a number that no process has
    broken = sage("doctor")
    assert "ended without a word" in broken.stdout
    assert (sage.state / "run.json").exists(), "without --fix nothing changes"
    fixed = sage("doctor", "--fix")
    assert fixed.stdout.startswith(f"repair: removed {sage.state / 'run.json'}, which spoke of")
    assert not (sage.state / "run.json").exists()
    assert (sage.state / "admin.token").exists()
    assert json.loads(sage("doctor", "--fix", "--json").stdout)["repairs"] == []


def test_doctor_leaves_what_runs(running: Any, stack: Any) -> None:
    pid = json.loads((running.state / "run.json").read_text())["pid"]
    assert json.loads(running("doctor", "--fix", "--json").stdout)["repairs"] == []
    os.kill(pid, 0)
    assert (running.state / "run.json").exists()


def test_numpy_on_request_is_a_warning(sage: Any) -> None:
    sage.env["SAGE_NATIVE"] = "0"
    done = sage("doctor", "--json")
    assert {"name": "native", "state": "warn"}.items() <= json.loads(done.stdout)["checks"][1].items()
