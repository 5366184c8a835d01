"""The pure parts of the long tests: checks, acts, mutations, positions; and what the puppet answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.benchmark.load.worker import lower_priority, raise_priority
from sage.benchmark.resilience.__main__ import main
from sage.benchmark.resilience.acts import Act, acts_of, chat, embedding
from sage.benchmark.resilience.answers import NONSENSE, parts, vector, vectors
from sage.benchmark.resilience.fuzz import _Cases, _Told, _told, statuses
from sage.benchmark.resilience.kills import positions
from sage.benchmark.resilience.mutate import mutated, valid
from sage.benchmark.resilience.report import Check, at_least, at_most, equal, nothing_left, record, table


def dice(seed: int) -> Random:
    return Random(seed)  # noqa: S311 - reproducible, not secret


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


def test_what_is_at_a_limit_is_good_and_what_is_beyond_is_not() -> None:
    assert [at_most("a", value, 5.0).ok for value in (4.0, 5.0, 5.1)] == [True, True, False]
    assert [at_least("a", value, 5.0).ok for value in (4.9, 5.0, 6.0)] == [False, True, True]
    assert [equal("a", value, 5.0).ok for value in (4.0, 5.0)] == [False, True]
    assert [check.ok for check in nothing_left({"slots": 0.0, "fds": -2.0, "tasks": 1.0})] == [
        True,
        True,
        False,
    ]


def test_the_table_says_what_failed() -> None:
    lines = table([at_most("close", 3.0, 100.0, "ms"), at_most("errors", 2.0, 0.0)]).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["close", "3", "ms", "≤", "100", "ms", "ok"],
        ["errors", "2", "≤", "0", "FAILED"],
    ]


def test_a_record_has_machine_commit_and_checks(tmp_path: Path) -> None:
    file = tmp_path / "new" / "record.json"
    record(file, "chaos", [Check("a", "1", "0", ok=False, value=1.0)], {"seed": 3})
    content = json.loads(file.read_text())
    assert content["checks"] == [{"what": "a", "found": "1", "target": "0", "ok": False, "value": 1.0}]
    assert content["parameters"] == {"seed": 3}
    assert content["environment"]["hardware"]["cores"] > 0
    assert "git" in content["environment"]


def test_an_experiment_that_there_is_not_is_an_error_that_names_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["chaos", "--only", "astrology"])
    words = capsys.readouterr().err
    assert "astrology" in words
    assert "disconnects" in words


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of Linux")
def test_a_priority_is_given_back_and_not_inherited() -> None:
    said = raise_priority()
    try:
        ask = "import os; print(os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0))"
        child = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    finally:
        lower_priority()
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    if said == "SCHED_RR 1":
        assert child.stdout.split() == ["0", "0"]


# ---- acts ----


def test_an_act_comes_back_out_of_a_body() -> None:
    act = Act(tag="t1", words=7, hold=2, once="/x", refuse=0.5)
    assert acts_of(chat(act, stream=True))[0] == [act]
    assert acts_of(embedding([act.text, "plain"]))[0] == [act, Act()]


@given(
    st.dictionaries(
        st.sampled_from(["messages", "prompt", "input"]), st.recursive(st.none() | st.text(), st.lists)
    )
)
def test_any_object_has_an_act(fields: dict[str, object]) -> None:
    assert acts_of(msgspec.json.encode(fields))[0]


def test_answers_are_whole_and_vectors_depend_on_their_text() -> None:
    stream = b"".join(parts("e", 5, stream=True))
    assert stream.count(b"word") == 5
    assert stream.endswith(b"data: [DONE]\n\n")
    (plain,) = parts("e", 5, stream=False)
    assert json.loads(plain)["choices"][0]["message"]["content"].count("word") == 5
    data = json.loads(vectors(["a", "b", "a"]))["data"]
    assert [one["embedding"] for one in data] == [vector("a"), vector("b"), vector("a")]
    assert vector("a") != vector("b")
    assert all(isinstance(say(), bytes) for say in NONSENSE.values())


@given(st.integers(2, 5000), st.integers(1, 40))
def test_positions_lie_in_the_answer_from_its_first_byte(size: int, count: int) -> None:
    found = positions(size, count)
    assert len(found) == count
    assert found == sorted(found)
    assert found[0] == 0
    assert found[-1] <= size - 1


# ---- fuzz ----


@pytest.mark.parametrize("errors", [[], [msgspec.Raw(b'{"title": "Runtime Error"}')]])
def test_an_error_of_schemathesis_fails_with_its_words(errors: list[msgspec.Raw]) -> None:
    said = "a lost connection" if errors else ""
    *_, last = _told("data", _Told(_Cases(), [], errors, said))
    assert last.ok is not bool(errors)
    assert said in str(last.found)


def test_a_seed_is_a_case() -> None:
    first, again, other = (mutated(dice(seed), 1, "k") for seed in (5, 5, 6))
    assert first == again
    assert first != other
    assert all(mutated(dice(seed), 1, "k") for seed in range(500))


def test_a_valid_request_has_its_length() -> None:
    head, _, body = valid(dice(1), 1, "k").raw().partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head
    assert json.loads(body)["model"]


def test_statuses_of_all_answers_are_read() -> None:
    assert statuses(OK + OK.replace(b"200 OK", b"503 No")) == [200, 503]
    assert statuses(b"") == []
    assert statuses(OK[:-2] + OK, bare=True) == [200]
    with pytest.raises(ValueError, match="not HTTP"):
        statuses(b"SSH-2.0\r\n\r\n")
