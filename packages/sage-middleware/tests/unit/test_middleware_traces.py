"""Public traces: own files in their formats everywhere, the real ones where they are at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sage.common.errors import ConfigError, NotFoundError
from sage.middleware.control_plane.simulator.shapes import Models, Setting
from sage.middleware.control_plane.simulator.traces import (
    DATA_ENV,
    PUBLIC,
    Row,
    read_azure,
    read_mooncake,
)
from sage.middleware.control_plane.simulator.types import SimRequest
from sage.middleware.control_plane.simulator.workloads import Workload, load_workload

_DATA = os.environ.get(DATA_ENV, "")
needs_data = pytest.mark.skipif(not _DATA, reason=f"the public traces are not at hand: {DATA_ENV} is not set")

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
"""
MOONCAKE = [
    {"timestamp": 0, "input_length": 1500, "output_length": 20, "hash_ids": [0, 1, 2]},
    {"timestamp": 3000, "input_length": 2100, "output_length": 30, "hash_ids": [0, 1, 2, 3, 4]},
    {"timestamp": 3000, "input_length": 700, "output_length": 0, "hash_ids": [0, 9]},
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with small files of our own in the formats of the public ones."""
    for trace in PUBLIC.values():
        (tmp_path / trace.file).parent.mkdir()
    (tmp_path / PUBLIC["azure"].file).write_text(AZURE)
    lines = "".join(json.dumps(row) + "\n" for row in MOONCAKE)
    (tmp_path / PUBLIC["mooncake"].file).write_text(lines)
    return tmp_path


def replay(
    data: Path | None, *, load: float = 1.0, duration: float = 60.0, **stream: object
) -> list[SimRequest]:
    workload = Workload.model_validate({"streams": [{"kind": "replay", **stream}]})
    return list(workload.requests(Setting(0, duration, Models("llm"), load, data)))


def test_azure_rows_count_from_the_first(data: Path) -> None:
    rows = list(read_azure(data / PUBLIC["azure"].file))
    assert [row.at for row in rows] == pytest.approx([0, 4.314579, 4.541877], abs=1e-5)
    assert [(row.prompt_tokens, row.output_tokens) for row in rows] == [(374, 44), (396, 109), (879, 55)]


def test_mooncake_rows_are_in_seconds_and_keep_their_blocks(data: Path) -> None:
    assert list(read_mooncake(data / PUBLIC["mooncake"].file)) == [
        Row(0.0, 1500, 20, (0, 1, 2)),
        Row(3.0, 2100, 30, (0, 1, 2, 3, 4)),
        Row(3.0, 700, 1, (0, 9)),
    ]


def test_speed_and_load_shorten_the_time_between_arrivals(data: Path) -> None:
    plain = replay(data, format="azure")
    fast = replay(data, format="azure", speed=2, load=1.5)
    assert [r.at for r in fast] == pytest.approx([r.at / 3 for r in plain])
    assert [r.output_tokens for r in fast] == [44, 109, 55]


def test_a_replay_ends_with_the_run_or_at_its_limit(data: Path) -> None:
    assert len(replay(data, format="azure", duration=4.4)) == 2
    assert len(replay(data, format="azure", limit=1)) == 1


def test_hash_ids_become_blocks_that_share_their_prefix(data: Path) -> None:
    first, second, third = (r.job.blocks for r in replay(data, format="mooncake"))
    assert second[: len(first)] == first
    assert 0 < len(first) <= 1500 * 4.3 / 256
    common = [a == b for a, b in zip(first, third, strict=False)]
    assert common.index(False) == 9, "one block of 512 tokens is nine of 256 bytes"
    assert len(set(second)) == len(second)


def test_a_file_may_lie_anywhere(data: Path) -> None:
    assert len(replay(None, format="azure", file=str(data / PUBLIC["azure"].file))) == 3


def test_an_absent_trace_says_where_it_would_be_and_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no data folder is named") as caught:
        replay(None, format="mooncake")
    assert "--data-dir" in str(caught.value)
    assert "github.com/kvcache-ai/Mooncake" in str(caught.value)
    with pytest.raises(NotFoundError, match=r"conversation_trace\.jsonl does not exist"):
        replay(tmp_path, format="mooncake")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "TIMESTAMP,GeneratedTokens\n",
            "bad.csv:1: the columns ContextTokens are missing; found TIMESTAMP, Gen",
        ),
        ("", "found nothing"),
        (AZURE + "2023-11-16 18:15:52,many,3\n", "bad.csv:5: invalid literal"),
        (AZURE + "yesterday,3,3\n", "bad.csv:5: Invalid isoformat"),
        (AZURE + "2023-11-16 18:15:52,3\n", "bad.csv:5"),
    ],
)
def test_a_broken_azure_file_names_its_line(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "bad.csv"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        list(read_azure(file))


@pytest.mark.parametrize("line", ['{"timestamp": 0}', "nonsense", '{"timestamp": "x", "input_length": 1}'])
def test_a_broken_mooncake_file_names_its_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(json.dumps(MOONCAKE[0]) + "\n" + line + "\n")
    with pytest.raises(ConfigError, match=r"bad\.jsonl:2"):
        list(read_mooncake(file))


@needs_data
@pytest.mark.parametrize("name", ["azure_conversation", "mooncake_conversation"])
def test_the_public_traces_are_read_as_they_are(name: str) -> None:
    workload = load_workload(name)
    requests = list(workload.requests(Setting(0, 3600, Models("llm"), 1.0, Path(_DATA))))
    assert len(requests) > 10_000
    assert [r.at for r in requests] == sorted(r.at for r in requests)
    assert all(r.prompt_tokens > 0 and r.output_tokens > 0 for r in requests)
