"""Ranking text: BM25, fusion of rankings, and the sentence that answers best."""

from sage.libs.retrieval.bm25 import Bm25, tokenize
from sage.libs.retrieval.extract import Scored, Sentence, best_sentence, sentence_scores, sentences_of
from sage.libs.retrieval.fusion import reciprocal_rank_fusion

__all__ = [
    "Bm25",
    "Scored",
    "Sentence",
    "best_sentence",
    "reciprocal_rank_fusion",
    "sentence_scores",
    "sentences_of",
    "tokenize",
]
