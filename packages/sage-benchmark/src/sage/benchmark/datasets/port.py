"""The dataset port: what a suite asks of data, how it is found, and what is said when it is not there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, Protocol, cast

from sage.common.errors import NotFoundError

__all__ = [
    "DATA_DIR",
    "Dataset",
    "Source",
    "TraceRequest",
    "available_datasets",
    "find",
    "open_dataset",
]

DATA_DIR: Final = "SAGE_DATA_DIR"
GROUP: Final = "sage.bench.dataset"
_MODULE: Final = "sage.benchmark.datasets"

_BUILT_IN: Final = {
    "azure_conv_2023": "traces:azure_conversation",
    "generated_texts": "generated:texts",
    "generated_trace": "generated:trace",
    "mooncake_conversation": "traces:mooncake_conversation",
    "scifact_texts": "texts:scifact_texts",
}


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a recorded trace. `at` in seconds from the first one.

    `blocks` are ids of the prompt's parts, equal where prompts share a prefix; empty = not recorded.
    """

    at: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


class Dataset(Protocol):
    """A named collection of items. What an item is, the dataset's factory says."""

    @property
    def name(self) -> str:
        """The name by which it is opened and reported."""
        ...

    @property
    def licence(self) -> str:
        """Under which terms it may be used, as its publisher says."""
        ...

    @property
    def path(self) -> Path | None:
        """Where it lies; None for one that is generated."""
        ...

    def items(self) -> Iterator[Any]:
        """All items in their own order, from the start at each call."""
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """Where published data comes from. `file` is its place below the data folder."""

    file: str
    origin: str
    instead: str  # the generator that covers the same code paths


def available_datasets() -> list[str]:
    """Names that `open_dataset` knows, sorted."""
    return sorted({*_BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


def open_dataset(name: str, data_dir: Path | None = None) -> Dataset:
    """The dataset called `name`: one of ours, else one from the entry points `sage.bench.dataset`.

    Published data is looked for below `data_dir`, else below `SAGE_DATA_DIR`. A factory is called with that
    folder, or None. Raises NotFoundError for a name that is not known, and for data that is not there: then
    it says where to get it and which generator would do instead.
    """
    if data_dir is None and os.environ.get(DATA_DIR):
        data_dir = Path(os.environ[DATA_DIR]).expanduser()
    target = _BUILT_IN.get(name)
    if target is not None:
        module, _, attribute = target.partition(":")
        factory = getattr(import_module(f"{_MODULE}.{module}"), attribute)
        return cast(Callable[[Path | None], Dataset], factory)(data_dir)
    for point in entry_points(group=GROUP, name=name):
        return cast(Callable[[Path | None], Dataset], point.load())(data_dir)
    raise NotFoundError(f"There is no dataset named {name!r}; there are {', '.join(available_datasets())}.")


def find(source: Source, data_dir: Path | None) -> Path:
    """The file of published data. Raises NotFoundError with where to get it."""
    where = f"Name your data folder by --data-dir or {DATA_DIR}"
    get = f"get the file from {source.origin} and put it there as {source.file}"
    hint = f"{where}, {get}; or use {source.instead}, which is generated."
    if data_dir is None:
        raise NotFoundError(f"{source.file} is published data, and no data folder is named.", hint=hint)
    path = data_dir / source.file
    if not path.is_file():
        raise NotFoundError(f"{path} is not there.", hint=hint)
    return path
