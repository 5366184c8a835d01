"""Whether a prompt and its answer fit an engine, for one that stops for good when they do not."""

from __future__ import annotations

import asyncio
import json
from functools import cached_property
from pathlib import Path
from typing import Any

from sage.common.errors import BadRequestError

__all__ = ["Room"]

_TEMPLATE = 256  # tokens that a chat template may add of its own
_PER_TEXT = 16  # and around each message


class Room:
    """The tokens that one request may take: the model's context, at most `cache` tokens of KV cache.

    `model` is a folder or a name on the hub. A token is at least one byte, so that short prompts are never
    tokenised; long ones are, in a thread.
    """

    def __init__(self, model: str, cache: int) -> None:
        self._model = model
        self._cache = cache
        self._limit: int | None = None

    async def max_tokens(self, texts: list[str], asked: int | None, default: int, param: str) -> int:
        """How long the answer may be: what was asked for, else `default` or what is left.

        Raises BadRequestError when the prompt, or the prompt and what was asked for, do not fit.
        """
        extra = _TEMPLATE + _PER_TEXT * len(texts)
        prompt = sum(len(text.encode()) for text in texts) + extra
        if self._limit is None:
            self._limit = await asyncio.to_thread(self._read_limit)
        limit = self._limit
        if prompt + (asked or default) > limit:
            prompt = await asyncio.to_thread(self._count, texts) + extra
        left = limit - prompt
        if left < 1:
            raise BadRequestError(
                f"The prompt has about {prompt} tokens; this model takes {limit}, its answer included.",
                param=param,
            )
        if asked is not None and asked > left:
            raise BadRequestError(
                f"max_tokens {asked} and a prompt of about {prompt} tokens do not fit into {limit}.",
                hint=f"Ask for at most {left}.",
                param="max_tokens",
            )
        return asked or min(default, left)

    def _read_limit(self) -> int:
        """The smaller of the model's context and the cache."""
        file = self._file("config.json")
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file else {}
        context = config.get("max_position_embeddings") or (config.get("text_config") or {}).get(
            "max_position_embeddings"
        )
        return min(self._cache, context) if isinstance(context, int) else self._cache

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        file = self._file("tokenizer.json")
        return None if file is None else Tokenizer.from_file(str(file))

    def _count(self, texts: list[str]) -> int:
        """Exact but for what the chat template adds; two bytes per token if there is no fast tokenizer."""
        tokenizer = self._tokenizer
        if tokenizer is None:
            return sum(len(text.encode()) for text in texts) // 2
        return sum(len(encoding.ids) for encoding in tokenizer.encode_batch(texts))

    def _file(self, name: str) -> Path | None:
        if Path(self._model).is_dir():
            file = Path(self._model) / name
            return file if file.is_file() else None
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self._model, name)
        return Path(found) if isinstance(found, str) else None
