"""The tokenizer of the embedding server's model, for those who ask for tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from sage.common.errors import BadRequestError
from sage.middleware.engines.asks import check_model, decode

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Tokens"]


class _Tokenize(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    prompt: str
    add_special_tokens: bool | None = None


class _Detokenize(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    tokens: list[int]


_TOKENIZE = msgspec.json.Decoder(_Tokenize)
_DETOKENIZE = msgspec.json.Decoder(_Detokenize)


class Tokens:
    """A model's tokenizer with nothing cut or padded; `window`: tokens that the model reads.

    It is a copy of its own: the model's is changed for every batch. May be called from any thread.
    """

    def __init__(self, tokenizer: Tokenizer, window: int) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._window = window

    @classmethod
    def of(cls, model: Any, window: int) -> Tokens:
        """Those of a model of sentence-transformers. Raises ValueError without a fast tokenizer."""
        from tokenizers import Tokenizer

        fast = getattr(model.tokenizer, "backend_tokenizer", None)
        if fast is None:
            raise ValueError(f"its tokenizer {type(model.tokenizer).__name__} is not a fast one")
        return cls(Tokenizer.from_str(fast.to_str()), window)

    def tokenize(self, raw: bytes, served_as: str) -> bytes:
        """The answer to a tokenize body. Raises BadRequestError, ModelNotFoundError."""
        body = decode(_TOKENIZE, raw, "a tokenize request")
        check_model(body.model, served_as)
        special = body.add_special_tokens is not False
        tokens = self._tokenizer.encode(body.prompt, add_special_tokens=special).ids
        return msgspec.json.encode({"tokens": tokens, "count": len(tokens), "max_model_len": self._window})

    def detokenize(self, raw: bytes, served_as: str) -> bytes:
        """The answer to a detokenize body. Errors as of `tokenize`."""
        body = decode(_DETOKENIZE, raw, "a detokenize request")
        check_model(body.model, served_as)
        most = self._tokenizer.get_vocab_size() - 1
        for at, token in enumerate(body.tokens):
            if not 0 <= token <= most:
                raise BadRequestError(
                    f"tokens[{at}] is {token}; the ids of this model are 0 to {most}.", param=f"tokens[{at}]"
                )
        return msgspec.json.encode({"prompt": self._tokenizer.decode(body.tokens, skip_special_tokens=False)})
