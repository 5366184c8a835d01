"""`quickstart.sh` from another folder: the caller's relative paths, and our documents when none are named."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose setup does nothing and whose `sage` says where it is and what it was given."""
    root = tmp_path / "a checkout"
    for name, text in (
        ("tools/setup", "exit 0"),
        (".venv/bin/sage", 'pwd; printf "%s\\n" "$@"'),
    ):
        script = root / name
        script.parent.mkdir(parents=True)
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
    shutil.copy(ROOT / "quickstart.sh", root)
    return root


def test_it_runs_in_the_folder_of_the_caller(checkout: Path, tmp_path: Path) -> None:
    caller = tmp_path / "caller"
    caller.mkdir()
    argv = [str(checkout / "quickstart.sh"), "--docs", "./mine", "--model", "./m"]
    done = subprocess.run(argv, cwd=caller, capture_output=True, text=True, check=True)
    said = done.stdout.splitlines()
    assert said[0] == str(caller)
    assert said[1:] == ["quickstart", "--own-docs", f"{checkout}/docs", "--docs", "./mine", "--model", "./m"]


def test_a_relative_call_finds_its_checkout(checkout: Path) -> None:
    done = subprocess.run(
        ["bash", f"{checkout.name}/quickstart.sh"],
        cwd=checkout.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[1:] == ["quickstart", "--own-docs", f"{checkout}/docs"]
