"""Token ids to text."""

from __future__ import annotations

from pathlib import Path

import pytest

from sage.common.errors import UnavailableError
from sage.gateway.tokens import TokenDecoder, holds_token_ids


def test_it_decodes(encodings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(encodings))
    decoder = TokenDecoder()
    before = decoder.loaded
    assert decoder([9906, 1917]) == "Hello world"
    assert (before, decoder.loaded) == (False, True)
    for bad in ([-1], [100_277], [10**30], [100_256]):
        with pytest.raises(ValueError, match="cl100k_base"):
            decoder(bad)


def test_without_the_table_it_says_what_to_set(tmp_path: Path) -> None:
    def fails(name: str) -> object:
        raise OSError(f"no network for {name}")

    with pytest.raises(UnavailableError, match="TIKTOKEN_CACHE_DIR") as caught:
        TokenDecoder(fails)([1])
    assert "no network" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"input": [1, 2]}', True),
        (b'{"model":"m","input":[[1]]}', True),
        (b'{"input" : [ [ 12 ] ] }', True),
        (b'{"input": ["a", "1"]}', False),
        (b'{"input": "a"}', False),
        (b'{"input": []}', False),
    ],
)
def test_which_bodies_hold_ids(body: bytes, expected: bool) -> None:
    assert holds_token_ids(body) is expected
