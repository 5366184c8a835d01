"""What the command line of `sage bench simulate` may say, and what it is told when it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from sage.benchmark.simulate.options import (
    FAULTS,
    changed,
    parse_faults,
    parse_loads,
    parse_policies,
    parse_seeds,
)
from sage.common.errors import NotFoundError, UsageError
from sage.middleware.control_plane.simulator.faults import Kill, Slow
from sage.middleware.control_plane.simulator.fleet import Fleet, LlmEngine, load_fleet


@pytest.fixture
def fleet() -> Fleet:
    return load_fleet("two_gpus_and_cpus")


@pytest.mark.parametrize(
    ("text", "seeds"), [("0..4", [0, 1, 2, 3, 4]), ("7", [7]), ("3..3", [3]), ("5,1,7", [5, 1, 7])]
)
def test_seeds_are_a_range_or_a_list(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "4..0", "1,1", "a", "0-4", "-1", "0..5000", "1,", "1..2,4"])
def test_other_seeds_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"valid is a range such as 0\.\.4"):
        parse_seeds(text)


def test_loads_are_factors() -> None:
    assert parse_loads("0.6,1.0,1.4") == [0.6, 1.0, 1.4]
    for text in ("", "0", "-1", "x", "1,1", "nan", "1,"):
        with pytest.raises(UsageError, match="valid are factors above 0"):
            parse_loads(text)


def test_policies_are_known_and_named_once() -> None:
    assert parse_policies("fifo,hybrid") == ["fifo", "hybrid"]
    with pytest.raises(
        NotFoundError, match=r"'leastload' \(the nearest is least_load\); there are adaptive, "
    ):
        parse_policies("fifo,leastload")
    with pytest.raises(UsageError, match="names a policy twice"):
        parse_policies("fifo,fifo")


def test_a_fault_is_a_kind_an_engine_a_time_and_its_keys(fleet: Fleet) -> None:
    found = parse_faults(
        ["kill:llm-fast@30,restart_after=20", "slow:embed-cpu1@2.5,for_s=10,factor=3"], fleet
    )
    assert found == (
        Kill(at=30.0, engine="llm-fast", restart_after=20.0),
        Slow(at=2.5, engine="embed-cpu1", for_s=10.0, factor=3.0),
    )
    assert {"kill", "slow", "hang", "brownout", "refuse", "mute", "reload"} == set(FAULTS)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("kill", "valid is KIND:ENGINE@SECOND"),
        ("kil:llm-fast@3", r"no fault 'kil' \(the nearest is kill\); there are brownout"),
        ("kill:llm-fst@3", r"engine 'llm-fst' \(the nearest is llm-fast\); the fleet has llm-fast, llm-slow"),
        ("kill:llm-fast@3,restart=2", "no key 'restart'; it takes restart_after, noticed_after"),
        ("slow:llm-fast@3,factor=3", "does not fit: .*for_s"),
        ("kill:llm-fast@3,restart_after=soon", "does not fit"),
    ],
)
def test_a_wrong_fault_says_what_would_be_right(fleet: Fleet, spec: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_faults([spec], fleet)


def test_what_if_adds_removes_and_changes(fleet: Fleet) -> None:
    names = [name for name, _ in changed(fleet, "+llm-fast,-llm-slow,gpu0.interference=0").instances()]
    assert "llm-fast1" in names
    assert "llm-slow" not in names
    assert [name for name, _ in changed(fleet, "-embed-cpu").instances()].count("embed-cpu") == 1
    other = changed(fleet, "llm-fast.max_running=7, gpu1.interference=0")
    engine = next(engine for engine in other.engines if engine.name == "llm-fast")
    assert isinstance(engine, LlmEngine)
    assert engine.max_running == 7
    assert other.devices["gpu1"].interference == 0
    assert other.name != fleet.name


def test_what_if_may_be_another_fleet(fleet: Fleet, tmp_path: Path) -> None:
    assert changed(fleet, "four_llms") == load_fleet("four_llms")
    file = tmp_path / "own.yaml"
    file.write_text("name: own\nengines:\n  - {name: l, kind: llm, model: m, a: 0.01, b: 0, c: 0.0001}\n")
    assert changed(fleet, str(file)).name == "own"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("llm-fast.max_runing=7", r"no key 'max_runing' \(the nearest is max_running\)"),
        ("+nobody", "Names are llm-fast, llm-slow, .*gpu0.*fleets are four_llms"),
        ("llm-fast.a=-1", "is no fleet: .*a: Input should be greater than 0"),
        ("llm-fast.a=quick", "is no fleet: .*valid number"),
        ("four_llm", "valid are .ENGINE, -ENGINE, NAME.KEY=VALUE and another fleet"),
    ],
)
def test_a_wrong_what_if_says_what_would_be_right(fleet: Fleet, spec: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        changed(fleet, spec)
