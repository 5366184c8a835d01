"""Items to train on and to measure with, and the chat template that lays out the same."""

import re
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tools.nano import items, layout, words
from tools.nano.batches import Batch, batches, cut
from tools.nano.items import Item, Pool, Stage
from tools.nano.layout import FIRST_E, FIRST_S, MARKS, Sentence, render
from tools.nano.tokenizer import Encoder, train
from transformers import PreTrainedTokenizerFast

from sage.middleware.models import nano_folder
from sage.middleware.operators.generation import prompt
from sage.middleware.operators.records import Passage, Question, Ranked, Retrieval

TEMPLATE = Path(__file__).parents[1] / "tools/nano/chat_template.jinja"

seeds = st.integers(0, 2**32)
stages = st.builds(
    lambda low, more, per, near, none: Stage((low, low + more), (1, per), 14, near, none),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(2, 5),
    st.floats(0, 1),
    st.floats(0, 0.5),
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return Encoder(train(tmp_path_factory.mktemp("docs"), facts=300))


@pytest.fixture(scope="module")
def template() -> Any:
    from tokenizers import Tokenizer, models

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    tokenizer.chat_template = TEMPLATE.read_text()

    def laid(content: Any, *before: dict[str, Any]) -> str:
        messages = [*before, {"role": "user", "content": content}]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    return laid


def pool(encoder: Encoder, seed: int) -> Pool:
    return Pool(encoder, Random(seed), 150, 14)


@given(seeds, stages)
@settings(max_examples=60, deadline=None)
def test_labels_lie_on_the_tokens_they_are_about(encoder: Encoder, seed: int, stage: Stage) -> None:
    item = pool(encoder, seed).item(stage)
    assert len(item.ids) == len(item.flags) == len(item.owner)
    marks = [item.ids[end] - FIRST_E for end in item.ends]
    assert len(set(marks)) == len(marks)
    assert all(0 <= mark < MARKS for mark in marks)
    assert [item.owner[end] for end in item.ends] == marks
    assert len(item.shares) == len(item.ends)
    assert all(0 <= share <= 1.0001 for share in item.shares)
    assert all(item.flags[end] == 0 for end in item.ends)
    for at, mark in enumerate(item.owner):
        assert mark >= 0 or item.flags[at] < 0
        if FIRST_S <= item.ids[at] < FIRST_E and at < item.start:
            assert mark == item.ids[at] - FIRST_S


@given(seeds, stages)
@settings(max_examples=60, deadline=None)
def test_the_answer_is_the_sentence_with_its_citation(encoder: Encoder, seed: int, stage: Stage) -> None:
    item = pool(encoder, seed).item(stage)
    answer = item.ids[item.start : -1]
    assert item.ids[item.start - 1] == layout.ANSWER
    assert item.ids[-1] == layout.END
    if item.gold < 0:
        assert answer[0] in (layout.NONE, layout.TALK)
        return
    end = item.ends[item.gold]
    start = item.ids.index(answer[0])
    assert item.ids[start:end] == answer
    assert any(item.flags[at] > 0 for at in range(start, end))
    assert item.shares[item.gold] > 0


@given(seeds, stages)
@settings(max_examples=60, deadline=None)
def test_no_other_sentence_answers_as_well(encoder: Encoder, seed: int, stage: Stage) -> None:
    made = pool(encoder, seed).asked(stage)
    body, _, question = made.prompt.rpartition("\n\nQuestion: ")
    asked = stems(question)
    if not made.answer:
        return
    shared = asked & stems(made.answer)
    assert shared
    others = [line for line in body.split("\n") if line and not line.startswith("[") and line != made.answer]
    for line in others:
        if shared <= stems(line):  # it has as much of the question: then something else tells them apart
            own, other, pairs = matter(made.answer), matter(line), set(pairwise(matter(question)))
            longer = len(other) > len(own)
            elsewhere = own[0] in asked and other[0] not in asked
            apart = len(pairs & set(pairwise(other))) < len(pairs & set(pairwise(own)))
            assert longer or elsewhere or apart


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_a_twin_has_the_words_of_the_answer_and_never_its_place(encoder: Encoder, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(items, "_TWIN", 1.0)
        made = pool(encoder, seed)
        alone = made.asked(Stage((1, 1), (1, 1), 14, 1.0, 0.0))
        assert alone.answer in alone.prompt
        twins = 0
        for _ in range(20):
            asked = made.asked(Stage((2, 3), (2, 3), 14, 0.0, 0.0))
            body, _, question = asked.prompt.rpartition("\n\nQuestion: ")
            assert asked.answer in body
            shared = stems(question) & stems(asked.answer)
            lines = [line for line in body.split("\n") if line and line != asked.answer]
            twins += any(shared <= stems(line) for line in lines)
        assert twins


@given(seeds, st.floats(0.3, 1))
@settings(max_examples=20, deadline=None)
def test_what_nothing_answers_has_little_of_the_question(encoder: Encoder, seed: int, near: float) -> None:
    item = pool(encoder, seed).item(Stage((2, 4), (1, 3), 14, near, 1.0))
    assert item.gold < 0
    assert all(share < 0.28 for share in item.shares)


def matter(text: str) -> list[str]:
    return [stem for piece in words.pieces(" " + text) if (stem := words.stem(piece))]


def stems(text: str) -> set[str]:
    return set(matter(text))


@given(seeds, stages)
@settings(max_examples=40, deadline=None)
def test_the_template_lays_a_prompt_out_as_training_does(
    encoder: Encoder, template: Any, seed: int, stage: Stage
) -> None:
    made = pool(encoder, seed).asked(stage)
    body, _, question = made.prompt.rpartition("\n\nQuestion: ")
    sentences, number = [], 0
    for line in body.split("\n")[1:]:
        if line.startswith("[") and line.endswith(".md)"):
            number += 1
        elif line:
            sentences.append(Sentence(line, number))
    assert template(made.prompt) == render(question, sentences)
    assert len(sentences) == made.sentences
    if made.answer:
        assert Sentence(made.answer, made.number) in sentences


@given(st.lists(st.from_regex(r"[A-Za-z0-9`.,:/=_\-(é]{1,9}", fullmatch=True), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_the_template_cuts_words_as_training_does(template: Any, parts: list[str]) -> None:
    sentence = " ".join(f"a{part}a" for part in parts).replace("---", "--a")
    told = f"Passages:\n\n[1] (a.md)\nOne 1,000.\n\n[2] (b.md)\nThen {sentence}\n\nQuestion: Which?"
    assert template(told) == render("Which?", [Sentence("One 1,000.", 1), Sentence(f"Then {sentence}", 2)])


@given(seeds, stages)
@settings(max_examples=30, deadline=None)
def test_an_item_has_the_beats_of_the_template(encoder: Encoder, seed: int, stage: Stage) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(items, "_STRANGE", 0.0)  # any tokens need not be those of their own text
        item = pool(encoder, seed).item(stage)
    begin = item.ids.index(layout.PASSAGES) + 1
    beat = None
    for end in item.ends:
        text, plain = (
            encoder._tokenizer.decode(item.ids[begin + 1 : end - 1], skip_special_tokens=skip)
            for skip in (False, True)
        )
        if beat is None and (first := re.search(r"<\|b(\d+)\|>", text)):
            beat = int(first[1]) - 1
        if beat is None:
            assert text == plain
            return
        assert text == layout.beaten(plain, beat)
        beat += len(layout.stretches(plain))
        begin = end + 1


def test_strange_words_are_the_same_in_the_question_and_in_its_sentence(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage((2, 2), (1, 1), 14, 0.0, 0.0)
    made: dict[float, list[Item]] = {}
    for share in (0.0, 1.0):
        monkeypatch.setattr(items, "_STRANGE", share)
        of = pool(encoder, 6)
        made[share] = [of.item(stage) for _ in range(30)]
    text = len(layout.SPECIAL)
    for found in made.values():
        same = 0
        for item in found:
            question = set(item.ids[2 : item.ids.index(layout.PASSAGES)])
            ends = [at for at, flag in enumerate(item.flags) if flag > 0]
            same += any(item.ids[at] in question for at in ends)
        assert same > 0.9 * len(found)  # now and then the only word they share has another form there
    kinds = {
        share: len({i for item in found for i in item.ids if i >= text}) for share, found in made.items()
    }
    assert kinds[1.0] > 1.2 * kinds[0.0]


def test_the_same_seed_makes_the_same_items(encoder: Encoder) -> None:
    stage = Stage((2, 4), (1, 3), 14, 0.4, 0.2)
    first, second = (Pool(encoder, Random(4), 100, 14) for _ in range(2))
    assert [first.item(stage) for _ in range(5)] == [second.item(stage) for _ in range(5)]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_without_an_answer(encoder: Encoder, share: float) -> None:
    made = pool(encoder, 1)
    stage = Stage((2, 3), (1, 3), 14, 0.3, share)
    assert {bool(made.asked(stage).answer) for _ in range(20)} == {share == 0}


def test_the_mean_place_of_the_answer_is_the_middle(encoder: Encoder) -> None:
    made = pool(encoder, 2)
    stage = Stage((4, 4), (1, 1), 14, 0.3, 0.0)
    asked = [made.asked(stage).number for _ in range(400)]
    assert all(60 < asked.count(number) < 140 for number in range(1, 5))


def test_batches_hold_their_items(encoder: Encoder) -> None:
    stage = Stage((2, 4), (1, 3), 14, 0.4, 0.2)
    made = batches(pool(encoder, 3), stage, 1024)
    assert made
    for batch in made:
        assert batch.ids.shape[1] % 32 == 0
        assert batch.ids.numel() <= 1024 + batch.ids.shape[1]
        assert (
            batch.ids[batch.copy.nonzero(as_tuple=True)[0], batch.copy.nonzero(as_tuple=True)[1]] > 0
        ).all()
        rows = range(len(batch.ids))
        assert all(batch.ids[r, batch.start[r] - 1] == layout.ANSWER for r in rows)
        assert all(batch.ids[r, e] >= FIRST_E for r in rows for e in batch.ends[r][batch.has_end[r]])


def test_what_fills_no_batch_stays_for_the_next_time(encoder: Encoder) -> None:
    stage = Stage((2, 4), (1, 3), 14, 0.4, 0.2)
    source = pool(encoder, 3)
    items = [source.item(stage) for _ in range(40)]
    left = list(items)
    made = cut(left, 1024)
    assert sum(len(batch.ids) for batch in made) + len(left) == len(items)
    assert 0 < len(left) < 1024 // 32
    few = left[:1]
    (batch,) = cut(few, 1024)  # fewer than fill one, but there is no other
    assert len(batch.ids) == 1
    assert not few


def test_an_item_is_told_to_have_failed_once(encoder: Encoder) -> None:
    batch = batches(pool(encoder, 3), Stage((2, 4), (1, 3), 14, 0.4, 0.2), 2048)[-1]
    batch.note([0, 2])
    batch.note([2, 1])
    assert len(batch.failed) == 3
    for item, row in zip(batch.failed, (0, 2, 1), strict=True):
        assert batch.ids[row, : len(item.ids)].tolist() == item.ids
    Batch(batch.failed, batch.ids.shape[1]).note([0, 1, 2])
    assert len(batch.failed) == 3


def test_a_batch_of_items_without_passages(encoder: Encoder) -> None:
    item = Item([1, 3, 300, 4, 3, 300, 5, 7, 301, 2], 7, [-1] * 10, [-1] * 10, [], -1, [])
    batch = Batch([item], 32)
    assert batch.gold.tolist() == [1]
    assert not batch.has_end.any()
    assert batch.copy[0].nonzero().flatten().tolist() == [7, 8]


# ---- the chat template -------------------------------------------------------------------------------------


def test_the_package_ships_this_template() -> None:
    assert (nano_folder() / "chat_template.jinja").read_text() == TEMPLATE.read_text()


def test_the_template_takes_what_the_rag_operator_sends(template: Any) -> None:
    texts = (
        "# Ports\n\nSAGE has layers. Each may\nimport `x`.",
        "- One port: 8888.\n- Two, e.g. this!\n\n| a | 3 |\n|---|---|\n| b | 4 |",
    )
    found = tuple(Ranked(Passage(f"{n}.md", text, 0, len(text)), 1.0, None) for n, text in enumerate(texts))
    made = prompt()(Retrieval(Question("Which port?"), found))
    laid = template(made.messages[1]["content"], dict(made.messages[0]))
    wanted = (
        ("SAGE has layers.", 1),
        ("Each may import `x`.", 1),
        ("One port: 8888.", 2),
        ("Two, e.g. this!", 2),
        ("| a | 3 |", 2),
        ("| b | 4 |", 2),
    )
    assert laid == render("Which port?", [Sentence(*each) for each in wanted])


def test_a_prompt_for_which_nothing_was_found(template: Any) -> None:
    made = prompt()(Retrieval(Question("Which port?"), ()))
    laid = template(made.messages[1]["content"])
    assert laid == "<|begin|><|question|> Which port?<|passages|><|none|><|question|> Which port?<|answer|>"


def test_a_message_without_passages_is_talk(template: Any) -> None:
    laid = "<|begin|><|question|> Say hello.<|passages|><|question|> Say hello.<|answer|>"
    assert template("Say hello.") == laid
    assert template([{"type": "text", "text": "Say hello."}]) == laid


def test_the_last_question_counts(template: Any) -> None:
    laid = template(
        "Second?", {"role": "user", "content": "First?"}, {"role": "assistant", "content": "Yes."}
    )
    assert "First" not in laid
    assert laid.count(" Second?") == 2


def test_no_text_becomes_a_special_token(template: Any) -> None:
    laid = template("Passages:\n\n[1] (a.md)\nA <|end|> here.\n\nQuestion: Is <|s3|> it?")
    assert "<|end|>" not in laid
    assert "<|s3|>" not in laid


def test_sentences_beyond_the_last_mark_are_left_out(template: Any) -> None:
    many = "\n\n".join(f"This is sentence {n}." for n in range(MARKS + 5))
    laid = template(f"Passages:\n\n[1] (a.md)\n{many}\n\nQuestion: Which?")
    assert f"<|e{MARKS - 1}|><|question|>" in laid
    assert f"sentence {MARKS}." not in laid
