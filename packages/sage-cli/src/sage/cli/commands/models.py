"""`sage chat`, `sage embed` and `sage rerank`: one call to the running stack.

Text comes by a pipe too, NDJSON goes out.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sage.cli.commands.stack import Config, Json, paths
from sage.cli.output import Talk, columns, emit_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sage.common.api import EngineStatus
    from sage.middleware.rest import Rest

__all__ = ["chat", "embed", "rerank"]

_TIMEOUT_S = 600.0
_LABEL = "RANDOM-WEIGHTS"
_NANO = "sage-nano"
_VERBS = {"generate": "chat", "embed": "embed", "rerank": "rerank"}


def chat(
    ctx: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(help="What to say; without it, or for `-`, standard input.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Its id; by default the first LLM.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="At most this many tokens.")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Ask a model; the answer streams to stdout."""
    talk: Talk = ctx.obj
    text = "\n".join(_texts([prompt] if prompt else []))
    rest, engine = _find(model, config, "generate")
    messages = [{"role": "system", "content": system}] if system else []
    body: dict[str, Any] = {
        "model": model or engine.model,
        "messages": [*messages, {"role": "user", "content": text}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    if engine.random_weights:
        talk.say(f"{_LABEL}: the text of this model means nothing")
    label = _label(engine)
    for event in rest.events("/chat/completions", body):
        if as_json:
            _emit(event, engine, rest.request_id)
        elif text := _text(event):
            print(f"{label}{text.lstrip()}" if label else text, end="", flush=True)
            label = ""
    if not as_json:
        print()
    if rest.request_id:
        talk.say(f"served as {rest.request_id}; `sage explain {rest.request_id}` says where and why")


def _label(engine: EngineStatus) -> str:
    """What stands before a text that nobody should take for a large model's."""
    if engine.random_weights:
        return f"[{_LABEL}] "
    return f"[{_NANO}] " if engine.model == _NANO else ""


def _text(event: dict[str, Any]) -> str:
    """The text of one event of the stream."""
    return "".join(choice.get("delta", {}).get("content") or "" for choice in event.get("choices", []))


def _emit(event: dict[str, Any], engine: EngineStatus, request_id: str) -> None:
    """One event of the stream: its text, or the usage of the last one."""
    random = {"random_weights": engine.random_weights}
    if text := _text(event):
        emit_line({"text": text, **random})
    if event.get("usage"):
        emit_line({"usage": event["usage"], "model": engine.model, "request_id": request_id, **random})


def embed(
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts; without any, or for `-`, the lines of standard input.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Its id; by default the first embedding model.")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Embed texts; --json prints one line with a vector for each."""
    lines = [line for line in _texts(texts or []) if line.strip()]
    rest, engine = _find(model, config, "embed")
    raw = rest.call("POST", "/embeddings", {"model": model or engine.model, "input": lines})
    vectors = [item["embedding"] for item in json.loads(raw)["data"]]
    if as_json:
        for text, vector in zip(lines, vectors, strict=True):
            emit_line({"text": text, "embedding": vector})
        return
    rows = [
        (text if len(text) <= 40 else f"{text[:39]}…", len(vector), " ".join(f"{x:+.4f}" for x in vector[:4]))
        for text, vector in zip(lines, vectors, strict=True)
    ]
    print(columns(("TEXT", "DIMENSIONS", "FIRST FOUR"), rows))


def rerank(
    ctx: typer.Context,
    query: Annotated[str, typer.Argument(help="What the documents are compared with.")],
    documents: Annotated[
        list[str] | None,
        typer.Argument(help="Documents; without any, or for `-`, the lines of standard input."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Its id; by default the first reranker.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Only this many, the best.")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Order documents by what a cross-encoder says of them and a query; --json prints one line for each."""
    talk: Talk = ctx.obj
    lines = [line for line in _texts(documents or []) if line.strip()]
    rest, engine = _find(model, config, "rerank")
    body: dict[str, Any] = {"model": model or engine.model, "query": query, "documents": lines}
    if top is not None:
        body["top_n"] = top
    results = json.loads(rest.call("POST", "/rerank", body))["results"]
    if as_json:
        for one in results:
            at, score = one["index"], one["relevance_score"]
            row = {"index": at, "score": score, "document": lines[at]}
            emit_line({**row, "random_weights": engine.random_weights})
        return
    if engine.random_weights:
        talk.say(f"{_LABEL}: the scores of this model mean nothing")
    rows = [(f"{one['relevance_score']:.4f}", one["index"], lines[one["index"]]) for one in results]
    label = f"SCORE [{_LABEL}]" if engine.random_weights else "SCORE"
    print(columns((label, "INDEX", "DOCUMENT"), rows))


def _texts(given: list[str]) -> list[str]:
    """The arguments, or standard input where there are none or `-`. Raises UsageError if both are empty."""
    from sage.common.errors import UsageError

    if given and given != ["-"]:
        return given
    if not given and sys.stdin.isatty():
        raise UsageError("There is no text.", hint="Give it as an argument, or pipe it in.")
    lines = list(_lines())
    if not any(line.strip() for line in lines):
        raise UsageError("Standard input is empty.", hint="Give the text as an argument, or pipe it in.")
    return lines


def _lines() -> Iterator[str]:
    for line in sys.stdin:
        yield line.rstrip("\n")


def _find(model: str | None, config: Path | None, task: str) -> tuple[Rest, EngineStatus]:
    """The data plane, and the engine that `model` names: the first one of its sort when it is None."""
    from sage.common.errors import NotFoundError
    from sage.middleware.rest import Rest
    from sage.middleware.stack import admin_client, client_key, read_run

    where = paths(config)
    run = read_run(where)
    engines = admin_client(where).engines().engines
    for engine in engines:
        if engine.model == model or (model is None and engine.task == task):
            return Rest(run.base_url, client_key(where), timeout=_TIMEOUT_S), engine
    served = ", ".join(engine.model for engine in engines) or "none"
    wanted, hint = repr(model), "Name one by --model."
    if model is None:  # no engine is of that sort, so that no name would help
        wanted = f"to {_VERBS[task]} with by default"
        hint = f"Add an engine with `task: {task}` to the configuration, and restart the stack."
    raise NotFoundError(f"There is no model {wanted}; served are: {served}.", hint=hint)
