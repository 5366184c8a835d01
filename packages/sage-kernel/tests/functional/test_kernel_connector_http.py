"""HTTP connectors on a real server that is busy, breaks off, changes, and goes wrong."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import BaseTestServer, TestServer

from sage.common.errors import BadRequestError, ConflictError, UnreachableError
from sage.kernel import Flow, LocalEnvironment, use
from sage.kernel.connectors import HttpLines, HttpPages, HttpPost
from sage.kernel.testing.connectors import LiveSink, SinkConformance


class Server:
    """Keeps what is posted, each `Idempotency-Key` once, and answers as the path says."""

    def __init__(self) -> None:
        self.posts: dict[str, Any] = {}
        self.headers: list[Any] = []
        self.calls: Counter[str] = Counter()
        self.text = b"1\n2\n"
        self.tag = '"a"'
        self.http: BaseTestServer

    def url(self, path: str) -> str:
        return str(self.http.make_url(path))

    async def post(self, request: web.Request) -> web.Response:
        self.calls[request.path] += 1
        self.headers.append(request.headers)
        body = (await request.read()).decode()
        self.posts[request.headers["Idempotency-Key"]] = body
        if request.path == "/busy" and self.calls["/busy"] % 2:
            return web.Response(status=503)
        status = {"/refused": 422, "/ill": 500}.get(request.path, 204)
        return web.Response(status=status, text="no such field" if status == 422 else None)

    async def get(self, request: web.Request) -> web.Response:
        self.calls[request.path] += 1
        if request.path == "/text":
            return web.Response(body=self.text, headers={"ETag": self.tag} if self.tag else {})
        if request.path == "/teapot":
            return web.Response(status=418, text="short and stout")
        pages = {
            "/self": {"next": "/self"},
            "/elsewhere": {"next": "http://127.0.0.1:1/steal"},
            "/html": "<p>",
            "/single": {"a": 1},
        }
        page = pages[request.path]
        return web.Response(text=page) if isinstance(page, str) else web.json_response(page)

    @property
    def records(self) -> list[Any]:
        return [record for body in self.posts.values() for record in json.loads(body)]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    app = web.Application()
    app.router.add_post("/{path}", made.post)
    app.router.add_get("/{path}", made.get)
    async with TestServer(app, host="127.0.0.1") as made.http:
        yield made


async def read(source: HttpLines | HttpPages, position: Any = None) -> list[Any]:
    source.setup()
    try:
        return [record async for _, records in source.read(position) for record in records]
    finally:
        await source.close()


class TestHttpPost(SinkConformance):
    @pytest.fixture
    def fresh(self, server: Server) -> Any:
        async def make() -> LiveSink:
            server.posts.clear()

            async def written() -> list[Any]:
                return server.records

            async def killed(sink: Any) -> None:
                await sink._web.close()

            url = server.url("/in")
            return LiveSink(lambda: HttpPost(url), [1, "ä", None, {}, []], written, False, killed=killed)

        return make


async def test_a_flow_posts_batches_with_keys(server: Server) -> None:
    flow = Flow("post")
    flow.source(range(100)).sink(
        use("http", url=server.url("/in"), format="jsonl", headers={"Authorization": "Bearer x"})
    )
    await LocalEnvironment().run(flow)
    lines = "".join(server.posts.values()).splitlines()
    assert sorted(map(int, lines)) == list(range(100))
    assert {one["Authorization"] for one in server.headers} == {"Bearer x"}
    assert {one["Content-Type"] for one in server.headers} == {"application/x-ndjson"}
    # A key has the run, which is of these tries alone, the epoch, the number of the batch and a digest.
    keys = [key.split("-")[-3:-1] for key in server.posts]
    assert keys == [["1", str(number)] for number in range(len(keys))]


async def test_a_repeated_post_has_its_key(server: Server) -> None:
    sink = HttpPost(server.url("/busy"))
    sink.setup()
    await sink.write(1, ["same"])
    await sink.write(1, ["same"])
    await sink.close()
    assert server.calls["/busy"] == 4
    assert len(server.posts) == 2


async def test_what_a_server_refuses_is_an_error_with_its_words(server: Server) -> None:
    sink = HttpPost(server.url("/refused"))
    sink.setup()
    with pytest.raises(BadRequestError, match="/refused: status 422: 'no such field'"):
        await sink.write(1, [1])
    await sink.close()
    assert server.calls["/refused"] == 1
    sink = HttpPost(server.url("/ill"))
    sink.setup()
    with pytest.raises(UnreachableError, match="/ill failed 4 times; at last: status 500"):
        await sink.write(1, [1])
    await sink.close()


async def test_what_is_no_url() -> None:
    for kind in (HttpLines, HttpPages, HttpPost):
        with pytest.raises(BadRequestError, match="the URL is 'ftp://x'; valid is http"):
            kind("ftp://x")


async def test_a_text_that_changed_since_the_checkpoint(server: Server) -> None:
    url = server.url("/text")
    position = {"offset": 4, "line": 2, "etag": '"a"'}
    assert await read(HttpLines(url)) == [1, 2]
    assert await read(HttpLines(url), position) == []
    server.tag = '"b"'
    with pytest.raises(ConflictError, match='up to byte 4 with the ETag "a"; now it is \'"b"\''):
        await read(HttpLines(url), position)
    server.tag, server.text = "", b"1\n"
    with pytest.raises(ConflictError, match="ends 2 bytes before the place"):
        await read(HttpLines(url), {**position, "etag": ""})


async def test_what_is_no_json_is_told_with_its_place(server: Server) -> None:
    server.text = b'{"a": 1}\n\nnull\n{"a" 2}\n'
    url = server.url("/text")
    assert await read(HttpLines(url, "lines")) == ['{"a": 1}', "", "null", '{"a" 2}']
    with pytest.raises(BadRequestError, match=r"/text:4:6: not JSON"):
        await read(HttpLines(url))
    with pytest.raises(BadRequestError, match="status 418: 'short and stout'"):
        await read(HttpLines(server.url("/teapot")))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/self", "the page '/self' names itself as the next one"),
        ("/elsewhere", "next page is 'http://127.0.0.1:1/steal', which is not on the server of"),
        ("/html", "/html: not JSON"),
    ],
)
async def test_pages_that_lead_nowhere(server: Server, path: str, said: str) -> None:
    with pytest.raises(BadRequestError, match=said):
        await read(HttpPages(server.url(path), next="next"))


async def test_a_page_can_be_one_record(server: Server) -> None:
    assert await read(HttpPages(server.url("/single"))) == [{"a": 1}]
    with pytest.raises(BadRequestError, match=r"page '': 'a.rows' is not in it; there is int"):
        await read(HttpPages(server.url("/single"), items="a.rows"))


async def test_nobody_there_is_an_error_after_some_tries() -> None:
    with pytest.raises(UnreachableError, match="failed 4 times"):
        await read(HttpLines("http://127.0.0.1:1/"))
