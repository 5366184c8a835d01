"""The fuse in conftest.py: no test reaches beyond this machine."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest


@pytest.mark.parametrize("address", [("192.0.2.1", 80), (b"192.0.2.1", 80)])
def test_a_connection_beyond_loopback_is_refused(address: tuple[str | bytes, int]) -> None:
    with socket.socket() as probe, pytest.raises(RuntimeError, match="loopback only"):
        probe.connect(address)


def test_a_datagram_and_a_look_up_are_refused() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as probe, pytest.raises(RuntimeError, match=r"192\.0\.2\.1"):
        probe.sendto(b"x", ("192.0.2.1", 53))
    with pytest.raises(RuntimeError, match=r"example\.invalid"):
        socket.getaddrinfo("example.invalid", 443)


def test_loopback_works() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(("localhost", server.getsockname()[1])).close()


def test_hubs_are_off_and_the_home_is_ours(sage_home: Path) -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["SAGE_HOME"] == str(sage_home)
    assert sage_home.is_dir()


def test_the_encodings_are_those_that_litellm_carries() -> None:
    assert any(Path(os.environ["TIKTOKEN_CACHE_DIR"]).iterdir())
