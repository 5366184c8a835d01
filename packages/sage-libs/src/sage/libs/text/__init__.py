"""Cutting text into chunks and sentences without losing a character."""

from sage.libs.text.markdown import split_markdown
from sage.libs.text.sentences import sentences
from sage.libs.text.split import Chunk, SplitOptions, split_text

__all__ = ["Chunk", "SplitOptions", "sentences", "split_markdown", "split_text"]
