"""Texts to embed: items are strings."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sage.benchmark.datasets.port import Source, find
from sage.common.errors import ConfigError

__all__ = ["scifact_texts"]

SCIFACT: Final = Source(
    "scifact_beir/corpus.jsonl.gz", "https://github.com/allenai/scifact (BEIR layout)", "generated_texts"
)


@dataclass(frozen=True, slots=True)
class _SciFact:
    """Titles and abstracts of 5,183 papers, as BEIR joins them."""

    path: Path
    name: str = "scifact_texts"
    licence: str = "CC-BY-4.0, ODC-By-1.0"

    def items(self) -> Iterator[str]:
        """One text per document: title, a space, abstract. Raises ConfigError with file and line."""
        with gzip.open(self.path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    entry = json.loads(line)
                    yield f"{entry['title']} {entry['text']}".strip()
                except (KeyError, TypeError, ValueError) as error:
                    raise ConfigError(f"{self.path}:{number} is no document of BEIR: {error}.") from error


def scifact_texts(data_dir: Path | None) -> _SciFact:
    """SciFact's corpus."""
    return _SciFact(find(SCIFACT, data_dir))
