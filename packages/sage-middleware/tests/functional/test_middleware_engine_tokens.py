"""Tokens of texts: the embedding server's own, and where vLLM keeps its routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sage.common.config import EngineConfig
from sage.middleware.engines.encoders import load_model
from sage.middleware.engines.port import Capability, Route
from sage.middleware.engines.registry import engine_kind
from sage.middleware.engines.threads import Cores
from sage.middleware.models import minilm_folder
from sage.middleware.testing.engines import RecordingSink, ScriptedEngine, call_for
from sage.middleware.testing.served import Held, Server, serving


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving(Held(), "embed") as one:
        yield one


async def test_all_tokens_are_told_whatever_the_model_reads(server: Server) -> None:
    status, answer = await server.post(path="/v1/tokenize", prompt="red blue pink green red")
    assert (status, answer) == (200, {"tokens": [0, 2, 3, 1, 0], "count": 5, "max_model_len": 16})
    assert (await server.post(path="/v1/tokenize", prompt=""))[1]["count"] == 0
    status, answer = await server.post(path="/v1/detokenize", tokens=[0, 2])
    assert (status, answer) == (200, {"prompt": "red blue"})


async def test_tokens_do_not_wait_for_the_model(server: Server) -> None:
    server.model.free.clear()
    held = asyncio.create_task(server.post(input="text"))
    await server.entered()
    assert (await server.post(path="/v1/tokenize", prompt="red"))[0] == 200
    assert not held.done()
    server.model.free.set()
    await held


@pytest.mark.parametrize(
    ("path", "fields", "status", "says"),
    [
        ("/v1/tokenize", {}, 400, "prompt"),
        ("/v1/tokenize", {"messages": []}, 400, "messages"),
        ("/v1/tokenize", {"prompt": "a", "colour": 1}, 400, "colour"),
        ("/v1/tokenize", {"prompt": "a", "model": "x"}, 404, "there is 'm'"),
        ("/v1/detokenize", {"tokens": [0, 4]}, 400, "tokens[1] is 4; the ids of this model are 0 to 3"),
        ("/v1/detokenize", {"tokens": [-1]}, 400, "tokens[0] is -1"),
        ("/v1/detokenize", {"tokens": ["0"]}, 400, "not a detokenize request"),
        ("/v1/detokenize", {"tokens": [0], "model": "x"}, 404, "there is 'm'"),
    ],
    ids=str,
)
async def test_what_is_wrong_is_told(
    server: Server, path: str, fields: dict[str, Any], status: int, says: str
) -> None:
    found, answer = await server.post(path=path, **fields)
    assert found == status
    assert says in answer["error"]["message"]


async def test_a_tokenizer_that_fails_is_answered_for(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(server.app._aside, ("POST", "/v1/tokenize"), lambda _raw, _model: 1 / 0)
    status, answer = await server.post(path="/v1/tokenize", prompt="red")
    assert (status, "The tokenizer failed" in answer["error"]["message"]) == (502, True)


def test_special_tokens_are_there_unless_they_are_not_wanted() -> None:
    tokens = load_model(str(minilm_folder()), Cores()).tokens
    plain = b'{"model":"m","prompt":"hello world"}'
    assert b'"tokens":[101,7592,2088,102],"count":4,"max_model_len":256' in tokens.tokenize(plain, "m")
    bare = b'{"model":"m","prompt":"hello world","add_special_tokens":false}'
    assert b'"tokens":[7592,2088]' in tokens.tokenize(bare, "m")
    long = b'{"model":"m","prompt":"%b"}' % (b"word " * 1000)
    assert b'"count":1002' in tokens.tokenize(long, "m")
    assert tokens.detokenize(b'{"model":"m","tokens":[7592,2088]}', "m") == b'{"prompt":"hello world"}'


async def test_vllm_has_them_beside_its_v1(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.touch()
    config = EngineConfig(name="v", kind="vllm", model="o/m", python=str(python))
    async with ScriptedEngine(model="m") as server:
        engine = engine_kind("vllm").connect(config, server.url)
        for route in (Route.TOKENIZE, Route.DETOKENIZE, Route.CHAT):
            await engine.send(call_for(engine, route, messages=[]), RecordingSink())
        await engine.close()
        paths = [request.path for request in server.requests]
    assert paths == ["/tokenize", "/detokenize", "/v1/chat/completions"]


def test_who_has_tokens_says_so(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.touch()
    base = EngineConfig(name="a", kind="x", model="o/m", url="http://127.0.0.1:1")
    for task in ("generate", "embed", "rerank"):
        config = base.model_copy(update={"task": task, "python": str(python)})
        assert Capability.TOKENIZE in engine_kind("vllm").spec(config).capabilities
        assert Capability.TOKENIZE not in engine_kind("openai").spec(config).capabilities
    assert Capability.TOKENIZE in engine_kind("embedding").spec(base).capabilities
    assert Capability.TOKENIZE not in engine_kind("transformers").spec(base).capabilities
