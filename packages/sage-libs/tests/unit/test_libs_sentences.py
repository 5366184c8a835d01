import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.libs.text import sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("It uses e.g. SQLite. Then stops.", ["It uses e.g. SQLite.", "Then stops."]),
        ("Version 2.13 is pinned. Good.", ["Version 2.13 is pinned.", "Good."]),
        ("A line\nwrapped. Next\none.", ["A line wrapped.", "Next one."]),
        ("# Heading\nText here.", ["Text here."]),
        ("- first item\n- second item", ["first item", "second item"]),
        ("1. Do this.\n2. Do that.", ["Do this.", "Do that."]),
        ("| a | b |\n|---|---|\n| 1 | 2 |\n\nProse.", ["Prose."]),
        ("```\ncode. Not prose.\n```\nProse.", ["Prose."]),
        ("~~~\nnever closed. Code.", []),
        ("See [the guide](guide.md). Done.", ["See the guide.", "Done."]),
        ("He said “stop”. (It did.) `Run` it.", ["He said “stop”.", "(It did.)", "`Run` it."]),
    ],
)
def test_sentences_of_prose_and_markdown(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@given(st.text(max_size=400))
def test_sentences_are_never_blank_and_hold_single_spaces(text: str) -> None:
    assert all(s and s == " ".join(s.split()) for s in sentences(text))
