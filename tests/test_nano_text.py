"""The generated text of the small model, and its tokens."""

import re
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tools.nano import words
from tools.nano.layout import BEATS, MARKS, SPECIAL, Sentence, beaten, render, stretches
from tools.nano.sentences import fact
from tools.nano.tokenizer import VOCABULARY, Encoder, train

seeds = st.integers(0, 2**32)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    docs = tmp_path_factory.mktemp("docs")
    (docs / "a.md").write_text("The gateway listens on port 8888 always.\n")
    return train(docs, facts=400)


@given(st.text())
def test_pieces_are_the_text(text: str) -> None:
    assert "".join(words.pieces(text)) == text


def test_forms_of_a_word_have_one_stem() -> None:
    for forms in (("Listens", " listening", "listened"), ("cache", " caches"), ("job", "jobs")):
        assert len({words.stem(form) for form in forms}) == 1
    assert words.stem(" queue") != words.stem(" quota")


def test_words_of_form_and_marks_have_no_stem() -> None:
    assert not any(words.stem(piece) for piece in (" the", " Which", "?", " `", " ", ""))


@given(seeds, st.integers(5, 40))
def test_a_fact_is_one_line_with_questions(seed: int, most: int) -> None:
    made = fact(Random(seed), most)
    assert made.text == " ".join(made.text.split())
    assert len(made.questions) == 2
    assert all(question.strip() and "{" not in question for question in made.questions)
    assert "<|" not in made.text


def test_most_questions_share_a_word_with_their_sentence() -> None:
    rng = Random(3)
    facts = [fact(rng) for _ in range(500)]
    stems = [{words.stem(p) for p in words.pieces(f.text)} - {""} for f in facts]
    hits = sum(
        bool(have & {words.stem(p) for p in words.pieces(q)})
        for f, have in zip(facts, stems, strict=True)
        for q in f.questions
    )
    assert hits > 0.95 * 1000


def test_blocks_of_code_come_among_long_sentences_alone() -> None:
    rng = Random(5)
    long = [fact(rng, 36) for _ in range(600)]
    blocks = [made for made in long if made.text.startswith("```")]
    assert 0.02 < len(blocks) / len(long) < 0.09
    for made in blocks:
        assert len(made.text.split()) >= 7
        assert all(question.strip() for question in made.questions)
    assert not any(fact(rng, 28).text.startswith("```") for _ in range(300))


def test_the_same_seed_makes_the_same_facts() -> None:
    assert [fact(Random(5)) for _ in range(3)] == [fact(Random(5)) for _ in range(3)]
    assert fact(Random(5)) != fact(Random(6))


@given(st.text().filter(lambda text: "<|" not in text))
@settings(max_examples=300)
def test_pieces_are_encoded_as_the_tokenizer_encodes_the_text(tokenizer: Any, text: str) -> None:
    assert Encoder(tokenizer)(text) == tokenizer.encode(text, add_special_tokens=False).ids


@given(st.text())
def test_tokens_are_the_text_again(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(Encoder(tokenizer)(text)) == text


def test_special_tokens_come_first_and_are_whole(tokenizer: Any) -> None:
    assert [tokenizer.token_to_id(name) for name in SPECIAL] == list(range(len(SPECIAL)))
    assert tokenizer.get_vocab_size() <= VOCABULARY
    ids = tokenizer.encode(render("Why?", [Sentence("So.", 2)], [7])).ids
    assert ids.count(SPECIAL.index("<|s7|>")) == 1
    assert ids.count(SPECIAL.index("<|e7|>")) == 1


def test_a_citation_is_one_token(tokenizer: Any) -> None:
    assert all(len(Encoder(tokenizer)(f" [{number}]")) == 1 for number in range(1, 9))


def test_the_same_documents_give_the_same_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("Some words.\n")
    assert train(tmp_path, facts=50).to_str() == train(tmp_path, facts=50).to_str()


@given(st.lists(st.from_regex(r"[a-z]{1,5}[`.]?", fullmatch=True), max_size=80))
def test_each_word_but_the_first_has_its_beat(parts: list[str]) -> None:
    made = beaten(" ".join(parts), 190)
    assert re.sub(r"<\|b\d+\|>", "", made).split() == parts
    assert [int(n) for n in re.findall(r"<\|b(\d+)\|>", made)] == [
        (190 + at) % BEATS for at in range(1, len(parts))
    ]


@given(st.text())
def test_in_a_stretch_nothing_comes_twice_and_digits_only_begin_it(text: str) -> None:
    found = stretches(text)
    assert "".join(found) == "".join(f" {word}" for word in text.split())
    for part in found:
        inside = re.findall(r"[A-Za-z]+|\S", part)
        assert inside
        assert len(set(inside)) == len(inside)
        assert not set("0123456789") & set(inside[1:])


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("port.", [" port."]),
        ("8888", [" 8", "8", "8", "8"]),
        ("26.0.1", [" 2", "6.", "0.", "1"]),
        ("`--a`", [" `-", "-a`"]),
        ("docs.to=docs.a", [" docs.to=", "docs.a"]),
        ("x2", [" x", "2"]),
        ("[2]", [" [", "2]"]),
        ("Éé", [" Éé"]),
    ],
)
def test_a_word_is_cut_where_its_copy_could_not_know_its_place(word: str, parts: list[str]) -> None:
    assert stretches(word) == parts


def test_beats_inside_words_are_counted_too() -> None:
    text = render("Which?", [Sentence("Port 80 a.", 1), Sentence("Two.", 2), Sentence("Now --b", 2)])
    assert "<|s0|> Port<|b1|> 8<|b2|>0<|b3|> a. [1]<|e0|><|s1|> Two. [2]<|e1|>" in text
    assert "<|s2|> Now<|b6|> -<|b7|>-b [2]<|e2|>" in text


def test_beats_are_counted_through_all_sentences() -> None:
    text = render("Which?", [Sentence("One two.", 1), Sentence("Three four.", 2)])
    assert "<|s0|> One<|b1|> two. [1]<|e0|><|s1|> Three<|b3|> four. [2]<|e1|>" in text


def test_written_words_are_those_of_the_documentation() -> None:
    assert {"gateway", "checkpoints"} <= set(words.WRITTEN)
    assert all(word == word.strip() and word and "[" not in word for word in words.WRITTEN)


@given(seeds)
def test_scrambled_words_are_one_word(seed: int) -> None:
    word = words.scrambled(Random(seed))
    assert word
    assert not set(word) & set(" []{}")


def test_the_question_stands_before_and_after_the_sentences() -> None:
    text = render("Which?", [Sentence("One.", 1), Sentence("Two.", 2)])
    assert text == (
        "<|begin|><|question|> Which?<|passages|><|s0|> One. [1]<|e0|><|s1|> Two. [2]<|e1|>"
        "<|question|> Which?<|answer|>"
    )
    assert MARKS >= 64
