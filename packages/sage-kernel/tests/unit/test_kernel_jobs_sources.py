"""From what was submitted to a flow: settings, code that is allowed, and what is none."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sage.common.errors import BadRequestError, NotFoundError
from sage.kernel import Flow, PlanError, Registry
from sage.kernel.jobs.messages import Source
from sage.kernel.jobs.sources import check, load, with_settings

TESTS = Path(__file__).resolve().parents[1]
PLAN: dict[str, Any] = {
    "name": "copy",
    "steps": [
        {"source": "items", "id": "bare"},
        {"source": {"use": "items", "with": {"values": [1]}}, "id": "in"},
        {"merge": ["bare", "in"], "id": "both"},
        {"sink": "stdout"},
    ],
}


@pytest.fixture(autouse=True)
def here() -> Iterator[None]:
    """A job's process changes its folder and its path."""
    folder, path = Path.cwd(), list(sys.path)
    yield
    os.chdir(folder)
    sys.path[:] = path


def named(flow: str, **settings: Any) -> Flow:
    return load(Source(None, flow, settings, ("jobflows:*", "json:loads"), (str(TESTS),)))


def test_settings_replace_parameters_and_nothing_else() -> None:
    changed = with_settings(PLAN, {"in.values": [2], "bare.values": [3]})
    assert changed["steps"][0] == {"source": {"use": "items", "with": {"values": [3]}}, "id": "bare"}
    assert changed["steps"][1] == {"source": {"use": "items", "with": {"values": [2]}}, "id": "in"}
    assert PLAN["steps"][1]["source"]["with"] == {"values": [1]}
    assert with_settings(PLAN, {}) == PLAN


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("values", "valid is STEP.PARAMETER, where STEP is the id of a step; there are: bare, in, both"),
        ("inn.values", "did you mean 'in'?"),
        ("in.", "valid is STEP.PARAMETER"),
        ("both.values", "that step names no operator"),
    ],
)
def test_a_setting_that_fits_no_step_says_what_would(name: str, words: str) -> None:
    with pytest.raises(BadRequestError) as met:
        with_settings(PLAN, {name: 1})
    assert words in str(met.value)


def test_a_plan_works_in_the_folder_of_its_job(tmp_path: Path) -> None:
    flow = load(Source(PLAN, "", {"in.values": [1, 2], "bare.values": []}, folder=str(tmp_path)))
    check(flow, Registry(), {})
    assert Path.cwd() == tmp_path.resolve()
    with pytest.raises(NotFoundError, match="does not exist"):
        load(Source(PLAN, "", folder=str(tmp_path / "none")))


def test_code_is_a_flow_or_makes_one() -> None:
    assert named("jobflows:numbers", count=3).name == "numbers"
    assert named("jobflows:READY").name == "numbers"


@pytest.mark.parametrize(
    ("flow", "settings", "words"),
    [
        ("os:system", {}, "'os:system' is not allowed; allowed is jobflows:*, json:loads"),
        ("jobflows:none", {}, "has no attribute 'none'"),
        ("jobflows:numbers", {"cont": 3}, "unexpected keyword argument 'cont'"),
        ("jobflows:READY", {"count": 3}, "is a Flow, which takes no settings"),
        ("jobflows:no_flow", {}, "returns a int, not a Flow"),
        ("jobflows:FUNCTIONS", {}, "is a list; a Flow or a function that makes one does"),
        ("json:loads", {"s": "1"}, "returns a int, not a Flow"),
    ],
)
def test_what_is_no_flow_says_what_would_be_one(flow: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequestError) as met:
        named(flow, **settings)
    assert words in str(met.value)


def test_what_cannot_be_a_job_is_told_at_once() -> None:
    serving = Flow("serving")
    serving.reply(serving.requests(str).map(str.upper))
    with pytest.raises(PlanError, match="a job reads its sources to their ends"):
        check(serving, Registry(), {})
    with pytest.raises(PlanError, match="2 problem"):
        check(load(Source({"name": "x", "steps": [{"source": {"use": "itms"}}]}, "")), Registry(), {})
