"""The engine port's conformance suite on every engine there is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import psutil
import pytest

from sage.common.config import EngineConfig
from sage.common.errors import EngineError, SageError
from sage.middleware.engines.http import HttpPool
from sage.middleware.engines.port import Call, Route
from sage.middleware.engines.registry import engine_kind
from sage.middleware.models import MINILM, RANDOM, RANDOM_RERANKER
from sage.middleware.testing.dialect_suite import DialectConformance
from sage.middleware.testing.engines import (
    EngineConformance,
    LiveEngine,
    RecordingSink,
    Script,
    ScriptedEngine,
    call_for,
)
from sage.platform.service import RestartPolicy, ServiceStatus, Supervisor

_T = TypeVar("_T")


def _port() -> int:
    """One that the system gives: an engine takes long to bind it, and other test runs look for ports too."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class _Page:
    """Collects one page."""

    full = False

    def __init__(self) -> None:
        self.status = 0
        self.body = b""

    def head(self, status: int, content_type: str) -> None:
        self.status = status

    def data(self, chunk: bytes) -> None:
        self.body += chunk

    async def drain(self) -> None:
        return


async def _get(url: str, path: str, body: bytes = b"") -> _Page:
    page, pool = _Page(), HttpPool(url)
    await pool.request("POST" if body else "GET", path, page, body=body)
    pool.close()
    return page


class _Host:
    """One engine process under a supervisor, for many tests: its loop runs in a thread of its own."""

    def __init__(self, config: EngineConfig, cores: tuple[int, ...] = ()) -> None:
        self.config = config
        self.kind = engine_kind(config.kind)
        self.port = _port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        spec = self.kind.service(config, self.port, cores)
        assert spec is not None
        self._spec = spec

    async def _start(self) -> None:
        self._back = asyncio.Event()  # set whenever it becomes ready
        self._supervisor = Supervisor(self._changed, restarts=RestartPolicy(), watch_every=0.2)
        await self._supervisor.start(self._spec)
        status = await self._supervisor.wait_ready(self.config.name)
        assert status.state == "ready", status

    def _changed(self, status: ServiceStatus) -> None:
        if status.state == "ready":
            self._back.set()

    async def _kill(self) -> None:
        before = self._supervisor.status(self.config.name)
        self._back.clear()
        for process in _family(before.pid):
            with contextlib.suppress(psutil.NoSuchProcess):  # its parent is gone, and it went too
                process.kill()
        async with asyncio.timeout(100):
            await self._back.wait()

    def start(self) -> None:
        self._run(self._start()).result()

    def close(self) -> None:
        self._run(self._supervisor.close()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def restart(self) -> None:
        await asyncio.wrap_future(self._run(self._kill()))

    def _run(self, work: Coroutine[Any, Any, _T]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def idle_by_cpu(self) -> bool:
        """Whether it used less than a fifth of a core for a moment: generation takes a whole one."""
        family = _family(self._supervisor.status(self.config.name).pid)
        before = sum(sum(p.cpu_times()[:2]) for p in family)
        await asyncio.sleep(0.2)  # the span that is measured
        return sum(sum(p.cpu_times()[:2]) for p in family) - before < 0.04

    async def live(self, idle: Any, **unknown_field: Any) -> AsyncIterator[LiveEngine]:
        dead = _port()
        engine = self.kind.connect(self.config, self.url)
        unreachable = self.kind.connect(self.config, f"http://127.0.0.1:{dead}")
        yield LiveEngine(engine, self.restart, idle, unreachable, unknown_field)
        await engine.close()
        await unreachable.close()


def _family(pid: int | None) -> list[psutil.Process]:
    assert pid is not None
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


@pytest.fixture(scope="session")
def transformers_host(sage_home: Path) -> Iterator[_Host]:
    host = _Host(EngineConfig(name="llm", kind="transformers", model=RANDOM), cores=(0,))
    host.start()
    yield host
    host.close()


@pytest.fixture(scope="session")
def embedding_host(sage_home: Path) -> Iterator[_Host]:
    host = _Host(EngineConfig(name="embedder", kind="embedding", model=MINILM, task="embed"), cores=(0,))
    host.start()
    yield host
    host.close()


@pytest.fixture(scope="session")
def rerank_host(sage_home: Path) -> Iterator[_Host]:
    config = EngineConfig(name="reranker", kind="embedding", model=RANDOM_RERANKER, task="rerank")
    host = _Host(config, cores=(0,))
    host.start()
    yield host
    host.close()


def _vllm(config: EngineConfig) -> Iterator[_Host]:
    host = _Host(config)
    host.start()
    yield host
    host.close()


def _vllm_python() -> str:
    python = os.environ.get("SAGE_VLLM_PYTHON", "")
    if not python:
        pytest.skip("SAGE_VLLM_PYTHON names no interpreter with vLLM; ./manage.sh test-vllm makes one")
    return python


@pytest.fixture(scope="module")
def vllm_host(sage_home: Path) -> Iterator[_Host]:
    yield from _vllm(EngineConfig(name="vllm", kind="vllm", model=RANDOM, python=_vllm_python()))


@pytest.fixture(scope="module")
def vllm_embedding_host(sage_home: Path) -> Iterator[_Host]:
    yield from _vllm(
        EngineConfig(name="vllm-embed", kind="vllm", model=MINILM, task="embed", python=_vllm_python())
    )


@pytest.fixture(scope="module")
def vllm_rerank_host(sage_home: Path) -> Iterator[_Host]:
    yield from _vllm(
        EngineConfig(
            name="vllm-rerank", kind="vllm", model=RANDOM_RERANKER, task="rerank", python=_vllm_python()
        )
    )


class TestScripted(EngineConformance, DialectConformance):
    """The double is held to the same contract, by way of the adapter for remote URLs."""

    @pytest.fixture
    async def live(self) -> AsyncIterator[LiveEngine]:
        async with ScriptedEngine(model="scripted") as server:
            self.server = server
            port = int(server.url.rpartition(":")[2])

            async def restart() -> None:
                await server.stop()
                await server.start(port)

            async def idle() -> bool:
                return server.active == 0

            kind, config = engine_kind("openai"), server.config()
            engine = kind.connect(config, server.url)
            unreachable = kind.connect(config, f"http://127.0.0.1:{_port()}")
            yield LiveEngine(engine, restart, idle, unreachable, {"max_tokens": -1})
            await engine.close()

    @pytest.mark.parametrize("stream", [True, False])
    async def test_cancel_frees_the_engine(self, live: LiveEngine, stream: bool) -> None:
        """It answers at once, so a gate holds it here."""
        self.server.script = Script(gate=asyncio.Event(), gate_after=1 if stream else -1)
        call = _call(live, Route.CHAT, messages=[], stream=stream)
        sink = RecordingSink()
        task = asyncio.create_task(live.engine.send(call, sink))
        await self.server.until(lambda: self.server.active == 1)
        if stream:
            await sink.first.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await self.server.until(lambda: self.server.active == 0)
        assert self.server.cancelled == 1
        assert not sink.ended

    async def test_kill_and_restart(self, live: LiveEngine) -> None:
        """As for a process; a gate holds the stream."""
        self.server.script = Script(gate=asyncio.Event(), gate_after=1)
        sink = RecordingSink()
        task = asyncio.create_task(live.engine.send(_call(live, Route.CHAT, messages=[], stream=True), sink))
        await sink.first.wait()
        await live.restart()
        with pytest.raises(EngineError):
            await task
        self.server.script = Script()
        again = RecordingSink()
        await live.engine.send(_call(live, Route.CHAT, messages=[], stream=True), again)
        assert again.ended


@pytest.mark.engine
@pytest.mark.slow
class TestTransformers(EngineConformance, DialectConformance):
    @pytest.fixture
    async def live(self, transformers_host: _Host) -> AsyncIterator[LiveEngine]:
        async for live in transformers_host.live(transformers_host.idle_by_cpu, stop=["x"]):
            yield live

    async def test_its_worker_survives_what_would_kill_it(self, live: LiveEngine) -> None:
        """An empty prompt and one larger than the KV cache are refused; many that fit together exceed it."""
        for body in ({"prompt": ""}, {"prompt": "word " * 50_000}, {"prompt": "a", "max_tokens": 20_000}):
            with pytest.raises(SageError) as refused:
                await live.engine.send(_call(live, Route.COMPLETIONS, **body), RecordingSink())
            assert refused.value.status == 400
        sinks = [RecordingSink() for _ in range(8)]
        prompt = "The engine serves the next token. " * 100
        calls = [_call(live, Route.COMPLETIONS, prompt=prompt, max_tokens=4) for _ in sinks]
        await asyncio.gather(*(live.engine.send(*each) for each in zip(calls, sinks, strict=True)))
        assert all(sink.ended for sink in sinks)
        assert await live.engine.ready()


@pytest.mark.engine
@pytest.mark.slow
class TestEmbedding(EngineConformance):
    @pytest.fixture
    async def live(self, embedding_host: _Host) -> AsyncIterator[LiveEngine]:
        async for live in embedding_host.live(lambda: _idle(embedding_host), colour="red"):
            yield live


@pytest.mark.engine
@pytest.mark.slow
class TestRerank(EngineConformance):
    """Our own server with a cross-encoder of random weights."""

    @pytest.fixture
    async def live(self, rerank_host: _Host) -> AsyncIterator[LiveEngine]:
        async for live in rerank_host.live(lambda: _idle(rerank_host), colour="red"):
            yield live


class TestScriptedRerank:
    """A server that reranks, by way of the adapter for remote URLs."""

    @pytest.fixture
    async def live(self) -> AsyncIterator[LiveEngine]:
        async with ScriptedEngine(model="scripted") as server:
            engine = engine_kind("openai").connect(server.config(task="rerank"), server.url)
            yield LiveEngine(engine, _never, _never_idle, engine)
            await engine.close()

    test_rerank = EngineConformance.test_rerank
    test_score = EngineConformance.test_score


async def _never() -> None:
    raise AssertionError("it is not restarted here")


async def _never_idle() -> bool:
    raise AssertionError("its work is not looked at here")


async def _idle(host: _Host) -> bool:
    page = await _get(host.url, "/health")
    return bool(msgspec.json.decode(page.body)["running"] == 0)


async def _vllm_idle(host: _Host) -> bool:
    page = await _get(host.url, "/metrics")
    counts = re.findall(
        rb"^vllm:num_requests_(?:running|waiting)\{[^}]*\} ([0-9.]+)", page.body, re.MULTILINE
    )
    assert counts, page.body[:2000]
    return not any(float(count) for count in counts)


@pytest.mark.vllm
@pytest.mark.timeout(300)
class TestVllm(EngineConformance, DialectConformance):
    @pytest.fixture
    async def live(self, vllm_host: _Host) -> AsyncIterator[LiveEngine]:
        async for live in vllm_host.live(lambda: _vllm_idle(vllm_host), max_tokens=-5):
            yield live

    async def test_metrics(self, vllm_host: _Host) -> None:
        assert (await _get(vllm_host.url, "/metrics")).status == 200
        assert (await _get(vllm_host.url, "/load")).status == 200


@pytest.mark.vllm
@pytest.mark.timeout(300)
class TestVllmEmbedding(EngineConformance):
    @pytest.fixture
    async def live(self, vllm_embedding_host: _Host) -> AsyncIterator[LiveEngine]:
        async for live in vllm_embedding_host.live(lambda: _vllm_idle(vllm_embedding_host), dimensions=-1):
            yield live

    async def test_it_would_compare_vectors_if_it_were_asked(self, vllm_embedding_host: _Host) -> None:
        """A pooling server of an embedding model scores pairs by cosine: why it does not declare rerank."""
        question = {"model": MINILM, "text_1": "a red apple", "text_2": ["a green apple", "set theory"]}
        page = await _get(vllm_embedding_host.url, "/score", msgspec.json.encode(question))
        near, far = (each["score"] for each in msgspec.json.decode(page.body)["data"])
        assert page.status == 200
        assert near > far


@pytest.mark.vllm
@pytest.mark.timeout(300)
class TestVllmRerank(EngineConformance):
    @pytest.fixture
    async def live(self, vllm_rerank_host: _Host) -> AsyncIterator[LiveEngine]:
        async for live in vllm_rerank_host.live(
            lambda: _vllm_idle(vllm_rerank_host), truncate_prompt_tokens="x"
        ):
            yield live


def _call(live: LiveEngine, route: Route, **body: Any) -> Call:
    return call_for(live.engine, route, **body)
