"""The long tests, each made short: on the real gateway process, with real engines' processes."""

from __future__ import annotations

import sys

import pytest

from sage.benchmark.resilience import chaos, fuzz
from sage.benchmark.resilience.options import Experiment, Options
from sage.benchmark.resilience.soak import SOAK

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts sockets and descriptors of Linux")

# An experiment, and how often for a few seconds of it. What takes a minute or a quiet machine is left out.
SHORT = {"disconnects": 180, "kills": 1, "poison": 1, "retries": 100, "nonsense": 1}


@pytest.mark.parametrize(
    ("experiment", "count"),
    [(one, SHORT[one.name]) for one in chaos.EXPERIMENTS if one.name in SHORT],
    ids=lambda value: getattr(value, "name", None),
)
async def test_chaos(experiment: Experiment, count: int) -> None:
    await holds(experiment, count)


async def test_soak() -> None:
    """Of a few seconds memory tells nothing: that is not judged here."""
    await holds(SOAK, 3, but="memory")


async def test_fuzz_of_bytes() -> None:
    await holds(fuzz.BYTES, 300)


async def test_fuzz_by_schemas_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAGE_SCHEMATHESIS", raising=False)
    (check,) = await fuzz.SCHEMAS.run(Options(100, 1))
    assert (check.ok, "./manage.sh fuzz" in check.found) == (False, True)


async def holds(experiment: Experiment, count: int, but: str = "nothing at all") -> None:
    """No target but that of times is missed: a busy machine must fail no test."""
    checks = [one for one in await experiment.run(Options(count, 7)) if but not in one.what]
    failed = [one for one in checks if not one.ok and not one.target.endswith(" ms")]
    assert failed == []
    assert len(checks) >= 8
