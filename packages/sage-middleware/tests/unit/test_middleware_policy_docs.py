"""The page about policies says of each what its docstring says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from sage.middleware.control_plane.policy import available_policies, load_policy

PAGE = Path(__file__).resolve().parents[4] / "docs" / "policies.md"
RIGHT, NOT_RIGHT = "It is right ", "It is not right "


def rows() -> dict[str, list[str]]:
    found = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    return {name: cells for name, *cells in found}


@pytest.mark.parametrize("name", available_policies())
def test_a_policys_docstring_is_its_row(name: str) -> None:
    """What it does, when it is right, when it is not: three sentences."""
    text = " ".join(inspect.cleandoc(type(load_policy(name)).__doc__ or "").split())
    sentences = re.split(r"(?<=\.) ", text)
    assert len(sentences) == 3, sentences
    assert sentences[1].startswith(RIGHT)
    assert sentences[2].startswith(NOT_RIGHT)
    expected = [sentences[0], sentences[1].removeprefix(RIGHT), sentences[2].removeprefix(NOT_RIGHT)]
    assert rows()[name] == expected


def test_the_page_has_no_other_policy() -> None:
    assert list(rows()) == available_policies()


def test_a_policy_of_ones_own_is_short() -> None:
    block = re.search(r"^```python\n(.*?class Sticky.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert block is not None
    assert len(block[1].splitlines()) <= 30
