"""Datasets: what each loader reads, and what is said when the data is not there."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import pytest

from sage.benchmark.datasets import DATA_DIR, TraceRequest, available_datasets, open_dataset
from sage.common.errors import ConfigError, NotFoundError

PUBLISHED = {
    "azure_conv_2023": ("azure_llm_2023/AzureLLMInferenceTrace_conv.csv", 19_366),
    "mooncake_conversation": ("mooncake/conversation_trace.jsonl", 12_031),
    "scifact_texts": ("scifact_beir/corpus.jsonl.gz", 5_183),
}
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 23:59:59.5000000,374,44
2023-11-17 00:00:01.0000001,91,16
"""
MOONCAKE = """{"timestamp": 500, "input_length": 600, "output_length": 5, "hash_ids": [0, 7]}
{"timestamp": 2000, "input_length": 10, "output_length": 9, "hash_ids": [0]}
"""


def put(folder: Path, name: str, text: str) -> Path:
    path = folder / PUBLISHED[name][0]
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_azure_counts_seconds_from_its_first_row_over_midnight(tmp_path: Path) -> None:
    path = put(tmp_path, "azure_conv_2023", AZURE)
    data = open_dataset("azure_conv_2023", tmp_path)
    assert list(data.items()) == [TraceRequest(0.0, 374, 44), TraceRequest(1.5, 91, 16)]
    assert (data.name, data.licence, data.path) == ("azure_conv_2023", "CC-BY-4.0", path)


def test_mooncake_keeps_the_hashes_of_the_blocks(tmp_path: Path) -> None:
    put(tmp_path, "mooncake_conversation", MOONCAKE)
    data = open_dataset("mooncake_conversation", tmp_path)
    assert list(data.items()) == [TraceRequest(0.0, 600, 5, (0, 7)), TraceRequest(1.5, 10, 9, (0,))]


def test_scifact_joins_title_and_text(tmp_path: Path) -> None:
    put(tmp_path, "scifact_texts", '{"_id": "4", "title": "A title", "text": "An abstract."}\n')
    data = open_dataset("scifact_texts", tmp_path)
    assert list(data.items()) == ["A title An abstract."] == list(data.items())


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("azure_conv_2023", AZURE + "yesterday,1,2\n", 4),
        ("azure_conv_2023", "TIME,ContextTokens\n1,2\n", 2),
        ("mooncake_conversation", MOONCAKE + "{}\n", 3),
        ("scifact_texts", '{"title": "no text"}\n', 1),
        ("scifact_texts", "no JSON\n", 1),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, name: str, text: str, line: int) -> None:
    path = put(tmp_path, name, text)
    with pytest.raises(ConfigError, match=f"{path.name}:{line} "):
        list(open_dataset(name, tmp_path).items())


@pytest.mark.parametrize("name", PUBLISHED)
def test_data_that_is_not_there_says_where_to_get_it_and_what_would_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv(DATA_DIR, raising=False)
    file = PUBLISHED[name][0]
    with pytest.raises(NotFoundError, match=f"{file} is not there.*https://.*generated_"):
        open_dataset(name, tmp_path)
    with pytest.raises(NotFoundError, match=f"no data folder is named.*--data-dir or {DATA_DIR}"):
        open_dataset(name)


def test_the_environment_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "azure_conv_2023", AZURE)
    monkeypatch.setenv(DATA_DIR, str(tmp_path))
    assert len(list(open_dataset("azure_conv_2023").items())) == 2


def test_a_name_that_nobody_knows_lists_those_that_are() -> None:
    with pytest.raises(NotFoundError, match=r"'nope'; there are azure_conv_2023, .*scifact_texts"):
        open_dataset("nope")
    assert set(PUBLISHED) < set(available_datasets())


def test_other_packages_add_theirs_by_an_entry_point(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Point:
        name = "theirs"

        @staticmethod
        def load() -> Any:
            return lambda folder: ("made with", folder)

    def points(*, group: str, name: str = "theirs") -> list[Any]:
        return [Point] if (group, name) == ("sage.bench.dataset", "theirs") else []

    monkeypatch.setattr("sage.benchmark.datasets.port.entry_points", points)
    assert open_dataset("theirs", tmp_path) == ("made with", tmp_path)  # type: ignore[comparison-overlap]
    assert "theirs" in available_datasets()


def test_generated_texts_are_the_same_at_each_call_and_rarely_alike() -> None:
    data = open_dataset("generated_texts")
    texts = list(data.items())
    assert texts == list(data.items())
    assert (len(texts), data.path) == (5000, None)
    assert len(set(texts)) > 4000
    assert all(text.endswith(".") for text in texts)


def test_a_generated_trace_is_in_order_and_has_the_rate_that_it_says() -> None:
    requests = list(open_dataset("generated_trace").items())
    times = [request.at for request in requests]
    assert times == sorted(times)
    assert times[0] == 0.0
    assert len(requests) / times[-1] == pytest.approx(5.0, rel=0.1)
    assert all(request.prompt_tokens > 0 < request.output_tokens for request in requests)
    prompts = sorted(request.prompt_tokens for request in requests)
    assert prompts[len(prompts) // 2] == pytest.approx(900, rel=0.05)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_files_hold_what_their_publishers_say(name: str) -> None:
    folder = Path(os.environ.get(DATA_DIR, ""))
    file, count = PUBLISHED[name]
    if not os.environ.get(DATA_DIR) or not (folder / file).is_file():
        pytest.skip(f"{file} is not here: name its folder by {DATA_DIR}")
    items = list(open_dataset(name).items())
    assert len(items) == count
    if name != "scifact_texts":
        assert [item.at for item in items] == sorted(item.at for item in items)
