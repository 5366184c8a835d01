"""What a relay holds back, and when it says that the first token is there."""

from __future__ import annotations

import pytest

from sage.middleware.control_plane.relay import Relay
from sage.middleware.testing.memory import MemorySink

ROLE = b'data: {"choices":[{"delta":{"role":"assistant"},"index":0}]}\n\n'
EMPTY = b'data: {"choices":[{"delta":{"role":"assistant","content":""},"index":0}]}\n\n'
TOKEN = b'data: {"choices":[{"delta":{"content":"Hi"},"index":0}]}\n\n'
BOTH = b'data: {"choices":[{"delta":{"role":"assistant","content":"Hi"},"index":0}]}\n\n'
TOOL = b'data: {"choices":[{"delta":{"role":"assistant","tool_calls":[{"function":{"name":"f"}}]}}]}\n\n'


class Client:
    """Whom a relay speaks to."""

    def __init__(self) -> None:
        self.relay: Relay | None = None
        self.sink = MemorySink()


def relay(*, stream: bool = True) -> tuple[Relay, Client, list[int]]:
    client = Client()
    told: list[int] = []
    return Relay(client, 7, told.append, stream=stream), client, told


@pytest.mark.parametrize("first", [ROLE, EMPTY])
def test_who_speaks_is_held_until_the_first_token(first: bytes) -> None:
    one, client, told = relay()
    one.head(200, "text/event-stream")
    one.data(first)
    assert (told, one.committed, client.sink.status) == ([], False, None)
    one.data(TOKEN)
    assert (told, one.committed) == ([7], True)
    assert client.sink.chunks == [first, TOKEN]


@pytest.mark.parametrize("first", [BOTH, TOKEN, TOOL, ROLE + TOKEN, b"data: {}\n\n", b"d"])
def test_what_holds_a_token_or_is_none_of_our_business_goes_at_once(first: bytes) -> None:
    one, client, told = relay()
    one.data(first)
    assert (told, client.sink.body) == ([7], first)


def test_a_stream_without_a_token_still_ends() -> None:
    one, client, told = relay()
    one.data(ROLE)
    one.end()
    assert (told, client.sink.body, client.sink.ended) == ([], ROLE, True)


def test_later_chunks_pass_whatever_they_say() -> None:
    one, client, told = relay()
    for chunk in (TOKEN, ROLE, TOKEN):
        one.data(chunk)
    assert (told, client.sink.chunks) == ([7], [TOKEN, ROLE, TOKEN])


def test_a_plain_answer_is_held_until_it_is_whole() -> None:
    one, client, told = relay(stream=False)
    one.data(b'{"role": "assist')
    one.data(b'ant"}')
    assert (told, client.sink.status) == ([], None)  # only a stream shows when its first token was there
    one.end()
    assert client.sink.body == b'{"role": "assistant"}'


def test_of_two_relays_the_first_to_write_is_heard() -> None:
    client = Client()
    told: list[int] = []
    slow, quick = (Relay(client, number, told.append, stream=True) for number in (1, 2))
    slow.data(ROLE)
    quick.data(BOTH)
    slow.data(TOKEN)
    quick.end()
    assert client.sink.body == BOTH
    assert client.relay is quick
