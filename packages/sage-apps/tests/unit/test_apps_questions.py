import pytest

from sage.apps.questions import OWN_DOCS, from_headings
from sage.middleware.operators.records import Document


def test_there_are_three_questions_about_the_project() -> None:
    assert len(OWN_DOCS) == len(set(OWN_DOCS)) == 3
    assert all(question.endswith("?") for question in OWN_DOCS)


def test_headings_are_spread_over_the_documents() -> None:
    documents = [Document(f"{i}.md", f"# Part {i}\n\n## Detail {i} ##\n") for i in range(3)]
    assert from_headings(documents) == [
        "What is said about “Part 0”?",
        "What is said about “Part 1”?",
        "What is said about “Part 2”?",
    ]


@pytest.mark.parametrize(
    ("text", "topic"),
    [("# `code` name\n", "code` name"), ("```\n# comment\n```\n# Real\n", "Real"), ("no heading", "a.md")],
)
def test_a_topic_is_a_real_heading_or_the_name(text: str, topic: str) -> None:
    assert from_headings([Document("a.md", text)]) == [f"What is said about “{topic}”?"]


def test_a_heading_is_asked_about_once() -> None:
    assert len(from_headings([Document("a.md", "# Same\n\n# Same\n")])) == 1
    assert from_headings([]) == []
