"""What a relay holds back, and when it says that the first token is there."""

from __future__ import annotations

import pytest

from sage.common.errors import EngineError
from sage.middleware.control_plane.relay import Relay
from sage.middleware.engines.port import Call, Route
from sage.middleware.testing.dialects import events_of
from sage.middleware.testing.memory import MemorySink

ROLE = b'data: {"choices":[{"delta":{"role":"assistant"},"index":0}]}\n\n'
EMPTY = b'data: {"choices":[{"delta":{"role":"assistant","content":""},"index":0}]}\n\n'
TOKEN = b'data: {"choices":[{"delta":{"content":"Hi"},"index":0}]}\n\n'
BOTH = b'data: {"choices":[{"delta":{"role":"assistant","content":"Hi"},"index":0}]}\n\n'
TOOL = b'data: {"choices":[{"delta":{"role":"assistant","tool_calls":[{"function":{"name":"f"}}]}}]}\n\n'


class Client:
    """Whom a relay speaks to."""

    def __init__(self, route: Route = Route.CHAT) -> None:
        self.relay: Relay | None = None
        self.sink = MemorySink()
        self.call = Call("req-1", route, b"{}", stream=True, include_usage=False)


def relay(route: Route = Route.CHAT, *, stream: bool = True) -> tuple[Relay, Client, list[int]]:
    client = Client(route)
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


MESSAGE = (
    b'event: message_start\ndata: {"type":"message_start","message":{"role":"assistant","content":[]}}\n\n'
)
BLOCK = (
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
    b'"content_block":{"type":"text","text":""}}\n\n'
)
CREATED = (
    b'event: response.created\ndata: {"type":"response.created","sequence_number":0,'
    b'"response":{"tools":[{"type":"function","name":"f"}]}}\n\n'
)
ITEM = (
    b'event: response.output_item.added\ndata: {"type":"response.output_item.added","sequence_number":1,'
    b'"item":{"role":"assistant"}}\n\n'
)
WORD = (
    b'event: response.output_text.delta\ndata: {"type": "response.output_text.delta","sequence_number": 2,'
    b'"delta":"Hi"}\n\n'
)


@pytest.mark.parametrize(
    ("route", "first", "token"), [(Route.MESSAGES, MESSAGE, BLOCK), (Route.RESPONSES, CREATED + ITEM, WORD)]
)
def test_other_dialects_too_are_held_until_the_first_token(route: Route, first: bytes, token: bytes) -> None:
    one, client, told = relay(route)
    one.head(200, "text/event-stream")
    one.data(first)
    assert (told, one.committed) == ([], False)
    one.data(token)
    assert (told, client.sink.chunks) == ([7], [first, token])


@pytest.mark.parametrize(
    ("route", "last", "number"), [(Route.MESSAGES, BLOCK, None), (Route.RESPONSES, WORD, 3)]
)
def test_a_fault_is_an_event_of_the_dialect(route: Route, last: bytes, number: int | None) -> None:
    one, client, _ = relay(route)
    one.data(last)
    one.fail(EngineError("it broke"))
    error = events_of(client.sink.body)[-1]
    assert (error["type"], error.get("sequence_number")) == ("error", number)
    assert error["error"]["message"] == "it broke"
    assert client.sink.ended
