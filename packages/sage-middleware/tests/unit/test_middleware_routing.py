"""Which models a name stands for: a pure function of the table, the name and a seed."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.config import ModelConfig, TargetConfig
from sage.common.errors import (
    BadRequestError,
    EngineError,
    ForbiddenError,
    ModelNotFoundError,
    OverloadedError,
    SageError,
    TimedOutError,
    UnavailableError,
    UnreachableError,
)
from sage.middleware.control_plane.routing import elsewhere, models_of, resolve, retarget
from sage.middleware.testing.bench import chat, embedding, rerank


def name(ident: str, to: dict[str, float], *fallbacks: str) -> dict[str, ModelConfig]:
    targets = tuple(TargetConfig(model=model, weight=weight) for model, weight in to.items())
    return {ident: ModelConfig(name=ident, to=targets, fallbacks=fallbacks)}


def test_a_model_stands_for_itself() -> None:
    assert resolve({}, "m", "seed") == ("m",)
    assert models_of({}, "m") == {"m"}


def test_an_alias_and_its_fallbacks_in_their_order() -> None:
    table = {**name("x", {"m": 1}, "spare", "n"), **name("spare", {"n": 1}, "o")}
    assert resolve(table, "x", "seed") == ("m", "n", "o")
    assert models_of(table, "x") == {"m", "n", "o"}


def test_a_split_keeps_to_its_weights() -> None:
    table = name("x", {"m": 9, "n": 1})
    counts = Counter(resolve(table, "x", f"req-{number}") for number in range(20_000))
    assert counts[("n",)] / 20_000 == pytest.approx(0.1, abs=0.01)  # five deviations are 0.0106
    assert set(counts) == {("m",), ("n",)}


def test_two_splits_of_one_request_are_independent() -> None:
    table = {**name("x", {"a": 1, "b": 1}), **name("y", {"a": 1, "b": 1})}
    both = Counter(
        (resolve(table, "x", f"req-{number}"), resolve(table, "y", f"req-{number}")) for number in range(4000)
    )
    assert all(count == pytest.approx(1000, abs=150) for count in both.values())
    assert len(both) == 4


NAMES = st.sampled_from("abcd")


@given(
    st.dictionaries(st.sampled_from("mno"), st.floats(0.001, 1e6), min_size=1),
    st.lists(st.sampled_from("mnop"), max_size=4),
    st.text(max_size=20),
)
def test_it_is_stable_begins_with_a_target_and_names_each_once(
    to: dict[str, float], fallbacks: list[str], seed: str
) -> None:
    table = name("x", to, *fallbacks)
    found = resolve(table, "x", seed)
    assert found == resolve(dict(table), "x", seed)
    assert found[0] in to
    assert list(found[1:]) == [one for one in dict.fromkeys(fallbacks) if one != found[0]]
    assert set(found) <= models_of(table, "x")


def test_the_body_names_the_model_and_keeps_the_bytes_of_the_rest() -> None:
    parsed = chat("r", model="x", temperature=0.1)
    job, call = retarget(parsed.job, parsed.call, "org/m", "n: it is full")
    body = json.loads(call.body)
    assert body.pop("model") == job.model == "org/m"
    assert body == {key: value for key, value in json.loads(parsed.call.body).items() if key != "model"}
    assert (job.asked, job.fallback, job.id, job.body_bytes) == ("x", "n: it is full", "r", len(call.body))
    assert b'"temperature":0.1' in call.body.replace(b" ", b"")


def test_texts_of_an_alias_share_calls_with_those_of_its_model() -> None:
    direct, aliased = embedding("a", "t", key="m|8|float"), embedding("b", "t", key="memory|8|float")
    job, _ = retarget(aliased.job, aliased.call, "m")
    assert job.batch_key == direct.job.batch_key
    pairs = rerank("c", "q", "d")
    assert retarget(pairs.job, pairs.call, "m")[0].batch_key == "m|pairs"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OverloadedError("full"), True),
        (UnavailableError("none is ready"), True),
        (EngineError("it broke"), True),
        (UnreachableError("nothing listens"), True),
        (ModelNotFoundError("its engine was just removed"), True),
        (BadRequestError("a bad field"), False),
        (ForbiddenError("not yours"), False),
        (TimedOutError("too late"), False),
        (SageError("a fault of ours"), False),
    ],
)
def test_what_another_model_may_serve(error: SageError, expected: bool) -> None:
    assert elsewhere(error) is expected
