"""`transformers serve` with continuous batching: an LLM engine that runs wherever torch runs.

What this adapter makes up for, found in transformers 5.23: `model` must be the folder that it was given; a
stream has no `[DONE]` and its usage rides on the finish chunk; errors are bare strings, and an unknown field
is one; a call that is not a stream is never cancelled, so everything is streamed and put together here; an
empty prompt, or one that does not fit its KV cache, stops its worker for good, so both are refused here.

With continuous batching the engine samples as the model's own `generation_config` says, the same for all
requests: `temperature`, `top_p` and `seed` have no effect. Fields that would change the meaning of an answer
(`stop`, penalties, `logit_bias` and others) are refused.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import msgspec

from sage.common.config import EngineConfig
from sage.common.errors import BadRequestError, EngineError
from sage.middleware.engines.adapter import HttpEngine
from sage.middleware.engines.faults import UpstreamError, brief
from sage.middleware.engines.http import HttpPool
from sage.middleware.engines.launch import (
    describe,
    environment,
    log_file,
    option,
    require,
    source_of,
    uses_gpu,
)
from sage.middleware.engines.port import Call, Capability, Engine, EngineSpec, Route, Usage
from sage.middleware.engines.room import Room
from sage.middleware.engines.sse import DONE, Splitter, data_of
from sage.middleware.models import NANO, RANDOM
from sage.platform.service import ServiceSpec

__all__ = ["KIND", "TransformersDialect", "TransformersKind", "TransformersStream"]

_BLOCK = 256  # tokens of KV cache per block
_BLOCKS = 64  # 16,384 tokens; its own default takes most of the machine's memory
_BATCH_TOKENS = 512  # prefill chunk: longer ones delay the running streams
_DEFAULT_MAX_TOKENS = 1024

_SENT = {
    Route.CHAT: frozenset({"messages", "tools"}),
    Route.COMPLETIONS: frozenset({"prompt"}),
}
# Fields that it accepts and ignores, with the values that mean "not asked for".
_REFUSED: dict[str, tuple[Any, ...]] = {
    "response_format": (None, {"type": "text"}),
    "tool_choice": (None, "auto", "none"),
    "n": (None, 1),
    "best_of": (None, 1),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "stop": (None, []),
    "suffix": (None, ""),
    "echo": (None, False),
    "logit_bias": (None, {}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "functions": (None, []),
    "function_call": (None, "auto", "none"),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "web_search_options": (None,),
    "top_k": (None,),
    "reasoning_effort": (None,),
    "parallel_tool_calls": (None, True),
}


class TransformersKind:
    """Started as a process from this environment, or from `python:`."""

    def spec(self, config: EngineConfig) -> EngineSpec:
        """Chat and completions; tools where the model's chat template knows them."""
        can = {Capability.CHAT, Capability.COMPLETIONS}
        if _template_has_tools(config.model):
            can.add(Capability.TOOLS)
        cache = _BLOCK * option(config.args, "--cb-num-blocks", _BLOCKS)
        chunk = option(config.args, "--cb-max-batch-tokens", _BATCH_TOKENS)
        gpu = uses_gpu(config.python)
        return describe(config, frozenset(can), on_gpu=gpu, kv_tokens=cache, chunk=chunk)

    def service(self, config: EngineConfig, port: int, cores: tuple[int, ...]) -> ServiceSpec:
        """The serving process. `args` come last, so that `--cb-num-blocks N` there wins."""
        require(config, "transformers", "cpu")
        source = source_of(config)
        argv = [config.python or sys.executable, "-m", "transformers.cli.transformers", "serve"]
        argv += [source.path_or_id, "--continuous-batching", "--host", "127.0.0.1", "--port", str(port)]
        argv += ["--cb-block-size", str(_BLOCK), "--cb-num-blocks", str(_BLOCKS)]
        argv += ["--cb-max-batch-tokens", str(_BATCH_TOKENS), "--log-level", "error"]
        if config.model == NANO:
            # Shipped in bfloat16 for its size; a core without it reads a prompt in a third of the time so.
            argv += ["--dtype", "float32"]
        return ServiceSpec(
            name=config.name,
            argv=(*argv, *config.args),
            probe_url=f"http://127.0.0.1:{port}/health",
            log=log_file(config),
            env={**environment(source, cores), "MALLOC_ARENA_MAX": "2"},
            cores=cores,
            start_timeout=config.start_timeout_s,
        )

    def connect(self, config: EngineConfig, url: str) -> Engine:
        """A connection to the server at `url`."""
        upstream = source_of(config).path_or_id
        spec = self.spec(config)
        dialect = TransformersDialect(upstream, spec.model, Room(upstream, spec.kv_tokens))
        return HttpEngine(spec, dialect, HttpPool(url))


def _template_has_tools(model: str) -> bool:
    """Read from the folder; a model of the hub is taken to have them."""
    if model in (NANO, RANDOM):
        return False
    folder = Path(os.path.expanduser(model))
    if not folder.is_dir():
        return True
    files = (folder / "chat_template.jinja", folder / "tokenizer_config.json")
    return any(file.is_file() and "tools" in file.read_text(encoding="utf-8") for file in files)


class TransformersDialect:
    """What `transformers serve` takes and gives. `upstream` is the model as its command line named it."""

    def __init__(self, upstream: str, served: str, room: Room) -> None:
        self._upstream = upstream
        self._served = served
        self._room = room

    async def encode(self, call: Call) -> bytes:
        """Only the fields that it honours. Raises BadRequestError for one that it would ignore silently."""
        if call.route not in _SENT:
            raise BadRequestError(f"transformers serve has no /v1/{call.route}; it has chat and completions.")
        body = msgspec.json.decode(call.body, type=dict[str, Any])
        _refuse_ignored(body)
        texts, param = _chat_texts(body) if call.route is Route.CHAT else _prompt_texts(body)
        asked = body.get("max_completion_tokens") or body.get("max_tokens")
        sent = {name: value for name, value in body.items() if name in _SENT[call.route] and value}
        sent["max_tokens"] = await self._room.max_tokens(texts, asked, _DEFAULT_MAX_TOKENS, param)
        return msgspec.json.encode({**sent, "model": self._upstream, "stream": True})

    def plain(self, _call: Call) -> bytes | None:
        """Never: what it answers is a stream."""
        return None

    def streams(self, _call: Call) -> bool:
        """Always: only a stream is cancelled when its client goes away."""
        return True

    def translator(self, call: Call) -> TransformersStream:
        """Turn its stream into OpenAI's."""
        wanted = call.include_usage or not call.stream  # a whole answer always has its usage
        return TransformersStream(self._upstream, self._served, include_usage=wanted)


def _refuse_ignored(body: dict[str, Any]) -> None:
    for name, harmless in _REFUSED.items():
        value = body.get(name)
        if not any(value == each and isinstance(value, bool) is isinstance(each, bool) for each in harmless):
            raise BadRequestError(
                f"{name} is not supported by transformers serve, which would ignore it silently.",
                hint="Leave it out, or use an engine of kind vllm.",
                param=name,
            )


def _chat_texts(body: dict[str, Any]) -> tuple[list[str], str]:
    """All text of a chat; anything else than text would be dropped by the engine and is refused."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequestError("messages must be a list with at least one message.", param="messages")
    texts = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequestError(f"{where} must be an object with a role.", param=where)
        content = message.get("content") or ""
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        for part in parts:
            if not isinstance(part, dict) or not isinstance(part.get("text"), str):
                raise BadRequestError(
                    f"{where}.content holds something else than text, which this model cannot read.",
                    param=f"{where}.content",
                )
            texts.append(part["text"])
        if message.get("tool_calls"):
            texts.append(msgspec.json.encode(message["tool_calls"]).decode())
    if body.get("tools"):
        texts.append(msgspec.json.encode(body["tools"]).decode())
    return texts, "messages"


def _prompt_texts(body: dict[str, Any]) -> tuple[list[str], str]:
    """The prompt, out of its list if that holds one."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt:
        raise BadRequestError(
            "prompt must be one string, not empty; send one call per prompt.", param="prompt"
        )
    body["prompt"] = prompt
    return [prompt], "prompt"


_FINISH = b'"usage":{'


class TransformersStream:
    """Per event: the served id in place of the folder. At the finish: usage if asked for, and `[DONE]`."""

    def __init__(self, upstream: str, served: str, *, include_usage: bool) -> None:
        self.usage = Usage()
        self._include_usage = include_usage
        self._splitter = Splitter()
        self._finished = False
        # In a JSON string every quote is escaped, so that generated text cannot look like this field.
        name = re.escape(msgspec.json.encode(upstream)[1:-1])
        self._model = re.compile(rb'"model":"' + name + rb'(@[^"]*)?"')
        self._served = b'"model":' + msgspec.json.encode(served).replace(b"\\", b"\\\\")

    def feed(self, chunk: bytes) -> bytes:
        """Translate the next bytes."""
        return b"".join(map(self._event, self._splitter.feed(chunk)))

    def close(self) -> bytes:
        """Raises EngineError unless the finish chunk has come."""
        rest = b"".join(map(self._event, self._splitter.close()))
        if not self._finished:
            raise EngineError("The engine's stream ended before its finish chunk.")
        return rest + DONE

    def _event(self, event: bytes) -> bytes:
        data = data_of(event)
        if data.startswith((b'{"error"', b'{"detail"')):  # not always valid JSON: it does not escape its text
            told = brief(data.decode("utf-8", "replace"))
            raise UpstreamError("The engine failed in the middle of its answer.", told)
        event = self._model.sub(self._served, event, count=1)
        return self._finish(data_of(event)) if _FINISH in event else event

    def _finish(self, data: bytes) -> bytes:
        try:
            chunk = msgspec.json.decode(data, type=dict[str, Any])
            usage = chunk.pop("usage")
            self.usage = Usage(int(usage["prompt_tokens"]), int(usage["completion_tokens"]))
        except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
            told = brief(f"{type(error).__name__}: {error}")
            raise UpstreamError("The engine's finish chunk cannot be read.", told) from error
        self._finished = True
        out = _sse(chunk)
        if self._include_usage:
            out += _sse({**chunk, "choices": [], "usage": usage})
        return out


def _sse(chunk: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


KIND = TransformersKind()
