"""`sage-dev` in a small repository of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PYPROJECT = """\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"
[project]
name = "sage-common"
version = "1.2.3"
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    home = tmp_path / "packages" / "sage-common"
    portion = home / "src" / "sage" / "common"
    portion.mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    (home / "pyproject.toml").write_text(PYPROJECT)
    (portion / "__init__.py").write_text("__all__: list[str] = []\n")
    (portion / "py.typed").touch()
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "cpu.txt").write_text("hatchling==1.27.0\n")
    return tmp_path


def sage_dev(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).with_name("sage-dev"))
    env = {**os.environ, "NO_COLOR": "1"}
    return subprocess.run(
        [program, *arguments], cwd=repository, env=env, capture_output=True, text=True, check=False
    )


def test_a_clean_repository_exits_0(repository: Path) -> None:
    done = sage_dev(repository, "lint")
    assert (done.returncode, done.stdout) == (0, "")
    assert "nothing to mend" in done.stderr


def test_findings_are_lines_with_place_and_check(repository: Path) -> None:
    (repository / "packages" / "sage-common" / "src" / "sage" / "__init__.py").touch()
    done = sage_dev(repository, "lint")
    assert done.returncode == 1
    assert "packages/sage-common/src/sage/__init__.py: makes `sage`" in done.stdout
    assert "[namespace]" in done.stdout


def test_only_what_git_would_track_is_looked_at(repository: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=repository, check=True)
    (repository / ".gitignore").write_text("build/\n")
    (repository / "build").mkdir()
    (repository / "build" / "x.py").write_text("eval('1')\n")
    assert sage_dev(repository, "lint").returncode == 0
    (repository / "untracked.py").write_text("eval('1')\n")
    assert "untracked.py:1: eval runs text as code [calls]" in sage_dev(repository, "lint").stdout


def test_the_baseline_is_lowered_on_request(repository: Path) -> None:
    baseline = repository / "tools" / "sizes.json"
    baseline.parent.mkdir()
    baseline.write_text(json.dumps({"files": {"gone.py": 500}, "long_share": 0.02}))
    assert sage_dev(repository, "lint", "--lower").returncode == 0
    assert json.loads(baseline.read_text())["files"] == {}


def test_a_new_package_is_written_and_its_next_step_said(repository: Path) -> None:
    done = sage_dev(repository, "new", "package", "search", "--description", "Finds things.")
    assert done.returncode == 0
    assert "packages/sage-search/pyproject.toml" in done.stdout.splitlines()
    assert "its layer" in done.stderr
    again = sage_dev(repository, "new", "package", "search", "--description", "Finds things.")
    assert again.returncode == 1
    assert again.stderr.startswith("error: ")


def test_outside_a_clone_it_says_so(tmp_path: Path) -> None:
    done = sage_dev(tmp_path, "lint")
    assert done.returncode == 5
    assert "not inside a clone" in done.stderr
