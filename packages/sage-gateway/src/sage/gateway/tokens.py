"""Token ids back to text: what LangChain and OpenAI's clients send is `cl100k_base`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from sage.common.errors import UnavailableError

if TYPE_CHECKING:
    from tiktoken import Encoding

__all__ = ["TokenDecoder", "holds_token_ids"]

ENCODING: Final = "cl100k_base"
_IDS: Final = re.compile(rb'"input"\s*:\s*\[\s*(?:\[\s*)?\d')


def holds_token_ids(body: bytes) -> bool:
    """Whether an embeddings body seems to give token ids; only decides whether to load the decoder early."""
    return _IDS.search(body) is not None


class TokenDecoder:
    """Decodes `cl100k_base`, and loads its tables when it is first needed."""

    def __init__(self, source: Callable[[str], Encoding] | None = None) -> None:
        """`source` gives an encoding by name; tiktoken's own by default."""
        self._source = source
        self._encoding: Encoding | None = None

    @property
    def loaded(self) -> bool:
        """Whether the tables are in memory."""
        return self._encoding is not None

    def load(self) -> Encoding:
        """Load the tables: about a second, so not on the event loop. Raises UnavailableError without them."""
        if self._encoding is None:
            try:
                self._encoding = (self._source or _tiktoken())(ENCODING)
            except Exception as error:  # a client library's network error of any kind
                raise UnavailableError(
                    f"Token ids cannot be decoded: the table {ENCODING} is not on this machine.",
                    hint="Send strings, or set TIKTOKEN_CACHE_DIR to a folder that holds it and restart.",
                    param="input",
                ) from error
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


def _tiktoken() -> Callable[[str], Encoding]:
    import tiktoken  # its import takes longer than the start of the gateway should

    source: Callable[[str], Encoding] = tiktoken.get_encoding
    return source
