import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import UsageError
from sage.libs.text import Chunk, SplitOptions, split_markdown, split_text

OPTIONS = st.integers(1, 80).flatmap(
    lambda size: st.integers(0, size - 1).map(lambda overlap: SplitOptions(size, overlap))
)
PROSE = st.lists(
    st.sampled_from(["word", "a", "Ends.", "\n", "\n\n", " ", "  ", "é", "looooooooooooong", "\u3002", "\t"]),
    max_size=60,
).map("".join)
MARKDOWN = st.lists(
    st.sampled_from(
        [
            "# Head\n",
            "## Sub\n\n",
            "text here.\n",
            "\n",
            "```py\na = 1\n\nb()\n```\n",
            "- item\n",
            "~~~\n",
            "```\n",
        ]
    ),
    max_size=30,
).map("".join)


def assert_covers(text: str, chunks: list[Chunk], options: SplitOptions) -> None:
    assert all(text[c.start : c.end] == c.text and 0 < len(c.text) <= options.size for c in chunks)
    if not text:
        assert chunks == []
        return
    assert (chunks[0].start, chunks[-1].end) == (0, len(text))
    assert all(a.start < b.start <= a.end < b.end for a, b in pairwise(chunks))
    assert all(a.end - b.start <= options.overlap for a, b in pairwise(chunks))


@given(st.one_of(PROSE, st.text(max_size=300)), OPTIONS)
def test_chunks_cover_the_text_and_keep_their_bounds(text: str, options: SplitOptions) -> None:
    assert_covers(text, split_text(text, options=options), options)


@given(st.one_of(MARKDOWN, st.text(max_size=300)), OPTIONS)
def test_markdown_chunks_cover_the_text_and_keep_their_bounds(text: str, options: SplitOptions) -> None:
    assert_covers(text, split_markdown(text, options=options), options)


@given(PROSE, st.integers(1, 60))
def test_without_overlap_the_chunks_join_to_the_text(text: str, size: int) -> None:
    assert "".join(c.text for c in split_text(text, options=SplitOptions(size, 0))) == text


@given(MARKDOWN, OPTIONS)
def test_splitting_is_deterministic(text: str, options: SplitOptions) -> None:
    assert split_markdown(text, options=options) == split_markdown(text, options=options)


@given(
    st.lists(
        st.sampled_from(["# Head\n", "## Sub\n\n", "text here.\n", "\n\nmore text.\n"]), max_size=25
    ).map("".join)
)
def test_a_heading_is_never_left_behind_by_its_text(text: str) -> None:
    chunks = split_markdown(text, options=SplitOptions(60, 0))
    for chunk, after in pairwise(chunks):
        last = chunk.text.rstrip().splitlines()[-1:]
        left_behind = bool(last) and last[0].startswith("#")
        # Six headings in a row may fill a chunk by themselves.
        assert not left_behind or re.fullmatch(r"(#+ \w+\s+)+", chunk.text), (chunk, after)


def test_paragraphs_are_preferred_over_sentences_and_words() -> None:
    text = "First paragraph here.\n\nSecond one. It is longer than the first.\n\nThird."
    chunks = split_text(text, options=SplitOptions(45, 0))
    assert [c.text for c in chunks] == [
        "First paragraph here.\n\n",
        "Second one. It is longer than the first.\n\n",
        "Third.",
    ]

    chunks = split_text(text, options=SplitOptions(40, 0))
    assert [c.text for c in chunks] == [
        "First paragraph here.\n\nSecond one. ",
        "It is longer than the first.\n\nThird.",
    ]


def test_words_are_kept_whole_until_one_is_too_long() -> None:
    chunks = split_text("alpha beta " + "x" * 12, options=SplitOptions(8, 0))
    assert [c.text for c in chunks] == ["alpha ", "beta ", "x" * 8, "x" * 4]


def test_overlap_begins_at_a_word() -> None:
    text = "one two three four five six seven"
    chunks = split_text(text, options=SplitOptions(16, 8))
    assert [c.text for c in chunks] == ["one two three ", "three four five ", "five six seven"]


def test_a_code_block_that_fits_stays_whole() -> None:
    code = "```python\nfirst = 1\n\nsecond = 2\n```\n"
    text = "Some prose that fills most of it.\n\n" + code + "\nAfter.\n"
    chunks = split_markdown(text, options=SplitOptions(50, 0))
    assert sum(code in c.text for c in chunks) == 1


def test_a_code_block_longer_than_a_chunk_is_cut_at_lines() -> None:
    text = "```\n" + "line of code\n" * 10 + "```\n"
    chunks = split_markdown(text, options=SplitOptions(40, 0))
    assert all(c.text.endswith("\n") for c in chunks)


def test_a_hash_inside_a_code_block_is_no_heading() -> None:
    text = "Text before.\n\n```sh\n# a comment\nrun it\n```\n"
    assert [c.text for c in split_markdown(text, options=SplitOptions(36, 0))] == [text[:14], text[14:]]


def test_a_heading_repeats_its_hold_over_an_oversize_section() -> None:
    text = "# Long section\n\n" + "Some words here. " * 10
    first = split_markdown(text, options=SplitOptions(60, 0))[0]
    assert first.text.startswith("# Long section\n\nSome words here.")


def test_leading_blank_lines_are_kept() -> None:
    assert split_markdown("\n\n# A\n\ntext\n")[0].text == "\n\n# A\n\ntext\n"


def test_chunks_name_their_document() -> None:
    assert {c.doc for c in split_text("a b c", doc="x.md")} == {"x.md"}


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (-1, 0), (10, 10), (10, 11), (10, -1)])
def test_options_that_cannot_be_met_are_refused(size: int, overlap: int) -> None:
    with pytest.raises(UsageError, match=r"Chunk (size|overlap) is"):
        SplitOptions(size, overlap)
