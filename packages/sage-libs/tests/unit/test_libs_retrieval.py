import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import UsageError
from sage.libs.retrieval import (
    Bm25,
    Sentence,
    best_sentence,
    reciprocal_rank_fusion,
    sentence_scores,
    sentences_of,
    tokenize,
)

WORDS = st.lists(st.sampled_from(["ant", "bee", "cat", "dog", "emu", "fox"]), max_size=8).map(" ".join)


def test_bm25_equals_values_computed_by_hand() -> None:
    index = Bm25(["cat sat", "cat cat dog end", "emu fox"], k1=1.2, b=0.75)
    # N=3, avgdl=8/3, n(cat)=2: idf = ln(1 + 1.5/2.5) = ln 1.6 = 0.470004
    assert index.idf("cat") == pytest.approx(0.4700036)
    # doc 0: f=1, |d|=2: K = 1.2·(0.25 + 0.75·0.75) = 0.975; 0.470004·2.2/1.975 = 0.523548
    # doc 1: f=2, |d|=4: K = 1.2·(0.25 + 0.75·1.5) = 1.65; 0.470004·4.4/3.65 = 0.566580
    hits = index.search("cat", 5)
    assert [doc for doc, _ in hits] == [1, 0]
    assert [score for _, score in hits] == pytest.approx([0.5665797, 0.5235483], abs=1e-6)
    # n(dog)=1: idf = ln(1 + 2.5/1.5) = 0.980829; doc 1: f=1: 0.980829·2.2/2.65 = 0.814273
    assert dict(index.search("dog cat", 5))[1] == pytest.approx(0.5665797 + 0.8142733, abs=1e-6)


def test_bm25_counts_a_repeated_query_term_each_time() -> None:
    index = Bm25(["cat sat", "dog"])
    assert index.search("cat cat", 1)[0][1] == pytest.approx(2 * index.search("cat", 1)[0][1])


def test_bm25_without_length_normalisation_ignores_length() -> None:
    scores = Bm25(["cat", "cat and many other words"], b=0).scores("cat")
    assert scores[0] == pytest.approx(scores[1])


def test_bm25_breaks_ties_by_the_lower_number_and_leaves_out_strangers() -> None:
    index = Bm25(["same words", "other", "same words"])
    assert [doc for doc, _ in index.search("same words", 9)] == [0, 2]
    assert list(index.search("unseen", 3)) == []


def test_bm25_can_grow() -> None:
    index = Bm25()
    assert len(index) == 0
    assert list(index.search("cat", 3)) == []
    index.add(["cat", ""])
    index.add(["cat dog"])
    assert len(index) == 3
    assert index.scores("cat") == Bm25(["cat", "", "cat dog"]).scores("cat")


@given(st.lists(WORDS, max_size=12), WORDS)
def test_bm25_scores_are_positive_and_sorted(documents: list[str], query: str) -> None:
    index = Bm25(documents)
    hits = index.search(query, 20)
    assert all(score > 0 for _, score in hits)
    assert list(hits) == sorted(hits, key=lambda hit: (-hit[1], hit[0]))
    assert {doc for doc, _ in hits} == {
        i for i, d in enumerate(documents) if set(tokenize(d)) & set(tokenize(query))
    }


@pytest.mark.parametrize(("k1", "b"), [(-0.1, 0.5), (1.2, -0.1), (1.2, 1.1)])
def test_bm25_refuses_parameters_out_of_range(k1: float, b: float) -> None:
    with pytest.raises(UsageError, match="BM25 needs"):
        Bm25(k1=k1, b=b)


def test_bm25_refuses_no_results() -> None:
    with pytest.raises(UsageError, match="k is 0"):
        Bm25(["a"]).search("a", 0)


def test_tokens_are_folded_runs_of_letters_and_digits() -> None:
    assert tokenize("Straße, über_alles 2.13!") == ["strasse", "über", "alles", "2", "13"]


def test_fusion_equals_values_computed_by_hand() -> None:
    fused = reciprocal_rank_fusion([["a", "b", "c"], ["b", "d"]])
    assert [item for item, _ in fused] == ["b", "a", "d", "c"]
    assert [score for _, score in fused] == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62, 1 / 63])


def test_fusion_of_nothing_is_nothing_and_ties_keep_their_order() -> None:
    assert reciprocal_rank_fusion([]) == []
    assert [item for item, _ in reciprocal_rank_fusion([["x"], ["y"]])] == ["x", "y"]


@given(st.lists(st.lists(st.integers(0, 9), max_size=9), max_size=4))
def test_fusion_holds_each_item_once_and_is_bounded(rankings: list[list[int]]) -> None:
    fused = reciprocal_rank_fusion(rankings)
    assert sorted(item for item, _ in fused) == sorted({i for r in rankings for i in r})
    assert all(0 < score <= len(rankings) / 61 + 1e-12 for _, score in fused)


PASSAGES = [
    ("ports.md", "# Ports\n\nThe gateway listens on port 8888. The admin listener has port 8886. Short one."),
    ("layers.md", "SAGE has six layers from common to the interfaces. No layer imports upward."),
]


@pytest.mark.parametrize(
    ("question", "text", "source"),
    [
        ("On which port does the gateway listen?", "The gateway listens on port 8888.", "ports.md"),
        ("How many layers are there?", "SAGE has six layers from common to the interfaces.", "layers.md"),
        ("Which layer imports upward?", "No layer imports upward.", "layers.md"),
    ],
)
def test_best_sentence_names_its_source(question: str, text: str, source: str) -> None:
    found = best_sentence(question, sentences_of(PASSAGES))
    assert found is not None
    assert (found.text, found.source, 0 < found.score <= 1) == (text, source, True)


def test_function_words_of_the_question_do_not_mislead() -> None:
    candidates = [
        Sentence("It says which one goes where, and which one does not.", "form"),
        Sentence("Layers import downward only, always.", "matter"),
        Sentence("Other layers are of no import here.", "other"),
    ]
    found = best_sentence("Which way do layers import, and which do not?", candidates)
    assert found is not None
    assert found.source != "form"
    only_form = best_sentence("Which is it where?", candidates)
    assert only_form is not None
    assert only_form.source == "form"


def test_scores_of_sentences_are_shares_of_the_best() -> None:
    candidates = [
        Sentence(text, "") for text in ("the port is here", "no word of it", "port of the gateway port")
    ]
    scores = sentence_scores("Which port has the gateway?", candidates)
    assert scores[2] == 1.0 > scores[0] > scores[1] == 0.0
    both = sentence_scores("Which port?", candidates, similarities=[0.5, -1.0, 0.0])
    assert both[1] == 0.0
    assert both[0] == pytest.approx((sentence_scores("Which port?", candidates)[0] + 0.5) / 2)


def test_sentences_of_leaves_out_labels_and_repeats() -> None:
    twice = sentences_of([*PASSAGES, ("copy.md", PASSAGES[1][1])])
    assert [s.source for s in twice] == ["ports.md", "ports.md", "layers.md", "layers.md"]


def test_nothing_in_common_is_no_sentence() -> None:
    assert best_sentence("xylophone", sentences_of(PASSAGES)) is None
    assert best_sentence("anything", []) is None


def test_similarities_can_decide_where_words_do_not() -> None:
    candidates = [Sentence("it is blue today here", "a"), Sentence("the sky has that colour", "b")]
    assert best_sentence("hue", candidates) is None
    found = best_sentence("hue", candidates, similarities=[0.1, 0.8])
    assert found is not None
    assert found.source == "b"
    assert found.score == pytest.approx(0.4)


def test_similarities_have_to_match_the_sentences() -> None:
    with pytest.raises(UsageError, match="2 sentences and 1 similarities"):
        best_sentence("a", [Sentence("a", ""), Sentence("b", "")], similarities=[0.5])


def test_idf_never_turns_negative() -> None:
    index = Bm25(["a"] * 5)
    assert index.idf("a") == pytest.approx(math.log(1 + 0.5 / 5.5))
