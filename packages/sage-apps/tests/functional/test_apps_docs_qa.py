import asyncio
import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sage.apps.docs_qa import Models, ingest_flow
from sage.apps.first_run import FirstRun, Options, as_document, next_steps
from sage.apps.session import Session, label_of, to_json
from sage.apps.talk import Talk
from sage.common.api import Decision, RunInfo
from sage.common.config import EngineConfig, SageConfig
from sage.common.errors import EngineError, NotFoundError, SageError
from sage.middleware.client import HttpClient
from sage.middleware.operators.store import PassageStore
from sage.middleware.testing.scripted import Script, ScriptedEngine

MODELS = Models("scripted", "scripted")


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / "ports.md").write_text("# Ports\n\nThe gateway listens on port 8888 of the machine.\n")
    (tmp_path / "layers.md").write_text("# Layers\n\nThere are six layers from common to interfaces.\n")
    return tmp_path


async def test_the_flows_answer_over_a_real_socket(docs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with ScriptedEngine() as engine:
        client = HttpClient(f"{engine.url}/v1", "key")
        session = Session(MODELS, Talk(), client, random_weights=True)
        store = await session.ingest(docs)
        tokens: list[int] = []
        (first, second) = await session.answer(
            store,
            ["Which port does the gateway have?", "How many layers?"],
            on_token=lambda: tokens.append(1),
        )
        await client.close()
    assert len(store) == 2
    assert len(tokens) == 6
    assert first.answer.text == "one two three"
    assert first.answer.extract is not None
    assert first.answer.extract.source == "ports.md"
    assert set(second.answer.sources) == {"ports.md", "layers.md"}
    assert 0 < first.ttft_s <= first.seconds
    said = capsys.readouterr()
    assert "A: [RANDOM-WEIGHTS] one two three\n" in said.out
    assert "best sentence: “The gateway listens on port 8888 of the machine.” — ports.md" in said.out
    assert "2 documents, 2 passages" in said.err
    assert json.loads(json.dumps(to_json(first)))["extract"]["source"] == "ports.md"


def test_each_text_is_labelled_with_what_wrote_it() -> None:
    assert label_of("sage-nano", random_weights=False) == "[sage-nano] "
    assert label_of("sage-random-llama", random_weights=True) == "[RANDOM-WEIGHTS] "


async def test_an_engine_that_breaks_off_is_an_error(docs: Path) -> None:
    async with ScriptedEngine() as engine:
        client = HttpClient(f"{engine.url}/v1", "key")
        session = Session(MODELS, Talk(data=False), client)
        store = await session.ingest(docs)
        engine.script = Script(cut_at=40)
        with pytest.raises(SageError) as caught:
            await session.answer(store, ["Which port?"])
        await client.close()
    assert isinstance(caught.value, EngineError) or isinstance(caught.value.__cause__, EngineError)


async def test_a_model_without_words_is_an_error(docs: Path) -> None:
    async with ScriptedEngine(script=Script(words=(" ",))) as engine:
        client = HttpClient(f"{engine.url}/v1", "key")
        session = Session(MODELS, Talk(data=False), client)
        store = await session.ingest(docs)
        with pytest.raises(SageError, match="gave no text"):
            await session.answer(store, ["Which port?"])
        await client.close()


async def test_empty_documents_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("\n\n")
    with pytest.raises(SageError, match="are empty"):
        await Session(MODELS, Talk(data=False), HttpClient("http://127.0.0.1:1/v1", "k")).ingest(tmp_path)


def test_a_missing_folder_is_refused_while_building(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        ingest_flow(tmp_path / "absent", PassageStore(), MODELS)


@dataclass
class ScriptedStack:
    """One scripted engine as the whole stack; its records are made up, as nothing decides there."""

    url: str
    records: list[Decision] = field(default_factory=list)
    later: list[Decision] = field(default_factory=list)
    starts: int = 0

    @property
    def config(self) -> SageConfig:
        engine = EngineConfig(name="e", kind="openai", model="scripted", random_weights=True)
        return SageConfig(engines=(engine, engine.model_copy(update={"task": "embed"})))

    def start(self, on_progress: Callable[[str], None]) -> RunInfo:
        self.starts += 1
        on_progress("ready")
        urls: dict[str, Any] = dict.fromkeys(("admin_url", "health_url"), self.url)
        return RunInfo(pid=1, version="0", base_url=f"{self.url}/v1", started_at=0.0, **urls)

    def key(self) -> str:
        return "key"

    def decisions(self, limit: int) -> list[Decision]:
        found, self.records = self.records, self.later or self.records
        return found


def record(**changes: Any) -> Decision:
    known: dict[str, Any] = dict.fromkeys(("tenant", "model", "route", "policy"), "x")
    known |= {"request_id": "", "at": 0.0, "request_class": "chat", "engine": "e", "reason": "only one"}
    return Decision(**(known | {"outcome": "done"} | changes))


def options(docs: Path | None, *questions: str) -> Options:
    return Options(docs, questions, keep=False, process_start=time.time(), settle_s=0)


async def test_a_first_run_does_every_step(docs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with ScriptedEngine() as engine:
        stack = ScriptedStack(engine.url, [record(queue_s=0.001), record(request_class="embed_bulk")])
        outcome = await asyncio.to_thread(FirstRun(stack, options(docs), Talk()).run)
    assert [a.answer.question for a in outcome.answers] == [
        "What is said about “Layers”?",
        "What is said about “Ports”?",
    ]
    assert outcome.openai == {
        "chat": "one two three",
        "model": "scripted",
        "random_weights": True,
        "embedding_dimensions": 8,
    }
    assert [row.request_class for row in outcome.served] == ["chat", "embed_bulk"]
    assert 0 < outcome.stack_up_s <= outcome.first_token_s
    out = capsys.readouterr().out
    assert "openai client, chat: [RANDOM-WEIGHTS] one two three" in out
    assert "only one" in out
    assert json.loads(as_document(outcome))["passages"] == 2


async def test_the_table_waits_for_records_that_lag_behind(docs: Path) -> None:
    running, done = (record(outcome=outcome, latency_s=0.5) for outcome in ("running", "done"))
    async with ScriptedEngine() as engine:
        stack = ScriptedStack(engine.url, [record(), running], later=[record(), done])
        patient = dataclasses.replace(options(docs, "Which port?"), settle_s=60)
        outcome = await asyncio.to_thread(FirstRun(stack, patient, Talk(data=False)).run)
    assert [(row.done, row.requests) for row in outcome.served] == [(2, 2)]


def test_own_documents_may_lie_elsewhere_and_have_their_own_questions(docs: Path) -> None:
    stack = ScriptedStack("http://127.0.0.1:1")
    FirstRun(stack, dataclasses.replace(options(None), own_docs=docs), Talk())
    with pytest.raises(NotFoundError, match="elsewhere"):
        FirstRun(stack, dataclasses.replace(options(None), own_docs=docs / "elsewhere"), Talk())


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([record(), record(request_id="r", outcome="running")], "not served; the first is running"),
        ([], "no record of these requests as done"),
        ([record(), record(request_id="r", outcome="failed", reason="it broke")], "1 requests .* it broke"),
    ],
)
async def test_a_first_run_fails_when_the_records_do_not_bear_it_out(
    docs: Path, records: list[Decision], message: str
) -> None:
    async with ScriptedEngine() as engine:
        run = FirstRun(ScriptedStack(engine.url, records), options(docs, "Which port?"), Talk(data=False))
        with pytest.raises(SageError, match=message):
            await asyncio.to_thread(run.run)


async def test_a_first_run_fails_when_the_openai_client_does(docs: Path) -> None:
    async with ScriptedEngine() as engine:
        stack = ScriptedStack(engine.url, [record()])
        run = FirstRun(stack, options(docs, "Which port?"), Talk(data=False))
        engine.next_scripts.extend([Script()] * 4 + [Script(status=500)])
        with pytest.raises(SageError, match="openai client failed"):
            await asyncio.to_thread(run.run)


def test_a_missing_folder_is_found_before_anything_starts(tmp_path: Path) -> None:
    stack = ScriptedStack("http://127.0.0.1:1")
    with pytest.raises(NotFoundError, match="does not exist"):
        FirstRun(stack, options(tmp_path / "absent"), Talk())
    assert stack.starts == 0


def test_next_steps_depend_on_what_is_left(tmp_path: Path) -> None:
    assert any("sage down" in line for line in next_steps(True, "http://x/v1", tmp_path))
    assert "stopped" in next_steps(False, "http://x/v1", tmp_path)[0]
