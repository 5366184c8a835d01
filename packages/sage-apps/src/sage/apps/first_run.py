"""The first run: a whole stack, documents in, answers out, the `openai` client, what was served by whom."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sage.apps import questions as ask
from sage.apps.docs_qa import Models
from sage.apps.served import HEADINGS, Row, cells, summarise
from sage.apps.session import Answered, Session, label_of, to_json
from sage.apps.talk import Talk
from sage.common.api import Decision, RunInfo
from sage.common.config import EngineConfig, SageConfig
from sage.common.errors import SageError
from sage.middleware.client import HttpClient
from sage.middleware.operators.documents import documents, find_documents

__all__ = ["FirstRun", "Options", "Outcome", "Stack", "as_document", "next_steps"]

DECISIONS = 1000
SETTLE_S = 5.0
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Options:
    """What to run. `docs` None is the project's own, `own_docs`; `process_start` is in Unix seconds.

    `settle_s`: how long records of requests that are answered may lag behind.
    """

    docs: Path | None
    questions: tuple[str, ...]
    keep: bool
    process_start: float
    own_docs: Path = Path("docs")
    settle_s: float = SETTLE_S


class Stack(Protocol):
    """Where the engines come from: `sage.apps.own_stack`, or a stand-in."""

    @property
    def config(self) -> SageConfig:
        """What runs there."""
        ...

    def start(self, on_progress: Callable[[str], None]) -> RunInfo:
        """Bring it up."""
        ...

    def key(self) -> str:
        """The API key of a client."""
        ...

    def decisions(self, limit: int) -> list[Decision]:
        """The newest decision records."""
        ...


@dataclass(slots=True)
class Outcome:
    """What happened, filled in as it happens. Times in seconds since the process began."""

    stack_up_s: float = 0.0
    first_token_s: float = 0.0
    base_url: str = ""
    passages: int = 0
    answers: list[Answered] = field(default_factory=list)
    openai: dict[str, Any] = field(default_factory=dict)
    served: list[Row] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "base_url": self.base_url,
            "stack_up_s": self.stack_up_s,
            "first_token_s": self.first_token_s,
            "passages": self.passages,
            "answers": [to_json(answered) for answered in self.answers],
            "openai": self.openai,
            "served": [dataclasses.asdict(row) for row in self.served],
        }


class FirstRun:
    """Runs the steps in order; a step that does not work raises SageError and none follows."""

    def __init__(self, stack: Stack, options: Options, talk: Talk) -> None:
        self._stack, self._options, self._talk = stack, options, talk
        self._docs = options.docs or options.own_docs
        find_documents(self._docs)  # before anything is started
        self._questions = options.questions or self._choose()

    def run(self) -> Outcome:
        """All of it."""
        outcome, talk = Outcome(), self._talk
        begin = time.monotonic()
        run = self._stack.start(talk.say)
        outcome.base_url, outcome.stack_up_s = run.base_url, time.monotonic() - begin
        talk.say(f"stack: up in {outcome.stack_up_s:.1f} s at {run.base_url}")
        llm, embed = (self._engine(task) for task in ("generate", "embed"))
        models = Models(_served_as(llm), _served_as(embed))
        key = self._stack.key()
        asyncio.run(self._answer(outcome, models, llm.random_weights, key))
        talk.say(f"first streamed token: {outcome.first_token_s:.1f} s after the command was given")
        outcome.openai = self._call_openai(run.base_url, key, models, llm.random_weights)
        outcome.served = self._served(outcome)
        return outcome

    def _choose(self) -> tuple[str, ...]:
        if self._options.docs is None:
            return ask.OWN_DOCS
        return tuple(ask.from_headings(documents(self._docs)()))

    def _engine(self, task: str) -> EngineConfig:
        return next(engine for engine in self._stack.config.engines if engine.task == task)

    def _elapsed(self) -> float:
        return time.time() - self._options.process_start

    async def _answer(self, outcome: Outcome, models: Models, random_weights: bool, key: str) -> None:
        client = HttpClient(outcome.base_url, key)
        session = Session(models, self._talk, client, random_weights)

        def first_token() -> None:
            outcome.first_token_s = outcome.first_token_s or self._elapsed()

        try:
            store = await session.ingest(self._docs)
            outcome.passages = len(store)
            outcome.answers = await session.answer(store, self._questions, on_token=first_token)
        finally:
            await client.close()

    def _call_openai(self, base_url: str, key: str, models: Models, random_weights: bool) -> dict[str, Any]:
        """One chat and one embeddings call through the official client, as any program would make them."""
        import openai

        client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=0)
        with client:
            try:
                chat = client.chat.completions.create(
                    model=models.chat,
                    messages=[{"role": "user", "content": "Hello, who are you?"}],
                    max_tokens=64,
                )
                vectors = client.embeddings.create(model=models.embed, input="hello")
            except openai.OpenAIError as exc:
                raise SageError(f"The openai client failed at {base_url}: {exc}.") from exc
        text, dimensions = chat.choices[0].message.content or "", len(vectors.data[0].embedding)
        if not text or not dimensions:
            raise SageError(f"The openai client got an empty answer ({text!r}, {dimensions} dimensions).")
        label = label_of(models.chat, random_weights=random_weights)
        self._talk.out(f"\nopenai client, chat: {label}{text.strip()}")
        self._talk.out(f"openai client, embeddings: {dimensions} dimensions\n")
        return {
            "chat": text,
            "model": models.chat,
            "random_weights": random_weights,
            "embedding_dimensions": dimensions,
        }

    def _served(self, outcome: Outcome) -> list[Row]:
        decisions = self._settled()
        known = {decision.request_id: decision.outcome for decision in decisions}
        lost = [a.answer.request_id for a in outcome.answers if known.get(a.answer.request_id) != "done"]
        if lost:
            raise SageError(f"The control plane has no record of these requests as done: {', '.join(lost)}.")
        # A refusal that says when to come back is no failure: whoever was refused came back, or has raised.
        failed = [d for d in decisions if d.outcome not in ("done", "rejected")]
        if failed:
            first = failed[0]
            raise SageError(
                f"{len(failed)} requests were not served; the first is {first.outcome}: {first.reason}."
            )
        rows = summarise(decisions)
        self._talk.table(HEADINGS, [cells(row) for row in rows])
        return rows

    def _settled(self) -> list[Decision]:
        """The records once all are final: a client has its answer a moment before the times are noted."""
        deadline = time.monotonic() + self._options.settle_s
        while True:
            decisions = self._stack.decisions(DECISIONS)
            pending = any(d.outcome in ("waiting", "running") for d in decisions)
            if not pending or time.monotonic() >= deadline:
                return decisions
            time.sleep(_POLL_S)


def next_steps(keep: bool, base_url: str, key_file: Path) -> Sequence[str]:
    """What to try now."""
    if keep:
        return (
            f"The stack stays up at {base_url}; its key is in {key_file}.",
            'Try: sage chat "Hello"   sage status   sage app run docs-qa --docs DIR --question "…"',
            "Stop it with: sage down",
        )
    return (
        "Everything that was started is stopped.",
        "Try: sage quickstart with --keep (leaves it up), --docs DIR (your own), --model NAME (a real model)",
        'Or: sage up, then sage chat "Hello" and sage app run docs-qa --docs DIR --question "…"',
    )


def as_document(outcome: Outcome) -> str:
    """The outcome as one JSON document."""
    return json.dumps(outcome.to_json(), indent=2, ensure_ascii=False)


def _served_as(engine: EngineConfig) -> str:
    return engine.served_as or Path(engine.model).name
