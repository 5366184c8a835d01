"""Byte-level byte pairs, learnt from generated text and the project's own documentation."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

from tools.nano.layout import SPECIAL
from tools.nano.sentences import fact
from tools.nano.words import pieces

__all__ = ["VOCABULARY", "Encoder", "texts", "train"]

VOCABULARY = 4096
_SPLIT = r" ?[A-Za-z]+| ?\[[0-9]\]| ?[0-9]| ?[^\sA-Za-z0-9]|\s+"  # as `words.pieces`
_FACTS = 60_000
_TITLES = 0.25  # so that a word at the head of a sentence is a token as it is inside


def train(docs: Path, seed: int = 1, facts: int = _FACTS) -> Any:
    """A tokenizer; the same for the same documentation, seed and number of facts."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(docs, seed, facts), trainer)
    return tokenizer


def _texts(docs: Path, seed: int, facts: int) -> Iterator[str]:
    rng = Random(seed)
    for _ in range(facts):
        made = fact(rng)
        yield f" {made.text} [{rng.randrange(1, 9)}]"
        yield f" {made.questions[0]}"
        if rng.random() < _TITLES:
            yield f" {made.text.title()}"
    for file in sorted(docs.rglob("*.md")):
        yield from (f" {line.strip()}" for line in file.read_text(encoding="utf-8").splitlines())


def texts(tokenizer: Any) -> list[str]:
    """What each token stands for, in the order of their ids."""
    return [tokenizer.decode([i], skip_special_tokens=False) for i in range(tokenizer.get_vocab_size())]


class Encoder:
    """Ids of a text, piece by piece: each piece is merged once and remembered."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.size: int = tokenizer.get_vocab_size()
        self.piece = lru_cache(maxsize=200_000)(self._encode)

    def _encode(self, piece: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(piece, add_special_tokens=False).ids)

    def __call__(self, text: str) -> list[int]:
        """The ids of text without special tokens, those of the tokenizer itself."""
        return [i for piece in pieces(text) for i in self.piece(piece)]
