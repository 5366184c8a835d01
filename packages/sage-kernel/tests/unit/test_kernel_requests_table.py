"""What a journal says of requests, and that a checkpoint may take the place of any part of it."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sage.kernel.runtime import requests
from sage.kernel.runtime.requests import REPLIES, Note, Record, Table
from sage.kernel.runtime.state import Changes

OPERATORS = ("ask", "fold")
_KEYS = st.binary(min_size=1, max_size=1)


@st.composite
def journals(draw: st.DrawFn) -> list[Record]:
    """Requests that come, are worked on and end in any order; an id is used again only once it is free."""
    found: list[Record] = []
    opened: dict[int, str] = {}
    answered: set[str] = set()
    following = 1
    for _ in range(draw(st.integers(0, 30))):
        what = draw(st.sampled_from(("open", "note", "end")))
        if what == "open" or not opened:
            ident = draw(st.sampled_from(("", "a", "b", "c")))
            if ident and ident in {*opened.values(), *answered}:
                continue
            found.append(("open", following, ident, draw(st.binary(max_size=2)), b"item"))
            opened[following] = ident
            following += 1
            continue
        number = draw(st.sampled_from(sorted(opened)))
        if what == "note":
            keys = tuple(draw(st.lists(_KEYS, max_size=2)))
            states = tuple(draw(st.sampled_from((b"", b"x", b"y"))) for _ in keys)
            note = Note(draw(st.sampled_from(OPERATORS)), draw(_KEYS), draw(_KEYS), keys, states)
            found.append(("note", number, tuple(note)))
        else:
            reply = draw(st.sampled_from((None, b"", b"reply")))
            found.append(("end", number, reply))
            if reply is not None:
                answered.add(opened[number])
            del opened[number]
    return found


def applied(table: Table, records: list[Record]) -> Table:
    for record in records:
        table.apply(record)
    return table


def held(table: Table) -> Any:
    """What a job would go on with; the order of replies counts, as the oldest go first."""
    rows = [(one.number, one.id, one.digest, one.item, one.notes) for one in table.open.values()]
    replies = [(ident, digest, reply) for ident, (_, digest, reply) in table.replies.items()]
    return sorted(rows), replies, table.next, sorted(table.by_id)


def kept(states: dict[str, dict[bytes, bytes]], table: Table) -> None:
    """What a store has of the checkpoints of a table: the later over the earlier."""
    for name, changes in table.snapshot().items():
        mine = states.setdefault(name, {})
        for key, state in zip(changes.keys, changes.states, strict=True):
            if state:
                mine[key] = state
            else:
                mine.pop(key, None)


@given(journals(), st.lists(st.integers(0, 30), max_size=3))
def test_checkpoints_and_the_rest_of_the_journal_are_as_good_as_all_of_it(
    records: list[Record], cuts: list[int]
) -> None:
    whole = applied(Table("requests", "reply"), records)
    states: dict[str, dict[bytes, bytes]] = {}
    table, done = Table("requests", "reply"), 0
    for cut in sorted(cuts):
        applied(table, records[done:cut])
        done = max(done, cut)
        kept(states, table)
        assert not table.dirty
        following, table = table.next, Table("requests", "reply")
        table.restore(states, following)
    applied(table, records[done:])
    assert held(table) == held(whole)
    kept(states, table)
    again = Table("requests", "reply")
    again.restore(states, whole.next)
    assert held(again) == held(whole)
    everything: dict[str, dict[bytes, bytes]] = {}
    kept(everything, whole)
    assert states.get("fold", {}) == everything.get("fold", {})


def test_what_was_had_is_given_back_as_often_as_it_was_had() -> None:
    table = Table("requests", "reply")
    table.apply(("open", 1, "", b"", b"item"))
    for data in (b"first", b"second"):
        table.apply(("note", 1, ("ask", b"same", data)))
    request = table.open[1]
    assert request.find("ask", b"same") is None  # nobody has begun again
    request.take_up()
    assert [request.find("ask", b"same") for _ in range(3)] == [b"first", b"second", None]
    assert request.find("ask", b"other") is None
    assert [note.data for note in request.notes] == [b"first", b"second"]


def test_a_request_that_came_and_went_leaves_nothing_to_be_kept() -> None:
    table = Table("requests", "reply")
    for number in range(1, 100):
        applied(table, [("open", number, "", b"", b"item"), ("end", number, b"reply")])
    assert table.dirty
    assert table.snapshot() == {"requests": Changes([], [])}
    assert table.replies == {}  # nobody could ask for them


def test_the_oldest_replies_go_first() -> None:
    table = Table("requests", "reply")
    for number in range(1, REPLIES + 3):
        table.apply(("open", number, f"id-{number}", b"", b"item"))
        table.apply(("end", number, b"reply"))
    assert len(table.replies) == REPLIES
    assert "id-2" not in table.replies
    assert "id-3" in table.replies
    snapshot = table.snapshot()["reply"]
    assert dict(zip(snapshot.keys, snapshot.states, strict=True))[b"id-1"] == b""


def test_replies_are_bounded_by_their_bytes() -> None:
    table = Table("requests", "reply")
    for number in (1, 2, 3):
        table.apply(("open", number, f"id-{number}", b"", b"item"))
        table.apply(("end", number, bytes(requests.REPLY_BYTES // 2)))
    assert list(table.replies) == ["id-2", "id-3"]


def test_records_of_a_request_that_was_lost_are_passed_over() -> None:
    table = applied(
        Table("requests", "reply"),
        [("note", 1, ("fold", b"", b"", (b"k",), (b"s",))), ("end", 1, b"reply")],
    )
    assert table.open == {}
    assert table.changed["fold"] == {b"k": b"s"}  # others may have seen that state
