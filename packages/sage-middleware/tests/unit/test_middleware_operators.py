import doctest
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sage.common.errors import NotFoundError, UnreachableError, UsageError
from sage.common.paths import SagePaths
from sage.kernel.flow import Flow
from sage.kernel.options import Batch, Part
from sage.kernel.registry import Registry
from sage.kernel.runtime.local import LocalEnvironment
from sage.libs.retrieval import tokenize
from sage.middleware.client import Delta, HttpClient, Message
from sage.middleware.engines.port import Usage
from sage.middleware.operators.connect import connect
from sage.middleware.operators.documents import documents, find_documents, split
from sage.middleware.operators.generation import Generate, prompt
from sage.middleware.operators.records import Answer, Document, Embedded, Passage, Question, Ranked, Retrieval
from sage.middleware.operators.retrieval import Embed, Focus, Index, Refine, Rerank, Retrieve
from sage.middleware.operators.store import PassageStore
from sage.middleware.vector.port import FloatMatrix, FloatVector

WORDS = ["port", "layer", "engine", "gateway", "queue", "index"]
TEXTS = {
    "ports.md": "# Ports\n\nThe gateway listens on port 8888. Nothing else listens there.\n",
    "layers.md": "# Layers\n\nEvery layer may import lower layers only. There are six of them.\n",
    "engines.txt": "An engine is a supervised process. Its queue is bounded.\n",
}


class WordClient:
    """Embeds a text as counts of a few words, and answers with its last message, word by word."""

    def __init__(self) -> None:
        self.embedded: list[list[str]] = []
        self.bulk = False
        self.asked: list[dict[str, Any]] = []
        self.closed = False

    async def embed(self, texts: Sequence[str], *, model: str, bulk: bool = False) -> FloatMatrix:
        self.bulk = bulk
        self.embedded.append(list(texts))
        rows = [[float(tokenize(t).count(w)) + 0.01 for w in WORDS] for t in texts]
        return np.array(rows, dtype=np.float32)

    async def rerank(self, query: str, documents: Sequence[str], *, model: str) -> FloatVector:
        self.asked.append({"model": model, "query": query, "documents": list(documents)})
        return np.array([len(set(query) & set(one)) for one in documents], dtype=np.float32)

    async def chat(self, messages: Sequence[Message], *, model: str, **params: Any) -> AsyncIterator[Delta]:
        self.asked.append({"model": model, "messages": list(messages), **params})
        for word in ("It ", "is ", "[1]."):
            yield Delta(word, request_id="req-1")
        yield Delta("", Usage(7, 3), "req-1")

    async def models(self) -> list[str]:
        return ["words"]

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    (folder / "sub" / "more.rst").write_bytes(b"caf\xe9 and more words")
    (folder / "image.png").write_bytes(b"\x89PNG")
    (folder / ".hidden.md").write_text("secret")
    return folder


@pytest.fixture
def client() -> WordClient:
    return WordClient()


async def filled(client: WordClient) -> PassageStore:
    store = PassageStore()
    passages = [p for name, text in TEXTS.items() for p in split()(Document(name, text))]
    store.add(await Embed("words", client=client)(passages))
    assert client.bulk
    return store


def test_documents_are_sorted_named_and_decoded(docs: Path) -> None:
    found = list(documents(docs)())
    assert [d.name for d in found] == ["engines.txt", "layers.md", "ports.md", "sub/more.rst"]
    assert found[-1].text == "caf\ufffd and more words"
    assert [d.name for d in documents(docs, [".rst"])()] == ["sub/more.rst"]


def test_a_folder_that_cannot_be_read_is_named_at_once(docs: Path) -> None:
    with pytest.raises(NotFoundError, match="absent does not exist") as caught:
        documents(docs / "absent")
    assert caught.value.exit_code == 5
    with pytest.raises(NotFoundError, match="is a file"):
        find_documents(docs / "ports.md")
    with pytest.raises(NotFoundError, match=r"has no documents; they end in \.log"):
        find_documents(docs, [".log"])


def test_split_uses_the_seams_of_markdown_and_drops_blanks() -> None:
    text = "x" * 50 + "\n\n# Head\n\nbody text\n"
    assert split(60, 0)(Document("a.md", text))[-1].text.startswith("# Head")
    assert split()(Document("a.txt", " \n\n ")) == []
    assert split()(Document("b.txt", "word"))[0].id == "b.txt#0-4"
    with pytest.raises(UsageError, match="overlap"):
        split(size=10, overlap=10)


async def test_the_store_finds_by_words_and_by_vectors(client: WordClient) -> None:
    store = await filled(client)
    vector = (await client.embed(["queue of an engine"], model="words"))[0]
    best = store.search("supervised process", vector, 2)
    assert len(best) == 2
    assert best[0].passage.doc == "engines.txt"
    assert best[0].cosine is not None
    assert best[0].score == pytest.approx(2 / 61)


async def test_the_store_replaces_a_passage_and_survives_a_round_trip(
    client: WordClient, tmp_path: Path
) -> None:
    store = await filled(client)
    store.add(await Embed("words", client=client)([Passage("ports.md", "changed", 0, 7)]))
    store.add(await Embed("words", client=client)([Passage("ports.md", "changed again", 0, 7)]))
    assert len(store) == 4
    store.save(tmp_path / "index")
    again = PassageStore.load(tmp_path / "index")
    vector = (await client.embed(["port"], model="words"))[0]
    assert again.search("changed again", vector, 3) == store.search("changed again", vector, 3)


def test_an_empty_store_finds_nothing_and_cannot_be_saved(tmp_path: Path) -> None:
    store = PassageStore()
    store.add([])
    assert store.search("x", np.ones(3, dtype=np.float32), 3) == []
    with pytest.raises(UsageError, match="nothing to save"):
        store.save(tmp_path)


def test_vectors_of_another_width_are_refused() -> None:
    store = PassageStore()
    store.add([Embedded(Passage("a", "x", 0, 1), np.ones(2, dtype=np.float32))])
    with pytest.raises(UsageError, match="2 dimensions"):
        store.add([Embedded(Passage("b", "x", 0, 1), np.ones(3, dtype=np.float32))])


async def test_a_flow_ingests_in_batches_and_saves(docs: Path, client: WordClient, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    flow = Flow("ingest")
    embedded = (
        flow.source(documents(docs)).flatmap(split()).map_batch(Embed("words", client=client), Batch(3))
    )
    embedded.sink(Index(folder))
    await LocalEnvironment().run(flow)
    assert sum(map(len, client.embedded)) == len(PassageStore.load(folder)) == 4
    assert max(map(len, client.embedded)) <= 3
    assert not client.closed  # a client that was given is the giver's


async def test_an_index_goes_on_from_a_checkpoint(client: WordClient, tmp_path: Path) -> None:
    """Every passage is there once, also where the last of them were written and not yet counted on."""
    texts = [f"passage number {number}" for number in range(6)]
    passages = [Passage("a.txt", text, 10 * at, 10 * at + 9) for at, text in enumerate(texts)]
    items = await Embed("words", client=client)(passages)
    folder = tmp_path / "index"
    first = Index(folder)
    await first.recover(0, None)
    await first.prepare(1)
    await first.commit(1)
    assert not folder.exists(), "nothing came before the first checkpoint"
    await first.write(2, items[:3])
    await first.prepare(2)
    await first.commit(2)
    await first.write(3, items[3:5])
    await first.prepare(3)  # and here it was killed: the checkpoint was not complete
    second = Index(folder)
    await second.recover(2, None)
    await second.write(3, items[3:])
    await second.prepare(3)
    await second.commit(3)
    found = PassageStore.load(folder)
    assert len(found) == 6
    assert {one.passage.text for one in found.search("passage", items[0].vector, 6)} == set(texts)


async def test_an_index_in_memory_alone_cannot_go_on_from_a_checkpoint() -> None:
    index = Index(store=PassageStore())
    await index.recover(0, None)
    await index.prepare(1)
    await index.commit(1)
    with pytest.raises(UsageError, match="what it held is gone"):
        await index.recover(1, None)


async def test_a_flow_answers_with_parts_sources_and_the_best_sentence(client: WordClient) -> None:
    seen: list[str] = []
    flow = Flow("answer")
    found = flow.requests(Question).map(Retrieve("words", k=2, store=await filled(client), client=client))
    generate = Generate(
        "llm", 9, {"temperature": 0}, client=client, on_delta=lambda _, d: seen.append(d.text)
    )
    answered = found.map(prompt()).map(generate)
    flow.reply(answered.map(Refine("words", client=client)))
    async with await LocalEnvironment().submit(flow) as job:
        stream = job.stream(Question("On which port does the gateway listen?"))
        parts = [part.text async for part in stream]
        answer: Answer = await stream.reply()
    assert parts == seen == ["It ", "is ", "[1].", ""]
    assert (answer.text, answer.usage, answer.request_id) == ("It is [1].", Usage(7, 3), "req-1")
    assert answer.sources[0] == "ports.md"
    assert answer.extract is not None
    assert (answer.extract.text, answer.extract.source) == ("The gateway listens on port 8888.", "ports.md")
    (asked,) = client.asked
    assert (asked["model"], asked["max_tokens"], asked["temperature"]) == ("llm", 9, 0)
    assert "[1] (ports.md)\n# Ports" in asked["messages"][1]["content"]


async def test_refine_without_a_model_calls_nothing(client: WordClient) -> None:
    ranked = Ranked(Passage("a.md", "The port is 8888 here. Other words stand there.", 0, 1), 1.0, None)
    answer = Answer(Retrieval(Question("which port"), (ranked,)), "x", None, "")
    refine = Refine()
    await refine.setup()
    extract = (await refine(answer)).extract
    assert extract is not None
    assert extract.text == "The port is 8888 here."


def parts(focused: Retrieval) -> list[str]:
    return [one.passage.text for one in focused.found]


async def test_focus_keeps_the_sentences_that_fit_in_their_passages(client: WordClient) -> None:
    found = retrieval(
        "Every layer may import lower layers. The gateway listens on its port.",
        "Nothing of this fits at all.",
        "The port of the gateway is bounded. Engines have queues of their own.",
    )
    ask = replace(found, question=Question("On which port does the gateway listen?"))
    expected = ["The gateway listens on its port.", "The port of the gateway is bounded."]
    assert parts(await Focus(2)(ask)) == expected
    assert client.embedded == []
    assert parts(await Focus(2, "words", client=client)(ask)) == expected
    assert client.embedded[0][0] == ask.question.text
    assert parts(await Focus(99)(ask)) == [one.passage.text for one in ask.found]
    assert parts(await Focus(1)(retrieval())) == []
    labels = retrieval("Port 1", "Port 2")  # no sentence, but something to read all the same
    assert await Focus(1)(labels) is labels


async def test_focus_keeps_something_where_nothing_fits() -> None:
    ask = replace(retrieval("One two three four. Five six seven eight."), question=Question("xylophone"))
    focused = await Focus(1)(ask)
    assert parts(focused) == ["One two three four."]
    assert focused.extract is None


async def test_the_best_sentence_is_that_of_all_not_of_those_that_focus_left() -> None:
    text = "The port is 8888 for all of them. The port of the port is a port there."
    ask = replace(retrieval("Nothing is here to see.", text), question=Question("which port has a port?"))
    focused = await Focus(1)(ask)
    assert focused.extract is not None
    assert focused.extract.source == "1.md"
    answer = await Refine()(Answer(focused, "x", None, ""))
    assert answer.extract is focused.extract


@pytest.mark.parametrize("sentences", [0, -1])
def test_focus_is_told_how_many_at_least_one(sentences: int) -> None:
    with pytest.raises(UsageError, match=f"sentences is {sentences}; it has to be at least 1"):
        Focus(sentences)


async def test_a_flow_fills_the_store_that_it_was_given(docs: Path, client: WordClient) -> None:
    store = PassageStore()
    flow = Flow("ingest")
    embedded = flow.source(documents(docs)).flatmap(split()).map_batch(Embed("words", client=client))
    embedded.sink(Index(store=store))
    await LocalEnvironment().run(flow)
    assert len(store) == 4


async def test_rerank_puts_the_best_first_and_keeps_so_many(client: WordClient) -> None:
    found = retrieval("xyz", "ab", "abc", "ba")
    ask = replace(found, question=Question("abc"))
    best = await Rerank("ranker", client=client)(ask)
    assert [(one.passage.text, one.score) for one in best.found] == [
        ("abc", 3.0),
        ("ab", 2.0),
        ("ba", 2.0),
        ("xyz", 0.0),
    ]
    assert best.question.text == "abc"
    assert client.asked == [{"model": "ranker", "query": "abc", "documents": ["xyz", "ab", "abc", "ba"]}]
    two = await Rerank("ranker", 2, client=client)(ask)
    assert [one.passage.text for one in two.found] == ["abc", "ab"]
    assert (await Rerank("ranker", client=client)(retrieval())).found == ()
    with pytest.raises(UsageError, match="k is -1"):
        Rerank("ranker", -1)


def test_the_example_of_rerank_is_true() -> None:
    tests = doctest.DocTestFinder(recurse=False).find(Rerank, globs={"Rerank": Rerank})
    assert [doctest.DocTestRunner().run(one) for one in tests] == [doctest.TestResults(0, 7)]


def retrieval(*texts: str) -> Retrieval:
    found = tuple(Ranked(Passage(f"{i}.md", text, 0, len(text)), 1.0, None) for i, text in enumerate(texts))
    return Retrieval(Question("Why?"), found)


def test_a_prompt_numbers_its_passages_and_keeps_to_its_room() -> None:
    system, user = prompt("Be brief.", max_chars=10)(retrieval("a" * 6, "b" * 4, "c")).messages
    assert system == {"role": "system", "content": "Be brief."}
    assert user["content"] == "Passages:\n\n[1] (0.md)\naaaaaa\n\n[2] (1.md)\nbbbb\n\nQuestion: Why?"
    cut = prompt(max_chars=3)(retrieval("abcdef", "g")).messages[1]["content"]
    assert "[1] (0.md)\nabc\n\nQuestion" in cut
    assert "(none were found)" in prompt()(retrieval()).messages[1]["content"]
    with pytest.raises(UsageError, match="max_chars is 0"):
        prompt(max_chars=0)


async def test_generate_yields_parts_and_the_answer_last(client: WordClient) -> None:
    got = [x async for x in Generate("llm", client=client)(prompt()(retrieval("text")))]
    assert all(isinstance(x, Part) for x in got[:-1])
    assert isinstance(got[-1], Answer)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Index(), "neither was given"),
        (lambda: Retrieve("m"), "give one of them"),
        (lambda: Retrieve("m", Path("x"), store=PassageStore()), "give one of them"),
        (lambda: Retrieve("m", Path("x"), 0), "k is 0"),
    ],
)
def test_wiring_that_cannot_work_is_refused(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


async def test_an_operator_outside_of_a_flow_says_so() -> None:
    with pytest.raises(UsageError, match="Embed is used outside of a flow"):
        await Embed("m")([])
    with pytest.raises(UsageError, match="Retrieve is used outside of a flow"):
        await Retrieve("m", Path("x"))("question")


async def test_connect_uses_the_environment_or_the_running_stack(tmp_path: Path) -> None:
    client = connect({"SAGE_BASE_URL": "http://127.0.0.1:1/v1", "SAGE_API_KEY": "k"})
    assert isinstance(client, HttpClient)
    await client.close()
    with pytest.raises(UsageError, match="SAGE_API_KEY is not"):
        connect({"SAGE_BASE_URL": "http://127.0.0.1:1/v1"})
    with pytest.raises(UnreachableError, match="No stack is running"):
        connect({}, SagePaths(tmp_path, tmp_path, tmp_path))


@pytest.mark.parametrize(
    "name",
    ["documents", "split", "embed", "index", "retrieve", "rerank", "focus", "prompt", "generate", "refine"],
)
def test_operators_are_found_by_name(name: str) -> None:
    role: Any = {"documents": "source", "index": "sink"}.get(name, "function")
    assert callable(Registry().get(name, role).factory)


def test_operators_are_made_from_plain_parameters(tmp_path: Path) -> None:
    registry = Registry()
    made = registry.get("retrieve", "function").make({"model": "m", "folder": str(tmp_path), "k": 2})
    assert isinstance(made, Retrieve)
    assert isinstance(registry.get("index", "sink").make({"folder": str(tmp_path)}), Index)
