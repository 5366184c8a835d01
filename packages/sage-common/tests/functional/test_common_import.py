from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("pydantic", "ruamel", "structlog", "platformdirs", "asyncio")


def _loaded(modules: str) -> set[str]:
    program = f"import sys, {modules}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "modules",
    [
        "sage.common",
        "sage.common.errors, sage.common.ports, sage.common.paths, sage.common.clock, sage.common.ids",
    ],
)
def test_the_light_modules_load_no_library(modules: str) -> None:
    assert not _loaded(modules) & set(HEAVY)


def test_settings_need_no_second_settings_library() -> None:
    assert "pydantic_settings" not in _loaded("sage.common.settings")
