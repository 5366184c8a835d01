"""Token ids back to text: what LangChain and OpenAI's clients send is `cl100k_base`."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sage.common.errors import UnavailableError

if TYPE_CHECKING:
    from tiktoken import Encoding

__all__ = ["TokenDecoder", "holds_token_ids", "table_file"]

ENCODING: Final = "cl100k_base"
FILE: Final = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"  # its name in tiktoken's cache
SHA256: Final = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
_IDS: Final = re.compile(rb'"input"\s*:\s*\[\s*(?:\[\s*)?\d')


def holds_token_ids(body: bytes) -> bool:
    """Whether an embeddings body seems to give token ids; only decides whether to load the decoder early."""
    return _IDS.search(body) is not None


class TokenDecoder:
    """Decodes `cl100k_base`, and loads its table when it is first needed; from disk only."""

    def __init__(self, source: Callable[[str], Encoding] | None = None) -> None:
        """`source` gives an encoding by name; that of tiktoken's cache by default."""
        self._source = source
        self._encoding: Encoding | None = None

    @property
    def loaded(self) -> bool:
        """Whether the table is in memory."""
        return self._encoding is not None

    def load(self) -> Encoding:
        """Load the table: about a second, so not on the event loop. Raises UnavailableError without it."""
        if self._encoding is None:
            self._encoding = (self._source or _from_disk)(ENCODING)
        return self._encoding

    def __call__(self, tokens: list[int]) -> str:
        """The text of `tokens`. Raises ValueError for an id outside the table."""
        encoding = self.load()
        for token in tokens:
            if not 0 <= token < encoding.n_vocab:
                raise ValueError(f"{token} is outside {ENCODING} (0 to {encoding.n_vocab - 1})")
        try:
            return str(encoding.decode(tokens))
        except KeyError as error:
            raise ValueError(f"{error} is not a token of {ENCODING}") from error


def table_file(env: Mapping[str, str]) -> Path | None:
    """Where tiktoken keeps the table, by its own rules; None when its cache is turned off."""
    usual = str(Path(tempfile.gettempdir(), "data-gym-cache"))
    folder = env.get("TIKTOKEN_CACHE_DIR", env.get("DATA_GYM_CACHE_DIR", usual))
    return Path(folder, FILE) if folder else None


def _from_disk(name: str) -> Encoding:
    """The encoding from tiktoken's cache. A request never makes tiktoken download it."""
    try:
        import tiktoken  # its import takes longer than the start of the gateway should
    except ImportError as error:
        raise UnavailableError(
            "Token ids cannot be decoded: tiktoken is not installed.",
            hint="Send strings, or install sage-gateway[tokens] (sage-stack[cpu] has it) and restart.",
            param="input",
        ) from error
    if not _is_table(table_file(os.environ)):
        raise _without_table()
    return tiktoken.get_encoding(name)


def _is_table(file: Path | None) -> bool:
    """Whether it is there and whole; tiktoken would replace a damaged one by a download."""
    try:
        return file is not None and hashlib.sha256(file.read_bytes()).hexdigest() == SHA256
    except OSError:
        return False


def _without_table() -> UnavailableError:
    return UnavailableError(
        f"Token ids cannot be decoded: the table {ENCODING} is not on this machine.",
        hint="Send strings, or fetch it once into TIKTOKEN_CACHE_DIR as docs/api.md says and restart.",
        param="input",
    )
