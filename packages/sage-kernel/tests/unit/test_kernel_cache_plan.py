"""Caches in plans, and the digests that tell inputs apart."""

from __future__ import annotations

import enum
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import UsageError
from sage.kernel import Batch, Cache, Flow, LocalEnvironment, Part, PlanError, flow_schema, parse_yaml, use
from sage.kernel.runtime.digest import digest
from sage.kernel.runtime.results import weigh

HERE = __name__


class Point(NamedTuple):
    x: int
    y: int


@dataclass
class Ask:
    question: str
    tags: dict[str, int]


class Color(enum.Enum):
    RED = 1


def length(text: str) -> int:
    return len(text)


async def lengths(texts: Any) -> list[int]:
    return [len(text) for text in texts]


async def speak(text: str) -> AsyncIterator[Part[str] | int]:
    yield Part(text)
    yield len(text)


@pytest.mark.parametrize(
    "options", [{"ttl": -1}, {"size": 0}, {"bytes": 0}, {"path": "results.db"}], ids=lambda o: next(iter(o))
)
def test_a_cache_checks_itself(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"Cache\("):
        Cache(**options)


def test_a_cache_that_cannot_work_is_refused() -> None:
    flow = Flow("bad")
    numbers = flow.source(["a"]).map(speak, cache=Cache())
    numbers.sink(print)
    with pytest.raises(PlanError, match="'speak' yields parts, which a cache would not give again"):
        LocalEnvironment().check(flow)
    for key in (3, use("nowhere")):
        flow = Flow("key")
        flow.source(["a"]).map(length, cache=Cache(key=key)).sink(print)
        with pytest.raises(
            PlanError, match=r"needs a function as cache.key, not 3|operator is named 'nowhere'"
        ):
            flow.check()


def test_a_cache_is_drawn() -> None:
    flow = Flow("drawn")
    flow.source(["a"]).map(length, cache=Cache(ttl=60)).map(str, cache=Cache()).sink(print)
    assert '  n1["map length<br/>cache 60 s"]' in flow.explain().splitlines()
    assert '  n2["map str<br/>cache"]' in flow.explain().splitlines()


def test_a_cache_survives_the_round_trip_and_fits_the_schema() -> None:
    flow = Flow("cached")
    texts = flow.source(["a"], name="texts")
    texts.map(length, cache=Cache(ttl=300, size=5, bytes=100, path="x.db", key=length)).sink(use("stdout"))
    texts.map_batch(lengths, Batch(2), cache=Cache(), name="many").sink(use("stdout"))
    data = flow.to_dict()
    assert data["steps"][3]["map_batch"]["cache"] == {}
    jsonschema.validate(data, flow_schema())
    again = Flow.from_dict(data, allow=(f"{HERE}:*",))
    assert again.to_dict() == data
    assert [node.call for node in again.plan.nodes] == [node.call for node in flow.plan.nodes]


@pytest.mark.parametrize(
    ("cache", "told"),
    [
        ("{tll: 3}", "cache: unknown key 'tll'; did you mean 'ttl'?"),
        ("{ttl: -3}", "needs ttl >= 0"),
        ("5", "cache is 5, not a mapping"),
        ("{key: {}}", "cache.key names no operator"),
    ],
)
def test_what_a_document_gets_wrong_is_told(cache: str, told: str) -> None:
    steps = f"[{{source: lines}}, {{map: {{use: x, cache: {cache}}}}}, {{sink: stdout}}]"
    with pytest.raises(PlanError) as caught:
        parse_yaml(f"{{name: bad, steps: {steps}}}")
    assert told in str(caught.value)


PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=3), inner, max_size=4),
        st.builds(Point, st.integers(), st.integers()),
        st.builds(Ask, st.text(), st.dictionaries(st.text(max_size=2), st.integers(), max_size=3)),
    ),
    max_leaves=8,
)


def told_apart(value: Any) -> Any:
    """The value with its types, as `repr` shows them, and dictionaries in one order."""
    if isinstance(value, dict):
        return "dict", sorted((told_apart(k), told_apart(v)) for k, v in value.items())
    if isinstance(value, Ask):
        return "ask", told_apart([value.question, value.tags])
    if isinstance(value, list | tuple):
        return type(value).__name__, [told_apart(one) for one in value]
    return repr(value)


@given(PLAIN, PLAIN)
def test_values_have_one_digest_exactly_if_they_are_the_same(one: Any, other: Any) -> None:
    assert (digest(one) == digest(other)) == (repr(told_apart(one)) == repr(told_apart(other)))


def test_digests_do_not_depend_on_order_identity_or_process() -> None:
    text = "ab"
    assert digest((text, text)) == digest(("ab", "".join(["a", "b"])))
    assert digest({"a": 1, "b": {2, 3}}) == digest({"b": {3, 2}, "a": 1})
    assert (
        len({digest(x) for x in (1, 1.0, True, "1", b"1", None, [1], (1,), {1}, Color.RED, Point(1, 1))})
        == 11
    )
    code = "from sage.kernel.runtime.digest import digest; print(digest({'a': [1, {'x', 'y', 'z'}]}))"
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert digest({"a": [1, {"z", "y", "x"}]}) == other


def test_a_weight_counts_all_that_is_held_once() -> None:
    text = "x" * 10_000
    assert 10_000 < weigh(text) < 10_200
    assert 10_000 < weigh([text, text, {"again": text}]) < 11_000
    assert 10_000 < weigh(Ask(text, {})) < 11_000
    assert weigh([Ask, sys, length]) < 5000
