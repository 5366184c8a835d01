from typing import Any

import pytest

from sage.apps.served import HEADINGS, cells, summarise
from sage.apps.talk import Talk, plain_table
from sage.common.api import Decision


def decision(**changes: Any) -> Decision:
    known: dict[str, Any] = {
        "request_id": "r",
        "at": 1.0,
        "request_class": "chat",
        "tenant": "t",
        "model": "m",
        "route": "chat/completions",
        "policy": "least_load",
        "engine": "llm-0",
        "reason": "least loaded",
        "outcome": "done",
    }
    return Decision(**(known | changes))


def test_one_row_per_class_and_engine() -> None:
    rows = summarise(
        [
            decision(queue_s=0.1, ttft_s=1.0, latency_s=2.0, prompt_tokens=5, completion_tokens=7),
            decision(queue_s=0.3, ttft_s=3.0, latency_s=6.0, prompt_tokens=1, completion_tokens=1),
            decision(request_class="embed_bulk", engine="embed-0", reason="only one", prompt_tokens=9),
        ]
    )
    chat, embed = rows
    assert (chat.requests, chat.done, chat.engine, chat.reason) == (2, 2, "llm-0", "least loaded")
    assert (chat.queue_s, chat.ttft_s, chat.latency_s) == pytest.approx((0.2, 2.0, 4.0))
    assert (chat.prompt_tokens, chat.completion_tokens) == (6, 8)
    assert (embed.request_class, embed.queue_s, embed.prompt_tokens) == ("embed_bulk", None, 9)


def test_the_most_common_reason_is_shown_and_what_failed_is_counted() -> None:
    (row,) = summarise([decision(reason="a"), decision(reason="b"), decision(reason="b", outcome="failed")])
    assert row.reason == "b"
    assert list(cells(row))[:2] == ["chat", "2 of 3"]


def test_a_request_that_was_never_placed_has_no_engine() -> None:
    (row,) = summarise([decision(engine=None, outcome="rejected")])
    assert row.engine == "none"


def test_cells_fit_the_headings() -> None:
    (row,) = summarise([decision(queue_s=0.0123, completion_tokens=4)])
    assert len(cells(row)) == len(HEADINGS)
    assert list(cells(row)) == ["chat", "1", "llm-0", "least loaded", "12.3", "-", "-", "0", "4"]


def test_a_plain_table_lines_up() -> None:
    assert plain_table(["a", "bb"], [["ccc", "d"]]) == "a    bb\nccc  d"


def test_talk_goes_to_stderr_and_data_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    talk = Talk()
    talk.say("working")
    talk.out("da", end="")
    talk.out("ta")
    talk.table(["h"], [["x"]])
    assert capsys.readouterr() == ("data\nh\nx\n", "working\n")


def test_without_data_stdout_stays_empty(capsys: pytest.CaptureFixture[str]) -> None:
    talk = Talk(data=False)
    talk.out("data")
    talk.table(["h"], [["x"]])
    assert capsys.readouterr().out == ""


def test_plain_progress_says_each_quarter_once(capsys: pytest.CaptureFixture[str]) -> None:
    with Talk().progress("ingest", 8) as show:
        for done in range(9):
            show(done)
            show(done)
    assert capsys.readouterr().err.splitlines() == [f"ingest: {n} of 8" for n in (2, 4, 6, 8)]
