"""The passages that people wrote, and the items that are made of them."""

import re
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tools.nano import items
from tools.nano.batches import Batch
from tools.nano.items import Pool, Stage
from tools.nano.layout import ANSWER, END, FIRST_E, FIRST_S, Sentence, render
from tools.nano.tokenizer import Encoder
from tools.nano.written import passages, sentences
from transformers import PreTrainedTokenizerFast

TEMPLATE = Path(__file__).parents[1] / "tools/nano/chat_template.jinja"
TOLD = (
    ("The gateway listens on port 8888.", "Every key has a limit."),
    ("A job takes a checkpoint every minute.", "Pause ends its process."),
    ("The gateway counts the tokens of each key.", "No request waits forever."),
    ("A key is kept as a digest.", "The port of an engine is free."),
)

seeds = st.integers(0, 2**32)
stages = st.builds(
    lambda count, near, copies: Stage((1, count), (1, 1), 14, near, 0.0, copies, written=True),
    st.integers(1, 4),
    st.floats(0, 1),
    st.integers(0, 3),
)


@pytest.fixture(scope="module")
def encoder(tokenizer: Any) -> Encoder:
    return Encoder(tokenizer)


def pool(encoder: Encoder, seed: int) -> Pool:
    return Pool(encoder, Random(seed), 30, 14, TOLD)


def _project(root: Path, page: str, code: str, docs: str) -> Path:
    for folder in ("benchmarks", "packages", "tools", "docs"):
        (root / folder).mkdir()
    (root / "packages/README.md").write_text(page)
    (root / "tools/a.py").write_text(code)
    (root / "docs/a.md").write_text(docs)
    return root


def test_pages_and_docstrings_are_read(tmp_path: Path) -> None:
    code = (
        '"""What the module does."""\n\n\ndef f() -> None:\n    """What f does with it."""\n    # not this\n'
    )
    root = _project(tmp_path, "# Title\n\nOne of the pages here.\n", code, "")
    both = passages(root) + passages(root, held=True)
    assert sorted(s for told in both for s in told) == [
        "One of the pages here.",
        "What f does with it.",
        "What the module does.",
    ]


def test_nothing_with_five_words_of_the_documentation_in_a_row(tmp_path: Path) -> None:
    page = "The port of it, is 80 here. No port is open there."
    for docs, left in (("All say: the port of it\nis **80**.", 1), ("The port of it.", 2)):
        root = tmp_path / str(left)
        root.mkdir()
        found = passages(_project(root, page, "", docs), held=True)
        assert found == [["The port of it, is 80 here.", "No port is open there."][-left:]]


def test_one_of_ten_is_held_and_no_other() -> None:
    held, others = passages(held=True), passages()
    assert 9 * len(held) - 9 <= len(others) <= 9 * len(held)
    assert len(others) > 1000


def test_the_projects_own_text_has_no_run_of_the_documentation() -> None:
    docs = Path(__file__).parents[1] / "docs"
    words = re.findall(r"\w+", " ".join(f.read_text("utf-8") for f in sorted(docs.rglob("*.md"))).lower())
    told = f" {' '.join(words)} "
    for sentence in (s for part in passages(held=True) for s in part):
        said = re.findall(r"\w+", sentence.lower())
        assert all(f" {' '.join(said[at : at + 5])} " not in told for at in range(len(said) - 4))


PARTS = (
    "One is",
    " it",
    ". ",
    "? ",
    "! ",
    "e.g. ",
    "i.e. ",
    "\n",
    "\n\n",
    "\n- ",
    "\n* ",
    "\n|",
    "\n# ",
    "\n```",
    "a.b",
    "---",
)


@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=14))
@settings(max_examples=200, deadline=None)
def test_sentences_are_cut_as_the_template_cuts_them(tokenizer: Any, parts: list[str]) -> None:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.chat_template = TEMPLATE.read_text()
    text = "".join(parts)
    asked = [{"role": "user", "content": f"Passages:\n\n[1] (a.md)\n{text}\n\nQuestion: Which?"}]
    laid = str(fast.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
    found = [Sentence(told, 1) for told in sentences(text)]
    assert laid.replace("<|none|>", "") == render("Which?", found)


@given(seeds, stages)
@settings(max_examples=40, deadline=None)
def test_passages_are_shown_in_their_order(encoder: Encoder, seed: int, stage: Stage) -> None:
    made = pool(encoder, seed).asked(stage)
    body = made.prompt.rpartition("\n\nQuestion: ")[0]
    assert made.answer in [text for told in TOLD for text in told]
    shown = [part.split("\n\n") for part in re.split(r"(?:^Passages:)?\n\n\[\d\] \(file\d\.md\)\n", body)[1:]]
    for told in shown:
        home = next(list(one) for one in TOLD if told[0] in one)
        assert told == [text for text in home if text in told]
    assert made.answer in shown[made.number - 1]


@given(seeds, stages)
@settings(max_examples=40, deadline=None)
def test_what_is_copied_behind_the_answer(encoder: Encoder, seed: int, stage: Stage) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(items, "_STRANGE", 0.0)
        item = pool(encoder, seed).item(stage)
    first = item.ids.index(ANSWER)
    assert len(item.copies) == min(stage.copies, len(item.ends) - (item.gold >= 0))
    assert len(item.ids) == len(item.flags) == len(item.owner)
    assert item.ids[-1] == END
    seen = set()
    for at in item.copies:
        mark = item.ids[at] - FIRST_S
        start = item.ids.index(item.ids[at])
        assert start < first
        stop = item.ids.index(FIRST_E + mark)
        assert item.ids[at : at + stop - start] == item.ids[start:stop]
        assert item.ids[at + stop - start] == END
        seen.add(mark)
    assert len(seen) == len(item.copies)
    if item.gold >= 0:
        assert item.ids[item.ends[item.gold]] - FIRST_E not in seen


def test_a_batch_asks_for_copies_but_not_for_their_marks(encoder: Encoder) -> None:
    made = pool(encoder, 4)
    stage = Stage((3, 3), (1, 1), 14, 0.5, 0.0, 2, written=True)
    item = next(one for _ in range(50) if len((one := made.item(stage)).copies) == 2)
    batch = Batch([item], -(-len(item.ids) // 32) * 32)
    for at in item.copies:
        assert not batch.copy[0, at - 1]
        assert batch.copy[0, at]
    asks, places = batch.asks[0], batch.places[0]
    assert set(item.copies) < set(asks[places >= 0].tolist())
    assert (batch.ids[0, asks + 1] == batch.ids[0, places])[places >= 0].all()
    assert not batch.copy[0, len(item.ids) - 1 :].any()
