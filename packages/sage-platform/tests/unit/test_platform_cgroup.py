from __future__ import annotations

from pathlib import Path

import pytest

from sage.platform.cgroup import Limits, read_limits


def _tree(root: Path, membership: str, **files: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(membership)
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_no_groups_no_limits(tmp_path: Path) -> None:
    assert read_limits(tmp_path) == Limits()


def test_version_two_takes_the_tightest_of_all_groups_above(tmp_path: Path) -> None:
    files = {
        "cpu.max": "max 100000\n",
        "a/cpu.max": "150000 100000\n",
        "a/b/cpu.max": "400000 100000\n",
        "a/memory.max": "1000\n",
        "a/memory.current": "400\n",
        "a/b/memory.max": "max\n",
    }
    root = _tree(tmp_path, "0::/a/b\n", **files)
    assert read_limits(root) == Limits(cpus=1.5, memory=1000, memory_left=600)


def test_version_one(tmp_path: Path) -> None:
    files = {
        "cpu/x/cpu.cfs_quota_us": "50000\n",
        "cpu/x/cpu.cfs_period_us": "100000\n",
        "memory/x/memory.limit_in_bytes": "2000\n",
        "memory/x/memory.usage_in_bytes": "2500\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    root = _tree(tmp_path, "4:memory:/x\n3:cpu,cpuacct:/x\n", **files)
    assert read_limits(root) == Limits(cpus=0.5, memory=2000, memory_left=0)


def test_no_quota_in_version_one_is_no_limit(tmp_path: Path) -> None:
    files = {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}
    assert read_limits(_tree(tmp_path, "3:cpu:/\n", **files)) == Limits()


@pytest.mark.parametrize("path", ["/seen/by/the/host", "/../../up"])
def test_in_a_container_the_top_counts(tmp_path: Path, path: str) -> None:
    root = _tree(tmp_path, f"0::{path}\n", **{"cpu.max": "200000 100000\n"})
    assert read_limits(root).cpus == 2.0
