"""Arrivals that were recorded elsewhere: public traces, and the control plane's own.

Public ones hold times and lengths and are read where they lie, below a data folder, never copied. The
control plane's own trace holds whole jobs; see `sage.middleware.control_plane.trace`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Final, Literal, NamedTuple

import msgspec
from pydantic import Field, PositiveFloat, PositiveInt

from sage.common.errors import ConfigError, NotFoundError
from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.simulator.shapes import BLOCK_BYTES, TRUE_BYTES, Setting, Stream
from sage.middleware.control_plane.simulator.types import SimRequest
from sage.middleware.engines.port import Capability

__all__ = ["DATA_ENV", "PUBLIC", "PublicTrace", "Replay", "Row", "read_azure", "read_mooncake"]

DATA_ENV: Final = "SAGE_DATA_DIR"
_HASHED_TOKENS: Final = 512  # of one hash id in Mooncake's traces


class Row(NamedTuple):
    """One recorded request: seconds from the first, true counts of tokens, prefix block ids if known."""

    at: float
    prompt_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] = ()


class PublicTrace(NamedTuple):
    """Where a public trace lies below the data folder, how to read it, and where it comes from."""

    file: str
    read: Callable[[Path], Iterator[Row]]
    source: str


def read_azure(path: Path) -> Iterator[Row]:
    """Azure LLM inference trace 2023: `TIMESTAMP,ContextTokens,GeneratedTokens`.

    Raises ConfigError with the line that does not fit.
    """
    first: datetime | None = None
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        wanted = {"TIMESTAMP", "ContextTokens", "GeneratedTokens"}
        if missing := wanted - set(reader.fieldnames or ()):
            raise ConfigError(
                f"{path}:1: the columns {', '.join(sorted(missing))} are missing; found "
                f"{', '.join(reader.fieldnames or ['nothing'])}."
            )
        for number, row in enumerate(reader, 2):
            try:
                time = datetime.fromisoformat(row["TIMESTAMP"])
                tokens = int(row["ContextTokens"]), int(row["GeneratedTokens"])
            except (TypeError, ValueError) as error:
                raise ConfigError(f"{path}:{number}: {error}.") from None
            first = first or time
            yield Row((time - first).total_seconds(), max(1, tokens[0]), max(1, tokens[1]))


class _Mooncake(msgspec.Struct):
    timestamp: float  # milliseconds
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]


def read_mooncake(path: Path) -> Iterator[Row]:
    """Mooncake's JSONL: timestamp in ms, lengths in tokens, chained hash ids of blocks of 512 tokens.

    Raises ConfigError with the line that does not fit.
    """
    decoder = msgspec.json.Decoder(_Mooncake)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = decoder.decode(line)
            except msgspec.DecodeError as error:
                raise ConfigError(f"{path}:{number}: {error}.") from None
            output = max(1, row.output_length)
            yield Row(row.timestamp / 1000, max(1, row.input_length), output, row.hash_ids)


PUBLIC: Final[Mapping[str, PublicTrace]] = {
    "azure": PublicTrace(
        "azure_llm_2023/AzureLLMInferenceTrace_conv.csv",
        read_azure,
        "https://github.com/Azure/AzurePublicDataset",
    ),
    "mooncake": PublicTrace(
        "mooncake/conversation_trace.jsonl", read_mooncake, "https://github.com/kvcache-ai/Mooncake"
    ),
}


class Replay(Stream):
    """The arrivals and lengths of a public trace, `speed` times as fast; `load` is a factor on top.

    What a trace does not tell is drawn: the tenant, and how many bytes a gateway would have seen.
    """

    kind: Literal["replay"]
    format: Literal["azure", "mooncake"]
    file: str = Field("", description="empty = the trace's own place below the data folder")
    speed: PositiveFloat = 1.0
    limit: PositiveInt | None = Field(None, description="the first so many requests")
    max_tokens: PositiveInt | None = None

    @property
    def title(self) -> str:
        """See `Stream`."""
        return self.name or self.format

    def needs(self) -> frozenset[Capability]:
        """See `Stream`."""
        return frozenset((Capability.CHAT,))

    def path(self, data_dir: Path | None) -> Path:
        """Where the trace lies. Raises NotFoundError that says how to name the place."""
        trace = PUBLIC[self.format]
        path = Path(self.file) if self.file else data_dir / trace.file if data_dir else None
        if path is not None and path.is_file():
            return path
        looked = f"{path} does not exist" if path else "no data folder is named"
        raise NotFoundError(
            f"The trace {self.format} is not at hand: {looked}.",
            hint=f"Get it from {trace.source} and name the folder that holds {trace.file} by --data-dir or "
            f"{DATA_ENV}.",
        )

    def draw(self, setting: Setting, rng: Random) -> Iterator[SimRequest]:
        """See `Stream`."""
        step = self.step(Capability.CHAT, RequestClass.CHAT, setting, self.max_tokens)
        pace = self.speed * setting.load
        rows = PUBLIC[self.format].read(self.path(setting.data_dir))
        for number, (row, tenant) in enumerate(zip(rows, self.tenants.draw(rng), strict=False)):
            at = row.at / pace
            if at >= setting.duration or number == self.limit:
                return
            size = round(row.prompt_tokens * TRUE_BYTES)
            blocks = _blocks(row.hash_ids, size)
            made = step.job(f"{self.title}-{number}", tenant, size, blocks=blocks)
            yield self.request(at, made, row.prompt_tokens, row.output_tokens)


def _blocks(hash_ids: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Blocks of 256 bytes from the ids of blocks of 512 tokens.

    The ids are chained already, so parts numbered within an id are as unique as the id. A last id that
    covers only a part of a block names only as many parts as the text has.
    """
    parts = round(_HASHED_TOKENS * TRUE_BYTES / BLOCK_BYTES)
    names = [ident * parts + part for ident in hash_ids for part in range(parts)]
    return tuple(names[: size // BLOCK_BYTES])
