"""Measure a model folder: `evaluate.py FOLDER [--out FILE] [--items N] [--docs FOLDER]`.

Right sentence and right citation on generated items that training never saw, refusals, the project's own
documentation through retrieval, and speed. The model runs as its users run it: chat template, greedy, text.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, cast

import torch
from tools.nano.items import Asked, Pool, Stage
from tools.nano.layout import REFUSAL_TEXT
from tools.nano.tokenizer import Encoder

from sage.apps.docs_qa import FEW, PASSAGE_CHARS, AnswerOptions
from sage.libs.retrieval import best_sentence, sentences_of
from sage.middleware.operators.documents import documents, split
from sage.middleware.operators.generation import prompt
from sage.middleware.operators.retrieval import Embed, Focus, Retrieve
from sage.middleware.operators.store import PassageStore

if TYPE_CHECKING:
    from sage.middleware.client import ModelClient
    from sage.middleware.operators.records import Retrieval

__all__ = ["Reader", "docs_report", "generated_report"]

_SEED = 990_001  # of items that are held out
_CITED = re.compile(r"\s*\[(\d)\]\s*$")
_QUESTIONS = Path(__file__).parents[2] / "benchmarks/nano/docs_questions.json"


class Reader:
    """The model behind its chat template."""

    def __init__(self, folder: Path, longest: int = 192) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder)
        self.model.eval()
        self._longest = longest

    def answers(self, prompts: Sequence[str], rows: int = 16) -> list[str]:
        """What it says to each user message."""
        texts = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True
            )
            for p in prompts
        ]
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        said = [""] * len(texts)
        for at in range(0, len(order), rows):
            chosen = order[at : at + rows]
            batch = self.tokenizer(
                [texts[i] for i in chosen], return_tensors="pt", padding=True, add_special_tokens=False
            )
            batch.pop("token_type_ids", None)
            with torch.no_grad():
                out = self.model.generate(**batch, max_new_tokens=self._longest)
            for i, ids in zip(chosen, out[:, batch["input_ids"].shape[1] :], strict=True):
                said[i] = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
        return said

    def speed(self, prompt: str, tokens: int = 64) -> float:
        """New tokens per second for one prompt."""
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        batch = self.tokenizer(text, return_tensors="pt", add_special_tokens=False)
        batch.pop("token_type_ids", None)
        begun = time.perf_counter()
        with torch.no_grad():
            self.model.generate(**batch, max_new_tokens=tokens, min_new_tokens=tokens)
        return tokens / (time.perf_counter() - begun)


def generated_report(reader: Reader, encoder: Encoder, items: int) -> dict[str, Any]:
    """Held-out items with 3, 5 and 8 passages, and items that nothing answers."""
    report: dict[str, Any] = {}
    refused_wrongly = answered = 0
    for passages in (3, 5, 8):
        stage = Stage((passages, passages), (1, 3), 28, 0.4, 0.0)
        asked = _asked(encoder, stage, items, _SEED + passages)
        said = reader.answers([a.prompt for a in asked])
        pairs = list(zip(asked, said, strict=True))
        report[str(passages)] = {
            "items": items,
            "right_sentence": _share(_CITED.sub("", s) == a.answer for a, s in pairs),
            "right_citation": _share(_cited(s) == a.number for a, s in pairs),
            "chance_sentence": round(sum(1 / a.sentences for a in asked) / items, 3),
            "chance_citation": round(1 / passages, 3),
        }
        refused_wrongly += sum(s == REFUSAL_TEXT.strip() for s in said)
        answered += items
    stage = Stage((5, 5), (1, 3), 28, 0.4, 1.0)
    said = reader.answers([a.prompt for a in _asked(encoder, stage, items, _SEED)])
    refused = sum(s == REFUSAL_TEXT.strip() for s in said)
    report["refusal"] = {
        "items_without_answer": items,
        "items_with_answer": answered,
        "recall": round(refused / items, 3),
        "precision": round(refused / max(1, refused + refused_wrongly), 3),
        "refused_wrongly": round(refused_wrongly / answered, 3),
    }
    return report


def _asked(encoder: Encoder, stage: Stage, items: int, seed: int) -> list[Asked]:
    rng = Random(seed)
    pool = Pool(encoder, rng, 3000, stage.words)
    return [pool.asked(stage) for _ in range(items)]


def _cited(text: str) -> int:
    found = _CITED.search(text)
    return int(found[1]) if found else 0


def _share(hits: Iterable[bool]) -> float:
    found = list(hits)
    return round(sum(found) / max(1, len(found)), 3)


class _Embedder:
    """MiniLM in this process, as a client of models."""

    def __init__(self) -> None:
        from sentence_transformers import SentenceTransformer

        from sage.middleware.models import minilm_folder

        self._model = SentenceTransformer(str(minilm_folder()))

    async def embed(self, texts: Sequence[str], *, model: str, bulk: bool = False) -> Any:  # noqa: ARG002
        return self._model.encode(list(texts), batch_size=32, normalize_embeddings=True)


async def _retrieved(docs: Path, questions: Sequence[str], sentences: int) -> list[Retrieval]:
    """What `docs-qa` finds for each question; `sentences` as of `AnswerOptions`."""
    client = cast("ModelClient", _Embedder())
    cut = split(PASSAGE_CHARS, overlap=0)
    store = PassageStore()
    store.add(await Embed("", client=client)([p for document in documents(docs)() for p in cut(document)]))
    found = [
        await Retrieve("", k=AnswerOptions().passages, store=store, client=client)(question)
        for question in questions
    ]
    if not sentences:
        return found
    return [await Focus(sentences, "MiniLM", client=client)(one) for one in found]


def docs_report(reader: Reader, docs: Path, sentences: int) -> dict[str, Any]:
    """Questions about the documentation: embedded, retrieved, laid out and answered as `docs-qa` does it."""
    questions = json.loads(_QUESTIONS.read_text(encoding="utf-8"))
    found = asyncio.run(_retrieved(docs, [question for question, _ in questions], sentences))
    ask = prompt(max_chars=AnswerOptions().max_chars)
    prompts = [str(ask(one).messages[1]["content"]) for one in found]
    said = reader.answers(prompts)
    rows = []
    for (question, key), text, retrieval, asked in zip(questions, said, found, prompts, strict=True):
        texts = [ranked.passage.text for ranked in retrieval.found]
        numbers = [number for number, one in enumerate(texts, start=1) if _flat(key) in _flat(one)]
        extract = best_sentence(question, sentences_of([("", one) for one in texts]))
        rows.append(
            {
                "question": question,
                "answer": text,
                "retrieved": bool(numbers),
                "right_sentence": _flat(key) in _flat(text) and _flat(_CITED.sub("", text)) in _flat(asked),
                "right_citation": _cited(text) in numbers,
                "words_alone": extract is not None and _flat(key) in _flat(extract.text),
            }
        )
    names = ("retrieved", "right_sentence", "right_citation", "words_alone")
    return {
        "questions": len(rows),
        **{name: _share(bool(r[name]) for r in rows) for name in names},
        "rows": rows,
    }


def _flat(text: str) -> str:
    return " ".join(text.replace("**", "").split())


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--rows", action="store_true", help="print each question of the documentation")
    args = parser.parse_args()
    torch.set_num_threads(2)
    reader = Reader(args.folder)
    encoder = Encoder(reader.tokenizer.backend_tokenizer)
    report: dict[str, Any] = {"parameters": sum(p.numel() for p in reader.model.parameters())}
    report["generated"] = generated_report(reader, encoder, args.items)
    for name, sentences in (("docs", FEW), ("docs_of_whole_passages", 0)) if args.docs else ():
        report[name] = docs_report(reader, args.docs, sentences)
        rows = report[name].pop("rows")
        if args.rows:
            print(json.dumps(rows, indent=1))
    asked = _asked(encoder, Stage((4, 4), (5, 8), 28, 0.4, 0.0), 2, _SEED)
    reader.speed(asked[0].prompt)
    report["tokens_per_s"] = round(reader.speed(asked[1].prompt))
    text = json.dumps(report, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
