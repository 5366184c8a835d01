"""Token ids to text."""

from __future__ import annotations

import hashlib
import importlib
import os
import socket
import sys
from pathlib import Path

import pytest

from sage.common.errors import UnavailableError
from sage.gateway.tokens import FILE, SHA256, TokenDecoder, holds_token_ids, table_file


def test_it_decodes(encodings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(encodings))
    decoder = TokenDecoder()
    before = decoder.loaded
    assert decoder([9906, 1917]) == "Hello world"
    assert (before, decoder.loaded) == (False, True)
    for bad in ([-1], [100_277], [10**30], [100_256]):
        with pytest.raises(ValueError, match="cl100k_base"):
            decoder(bad)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What tried to reach out; each try fails."""
    tried: list[object] = []

    def refuse(_: socket.socket, address: object) -> None:
        tried.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *where, **_: refuse(socket.socket(), where))
    return tried


@pytest.mark.parametrize("state", ["missing", "damaged", "off"])
def test_without_the_table_it_says_so_and_downloads_nothing(
    state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[object]
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "" if state == "off" else str(tmp_path))
    if state == "damaged":
        file = table_file(os.environ)
        assert file is not None
        file.write_bytes(b"half of it")
    with pytest.raises(UnavailableError, match="table cl100k_base is not on this machine") as caught:
        TokenDecoder()([1])
    assert "TIKTOKEN_CACHE_DIR" in caught.value.hint
    assert str(tmp_path) not in str(caught.value)
    assert no_network == []


def test_where_the_table_is_looked_for(tmp_path: Path) -> None:
    assert table_file({"TIKTOKEN_CACHE_DIR": "/a", "DATA_GYM_CACHE_DIR": "/b"}) == Path("/a", FILE)
    assert table_file({"DATA_GYM_CACHE_DIR": "/b"}) == Path("/b", FILE)
    assert table_file({"TIKTOKEN_CACHE_DIR": ""}) is None
    usual = table_file({})
    assert usual is not None
    assert usual.parent.name == "data-gym-cache"


def test_the_name_of_the_table_is_that_of_tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    """tiktoken names a cached file by the address that it came from; ours must follow when it changes."""
    asked: list[tuple[str, str]] = []

    def ranks(url: str, expected_hash: str) -> dict[bytes, int]:
        asked.append((hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest(), expected_hash))
        return {}

    openai_public = importlib.import_module("tiktoken_ext.openai_public")
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", ranks)
    openai_public.cl100k_base()
    assert asked == [(FILE, SHA256)]


def test_without_tiktoken_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(UnavailableError, match="tiktoken is not installed") as caught:
        TokenDecoder()([1])
    assert "sage-gateway[tokens]" in caught.value.hint


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
