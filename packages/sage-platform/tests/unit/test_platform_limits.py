from __future__ import annotations

from typing import Any

import pytest

from sage.common.errors import UsageError
from sage.platform.service import ResourceLimits
from sage.platform.service.limits import limit_hit


@pytest.mark.parametrize("fields", [{"memory_bytes": 0}, {"open_files": -1}, {"nice": 20}, {"nice": -21}])
def test_a_value_that_is_none_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"The limit {next(iter(fields))} is .*; valid is"):
        ResourceLimits(**fields)


def test_only_those_that_are_set_are_given() -> None:
    assert ResourceLimits().given() == {}
    assert ResourceLimits(nice=0, open_files=9).given() == {"open_files": 9, "nice": 0}


@pytest.mark.parametrize(
    ("said", "limit"),
    [
        ("x\nMemoryError\n", "memory_bytes=1"),
        ("terminate called after throwing an instance of 'std::bad_alloc'", "memory_bytes=1"),
        ("OSError: [Errno 24] Too many open files: 'x'", "open_files=2"),
        ("RuntimeError: can't start new thread", "processes=3"),
        ("all is well", ""),
    ],
)
def test_what_it_said_tells_which_limit(said: str, limit: str) -> None:
    limits = ResourceLimits(memory_bytes=1, open_files=2, processes=3)
    assert limit_hit(limits, said) == (limit and f"it ran into its limit {limit}")
    assert limit_hit(ResourceLimits(), said) == "", "without a limit it was something else"
