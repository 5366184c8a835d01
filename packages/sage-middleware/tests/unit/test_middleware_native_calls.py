"""The native module as Python calls it: what it refuses, and that it keeps nothing that it should not."""

from __future__ import annotations

import gc
import json
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from sage.middleware import _native
from sage.middleware.control_plane.core import Core
from sage.middleware.control_plane.options import CoreOptions
from sage.middleware.control_plane.policy import load_policy
from sage.middleware.control_plane.types import Arrived, Dispatch, EngineUp, Finished
from sage.middleware.engines.port import Usage
from sage.middleware.testing.policies import chat_job, chat_spec, embed_job, embed_spec

CHAT = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 3000}]}).encode()
EMBEDDING = json.dumps({"model": "m", "input": ["a", "b"]}).encode()
VECTORS = json.dumps({"data": [{"index": n, "embedding": [n, 0.5]} for n in (1, 0)]}).encode()
ROWS = np.ones((5, 4), dtype=np.float32)
BLOCKS = (2**64 - 1, 2**63, 7)


def index() -> _native.PrefixIndex:
    made = _native.PrefixIndex(4)
    made.insert("e", BLOCKS)
    return made


def come_and_go() -> None:
    made = index()
    made.match(BLOCKS)
    made.resize("f", 9)
    made.drop("e")
    made.drop("nobody")
    assert len(made) == 0


CORE = Core(load_policy("hybrid"), CoreOptions(history=1, details_per_s=0.0))
CORE.handle(EngineUp(0.0, chat_spec("e")))
CORE.handle(EngineUp(0.0, embed_spec("v", max_running=4)))


def come_to_an_end() -> None:
    """A request and its end, natively; the times are the same, so that nothing is learned twice."""
    [sent] = CORE.handle(Arrived(1.0, structs.replace(chat_job("r"), blocks=BLOCKS, stream=True)))
    assert isinstance(sent, Dispatch)
    CORE.handle(Finished(1.0, sent.attempt, Usage(3000, 2000)))


def vectors_come_to_an_end() -> None:
    """The same of a text; the times at which it would be late are forgotten, as a tick would."""
    CORE._attempts._late.clear()
    [sent] = CORE.handle(Arrived(1.0, structs.replace(embed_job("r"), hedgeable=True)))
    assert isinstance(sent, Dispatch)
    CORE.handle(Finished(1.0, sent.attempt, Usage(3000)))


def top_k(*arguments: Any, **named: Any) -> object:
    return _native.top_k(*arguments, **named)


Refused = tuple[Callable[[], object], type[Exception], str]
ANY: Any = _native
REFUSED: dict[str, Refused] = {
    "body": (lambda: ANY.read_chat("text", True), TypeError, "body has to be bytes; found str"),
    "blocks wanted": (lambda: ANY.read_chat(CHAT, 1), TypeError, "blocks has to be a bool; found int"),
    "too few": (lambda: ANY.read_chat(CHAT), TypeError, "read_chat takes 2 arguments; found 1"),
    "ident": (lambda: ANY.parse_chat(CHAT, b"r", "t", True), TypeError, "ident has to be a str; found bytes"),
    "tenant": (lambda: ANY.parse_chat(CHAT, "r", 1, True), TypeError, "tenant has to be a str; found int"),
    "hashes": (lambda: ANY.parse_chat(CHAT, "r", "t", 0), TypeError, "blocks has to be a bool; found int"),
    "most texts": (
        lambda: ANY.parse_embedding(EMBEDDING, "r", "t", "8", 1),
        TypeError,
        "str",
    ),
    "whose embedding": (
        lambda: ANY.parse_embedding(EMBEDDING, "r", None, 8, 1),
        TypeError,
        "tenant has to be a str; found NoneType",
    ),
    "too few of an embedding": (lambda: ANY.parse_embedding(EMBEDDING), TypeError, "takes 5 arguments"),
    "counts": (lambda: ANY.count_values((), [], ()), TypeError, "counts has to be a list; found tuple"),
    "values": (lambda: ANY.count_values([], (), ()), TypeError, "values has to be a list; found tuple"),
    "bounds": (lambda: ANY.count_values([], [], []), TypeError, "bounds has to be a tuple; found list"),
    "too few counts": (
        lambda: ANY.count_values([0], [], (1.0,)),
        ValueError,
        "counts has 1 items; valid is one more than the 1 bounds",
    ),
    "no number": (lambda: ANY.count_values([0], ["x"], ()), TypeError, "real number"),
    "answer": (lambda: ANY.read_usage("{}"), TypeError, "body has to be bytes; found str"),
    "vectors": (lambda: ANY.read_vectors("{}", []), TypeError, "body has to be bytes; found str"),
    "texts": (lambda: ANY.read_vectors(b"{}", ()), TypeError, "texts has to be a list; found tuple"),
    "no text": (lambda: ANY.read_vectors(b"{}", ["a"]), TypeError, "a text has to be bytes; found str"),
    "too few of vectors": (lambda: ANY.read_vectors(b"{}"), TypeError, "takes 2 arguments; found 1"),
    "embedding": (lambda: ANY.read_embedding(None), TypeError, "body has to be bytes; found NoneType"),
    "text": (lambda: ANY.prompt_blocks(bytearray(b"x")), TypeError, "text has to be bytes; found bytearray"),
    "data": (lambda: ANY.body_after("x", b"", b"", 1), TypeError, "data has to be bytes; found str"),
    "after": (lambda: ANY.body_after(b"", b"", None, 1), TypeError, "after has to be bytes; found NoneType"),
    "most": (lambda: ANY.body_after(b"", b"", b"", -1), OverflowError, "negative"),
    "too few of a head": (lambda: ANY.body_after(b""), TypeError, "body_after takes 4 arguments; found 1"),
    "no metric": (lambda: top_k(ROWS, ROWS, 1), TypeError, "keyword argument 'metric'"),
    "no k": (lambda: top_k(ROWS, ROWS, metric="cosine"), TypeError, "missing required argument 'k'"),
    "k": (lambda: top_k(ROWS, ROWS, 1.5, metric="cosine"), TypeError, "float"),
    "k too large": (lambda: top_k(ROWS, ROWS, 2**70, metric="cosine"), OverflowError, "too large"),
    "capacity": (lambda: ANY.PrefixIndex("many"), TypeError, "str"),
    "no capacity": (lambda: ANY.PrefixIndex(), TypeError, "capacity"),
    "engine": (lambda: ANY.PrefixIndex(1).insert(1, ()), TypeError, "engine has to be a str; found int"),
    "list": (lambda: ANY.PrefixIndex(1).insert("e", []), TypeError, "blocks has to be a tuple; found list"),
    "no hash": (lambda: ANY.PrefixIndex(1).insert("e", ("x",)), TypeError, "int"),
    "resize": (lambda: ANY.PrefixIndex(1).resize("e", "x"), TypeError, "str"),
    "resize one": (lambda: ANY.PrefixIndex(1).resize("e"), TypeError, "resize takes 2 arguments; found 1"),
    "resize far": (lambda: ANY.PrefixIndex(1).resize("e", 2**70), OverflowError, "fit"),
    "drop": (lambda: ANY.PrefixIndex(1).drop(None), TypeError, "engine has to be a str; found NoneType"),
}
ANSWERED: dict[str, Callable[[], object]] = {
    "chat": lambda: _native.read_chat(CHAT, True),
    "not plain": lambda: _native.read_chat(b"{", True),
    "whole chat": lambda: _native.parse_chat(CHAT, "r", "t", True),
    "whole embedding": lambda: _native.parse_embedding(EMBEDDING, "r", "t", 999, 99_999),
    "too much to embed": lambda: _native.parse_embedding(EMBEDDING, "r", "t", 0, 99_999),
    "no whole embedding": lambda: _native.parse_embedding(b"{", "r", "t", 999, 99_999),
    "no whole chat": lambda: _native.parse_chat(b"{", "r", "t", True),
    "counts": lambda: _native.count_values([0, 5000], [1.5, 0.5], (1.0,)),
    "usage": lambda: _native.read_usage(b'{"usage":{"prompt_tokens":3000,"completion_tokens":2000}}'),
    "vectors": lambda: _native.read_vectors(VECTORS, [b'"a"', b'"b"']),
    "no vectors": lambda: _native.read_vectors(VECTORS, [b'"a"']),
    "no usage": lambda: _native.read_usage(b'{"usage":null}'),
    "plain generations": come_to_an_end,
    "plain texts": vectors_come_to_an_end,
    "embedding": lambda: _native.read_embedding(EMBEDDING),
    "blocks": lambda: _native.prompt_blocks(CHAT),
    "head": lambda: _native.body_after(b"a: 300, " + CHAT[:300], b"a: ", b", ", 300),
    "top_k": lambda: top_k(ROWS, ROWS, 2, metric="cosine"),
    "isa": _native.isa,
    "index": come_and_go,
}


def refused(call: Callable[[], object]) -> Callable[[], object]:
    def act() -> None:
        try:  # not pytest.raises, which makes objects of its own
            call()
        except (TypeError, ValueError, OverflowError):
            return
        raise AssertionError(f"{call} was not refused")

    return act


CALLS = {
    **ANSWERED,
    **{f"{name} refused": refused(call) for name, (call, _, _) in REFUSED.items()},
    "dates refused": refused(lambda: top_k(ROWS.astype("M8[s]"), ROWS, 1, metric="cosine")),
    "strided refused": refused(lambda: top_k(ROWS.T, ROWS, 1, metric="cosine")),
}


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_arguments_are_named(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_calls_leave_no_memory_behind(call: Callable[[], object]) -> None:
    def grown(times: int) -> int:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(times):
            call()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before

    tracemalloc.start()
    try:
        grown(500)  # what is kept for good is made by the first calls
        # less than a pointer for each; what other threads of the process allocate is not in every try
        assert min(grown(500) for _ in range(3)) < 500 * 8
    finally:
        tracemalloc.stop()


def test_calls_leave_the_counts_of_their_arguments_as_they_were() -> None:
    name = "an engine of its own"
    shared: list[Any] = [CHAT, EMBEDDING, ROWS, BLOCKS, name, None, True]
    for call in CALLS.values():
        call()  # what is imported at the first one holds some for good
    gc.collect()  # or what dies meanwhile is counted
    before = [sys.getrefcount(one) for one in shared]
    for call in CALLS.values():
        for _ in range(200):
            call()
    held = _native.PrefixIndex(4)
    for _ in range(200):
        held.insert(name, BLOCKS)
    assert held.match(BLOCKS) == {name: 3}
    held.drop(name)
    after = [sys.getrefcount(one) for one in shared]
    # One for each call would be 200; what else the process does to None and True is less.
    assert [b - a for a, b in zip(before, after, strict=True) if abs(b - a) > 150] == []


def test_an_index_that_goes_lets_its_names_go() -> None:
    name = "".join(["a ", "name"])
    before = sys.getrefcount(name)
    held = _native.PrefixIndex(4)
    held.insert(name, BLOCKS)
    assert sys.getrefcount(name) > before
    del held
    assert sys.getrefcount(name) == before


def test_an_array_may_be_changed_again_once_it_was_searched() -> None:
    rows = np.ones((5, 4), dtype=np.float32)
    top_k(rows, rows, 1, metric="cosine")
    rows.resize((50, 4))  # NumPy refuses while something holds its buffer
    assert rows.shape == (50, 4)


def test_an_array_that_cannot_be_written_to_is_searched() -> None:
    rows = np.eye(4, dtype=np.float32)
    rows.flags.writeable = False
    found, _ = _native.top_k(rows, rows, 1, metric="cosine")
    assert found.tolist() == [[0], [1], [2], [3]]


def test_the_last_name_is_returned_as_the_same_object() -> None:
    first, again = _native.read_embedding(EMBEDDING), _native.read_embedding(EMBEDDING)
    assert first is not None
    assert again is not None
    assert first[0] is again[0]
