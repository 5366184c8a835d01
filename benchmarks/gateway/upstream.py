"""An engine that does next to nothing, for measuring what stands in front of it: `python upstream.py`.

It trusts its client, prints its port and serves until it is ended. A chat is answered at once, or with 100
chunks 4 ms apart if its body says `stream`, without end and slowly for the user `hold`; an embedding with 384
numbers for each text, at once or, of the model `slow-vectors`, as an engine that computes would: one call
after the other, in 2 ms and half of one for each text.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

import uvloop

TOKENS: Final = 100
TOKEN_EVERY_S: Final = 0.004
CALL_S: Final = 0.002
TEXT_S: Final = 0.0005
MODEL: Final = "tiny"
USAGE: Final = {"prompt_tokens": 50, "completion_tokens": TOKENS, "total_tokens": 50 + TOKENS}


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


CHAT: Final = _json(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "x" * 400}, "finish_reason": "stop"}
        ],
        "usage": USAGE,
    }
)
_NUMBERS: Final = _json([0.123456789] * 384)
_CHUNK: Final = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": MODEL}
_DELTA: Final = {"index": 0, "delta": {"content": " word"}, "finish_reason": None}
TOKEN: Final = b"data: %b\n\n" % _json({**_CHUNK, "choices": [_DELTA]})
LAST: Final = b"data: %b\n\ndata: [DONE]\n\n" % _json({**_CHUNK, "choices": [], "usage": USAGE})
MODELS: Final = _json({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "x"}]})
INFO: Final = _json({"model_path": MODEL, "served_model_name": MODEL, "is_generation": True})
_STREAM: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def embeddings(texts: int) -> bytes:
    """The answer to so many texts."""
    item = b'{"object":"embedding","index":%d,"embedding":%b}'
    data = b",".join(item % (index, _NUMBERS) for index in range(texts))
    usage = _json({"prompt_tokens": 8 * texts, "total_tokens": 8 * texts})
    return b'{"object":"list","data":[%b],"model":"%b","usage":%b}' % (data, MODEL.encode(), usage)


def framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def whole(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


class Upstream(asyncio.Protocol):
    """Answers whole requests, one after the other."""

    free_at = 0.0  # when the one that computes has done what there is, of all connections

    def __init__(self) -> None:
        self._buffer = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        if not separator or len(rest) < length:
            return
        self._buffer = b""
        path = head.split(b" ", 2)[1]
        if path == b"/v1/chat/completions":
            self._chat(rest)
        elif path == b"/v1/embeddings":
            self._embed(json.loads(rest))
        else:
            self._transport.write(whole(MODELS if path == b"/v1/models" else INFO))

    def _embed(self, asked: dict[str, Any]) -> None:
        texts = len(asked["input"]) if isinstance(asked["input"], list) else 1
        answer = whole(embeddings(texts))
        if asked["model"] != "slow-vectors":
            self._transport.write(answer)
            return
        loop = asyncio.get_running_loop()
        Upstream.free_at = max(Upstream.free_at, loop.time()) + CALL_S + TEXT_S * texts
        loop.call_at(Upstream.free_at, self._transport.write, answer)

    def _chat(self, body: bytes) -> None:
        compact = body.replace(b" ", b"")
        if b'"stream":true' in compact:
            self._transport.write(_STREAM)
            endless = b'"user":"hold"' in compact
            self._token(-1 if endless else TOKENS, 0.5 if endless else TOKEN_EVERY_S)
        else:
            self._transport.write(whole(CHAT))

    def _token(self, left: int, every: float) -> None:
        if self._transport.is_closing():
            return
        if left == 0:
            self._transport.write(framed(LAST) + b"0\r\n\r\n")
            return
        self._transport.write(framed(TOKEN))
        asyncio.get_running_loop().call_later(every, self._token, left - 1, every)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
