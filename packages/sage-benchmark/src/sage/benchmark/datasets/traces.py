"""Recorded traffic: items are `TraceRequest`s in order of time."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from sage.benchmark.datasets.port import Source, TraceRequest, find
from sage.common.errors import ConfigError

__all__ = ["azure_conversation", "mooncake_conversation"]

AZURE: Final = Source(
    "azure_llm_2023/AzureLLMInferenceTrace_conv.csv",
    "https://github.com/Azure/AzurePublicDataset (data/AzureLLMInferenceTrace_conv.csv)",
    "generated_trace",
)
MOONCAKE: Final = Source(
    "mooncake/conversation_trace.jsonl",
    "https://github.com/kvcache-ai/Mooncake (FAST25-release/traces/conversation_trace.jsonl)",
    "generated_trace",
)


@dataclass(frozen=True, slots=True)
class _Azure:
    """One hour of Azure's conversation service, 16 November 2023."""

    path: Path
    name: str = "azure_conv_2023"
    licence: str = "CC-BY-4.0"

    def items(self) -> Iterator[TraceRequest]:
        """Columns TIMESTAMP, ContextTokens, GeneratedTokens. Raises ConfigError with file and line."""
        first: datetime | None = None
        with self.path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.DictReader(file), start=2):
                try:
                    # Seven digits of a second are one more than `fromisoformat` takes.
                    at = datetime.fromisoformat(row["TIMESTAMP"][:26])
                    prompt, output = int(row["ContextTokens"]), int(row["GeneratedTokens"])
                except (KeyError, TypeError, ValueError) as error:
                    raise _broken(self.path, number, error) from error
                first = first or at
                yield TraceRequest((at - first).total_seconds(), prompt, output)


@dataclass(frozen=True, slots=True)
class _Mooncake:
    """Kimi's conversations, with hashes of the prompts' 512-token blocks."""

    path: Path
    name: str = "mooncake_conversation"
    licence: str = "Apache-2.0"

    def items(self) -> Iterator[TraceRequest]:
        """Lines: timestamp (ms), input_length, output_length, hash_ids. Raises ConfigError with its line."""
        first: float | None = None
        with self.path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    entry = json.loads(line)
                    at = entry["timestamp"] / 1000
                    sizes = int(entry["input_length"]), int(entry["output_length"])
                    blocks = tuple(int(block) for block in entry["hash_ids"])
                except (KeyError, TypeError, ValueError) as error:
                    raise _broken(self.path, number, error) from error
                first = at if first is None else first
                yield TraceRequest(at - first, *sizes, blocks)


def azure_conversation(data_dir: Path | None) -> _Azure:
    """Azure's 2023 conversation trace."""
    return _Azure(find(AZURE, data_dir))


def mooncake_conversation(data_dir: Path | None) -> _Mooncake:
    """Mooncake's conversation trace."""
    return _Mooncake(find(MOONCAKE, data_dir))


def _broken(path: Path, line: int, error: Exception) -> ConfigError:
    return ConfigError(f"{path}:{line} is not what this trace's format says: {type(error).__name__} {error}.")
