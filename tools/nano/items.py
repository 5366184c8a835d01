"""Items to train on and to measure with: a question, sentences in passages, which one answers."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

from tools.nano import layout
from tools.nano.layout import (
    ANSWER,
    BEATS,
    BEGIN,
    END,
    FIRST_B,
    FIRST_E,
    FIRST_S,
    MARKS,
    NONE,
    PASSAGES,
    QUESTION,
    TALK,
    stretches,
)
from tools.nano.sentences import cues, fact
from tools.nano.tokenizer import Encoder
from tools.nano.words import FORM, pieces, stem

__all__ = ["Asked", "Item", "Pool", "Stage"]

_ANSWERS, _FAILS = 0.33, 0.28  # of the question an answer has at least, and other sentences at most
# Of how an answer stands out; chosen so, 48 of 60 questions on the documentation get their sentence.
_LEAD, _BREVITY, _ORDER = 1.3, 0.15, 0.4
_TWIN = 0.3  # the share of items in which another sentence has the answer's words in another order
_STOPS = ".!?:"  # a sentence is cut at them
_BARE = 0.12  # the share of items without passages
_STRANGE = 0.5  # the share of items in which every other word is made of any tokens: all are to be copied
_TALK = (
    "Hello", "Hi", "Say hello.", "Hello, who are you?", "What can you do?", "Tell me a joke.",
    "How are you?", "Thanks!", "Write a poem about the sea.", "What is 2 + 2?", "Who made you?",
    "Good morning", "Can you help me?", "ping", "test", "Say hi", "Reply with one word.",
    "Translate this into German.", "Count to three.", "What is your name?", "Are you a robot?",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stage:
    """How hard items are.

    Ranges of passages and of sentences in a passage, words of a sentence at most, the share of sentences with
    a word of the question, the share of questions that nothing answers. `copies`: how many other sentences
    are copied behind the answer. `written`: the passages are whole ones that people wrote.
    """

    passages: tuple[int, int]
    sentences: tuple[int, int]
    words: int
    near: float
    unanswered: float
    copies: int = 0
    written: bool = False


@dataclass(slots=True)
class Item:
    """Token ids, and what is known of them.

    `start`: where the answer begins in `ids`. `flags`: per last token of a word 1 where the word is in the
    question, 0 where it is not; -1 for other tokens. `owner`: per token the mark of its sentence, or -1.
    `ends`: where the sentences end. `gold`: which of them answers, or -1. `shares`: how much of the question
    each sentence has, by weight of its words, from 0 to 1. `copies`: where the marks of further sentences
    stand that are copied behind the answer. `again`: it was not answered as it was to be, and so comes twice.
    """

    ids: list[int]
    start: int
    flags: list[int]
    owner: list[int]
    ends: list[int]
    gold: int
    shares: list[float]
    copies: list[int] = field(default_factory=list)
    again: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """An item as a user message: `answer` is a sentence of passage `number`; or empty and 0."""

    prompt: str
    answer: str
    number: int
    sentences: int


_Words = tuple[tuple[tuple[int, ...], str | None], ...]
"""The tokens of each piece and its stem; None for a beat, which gets its number when it is laid out."""


@dataclass(frozen=True, slots=True)
class _Question:
    text: str
    words: _Words
    stems: frozenset[str]
    pairs: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class _Known:
    text: str
    words: _Words
    matter: tuple[str, ...]
    stems: frozenset[str]
    pairs: frozenset[tuple[str, str]]
    questions: tuple[_Question, ...]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """`kept`: the facts in order, `numbers`: their passages; `shares` and `gold` as of `Item`."""

    asked: _Question
    kept: list[int]
    numbers: list[int]
    shares: list[float]
    gold: int


class Pool:
    """Facts that items are made of. Sentences that share a word with a question are found by the word.

    `written`: passages that people wrote, for stages that ask for such.
    """

    def __init__(
        self, encoder: Encoder, rng: Random, size: int, words: int, written: Sequence[Sequence[str]] = ()
    ) -> None:
        self._rng, self._encoder = rng, encoder
        self._facts = [self._know(words) for _ in range(size)]
        self._size = size  # what people wrote comes after these, then twins
        self._written: list[range] = []
        self._near: dict[str, list[int]] = defaultdict(list)
        for number, told in enumerate(written):
            first = len(self._facts)
            self._facts += [self._read(text, ()) for text in told]
            self._written.append(range(first, len(self._facts)))
            for s in sorted(frozenset().union(*(known.stems for known in self._facts[first:]))):
                self._near[s].append(number)
        self._by_stem: dict[str, list[int]] = defaultdict(list)
        for i, known in enumerate(self._facts):
            for s in sorted(known.stems):
                self._by_stem[s].append(i)

    def _know(self, words: int) -> _Known:
        made = fact(self._rng, words)
        return self._read(made.text, tuple(self._ask(question) for question in made.questions))

    def _ask(self, text: str) -> _Question:
        said = self._words(" " + text)
        matter = tuple(s for _, s in said if s)
        return _Question(text, said, frozenset(matter), frozenset(pairwise(matter)))

    def _read(self, text: str, asked: tuple[_Question, ...]) -> _Known:
        told: list[tuple[tuple[int, ...], str | None]] = []
        for part in stretches(text):
            if told:
                told.append(((FIRST_B,), None))
            told += self._words(part)
        matter = tuple(s for _, s in told if s)
        return _Known(text, tuple(told), matter, frozenset(matter), frozenset(pairwise(matter)), asked)

    def _twin(self, known: _Known, asked: frozenset[str]) -> int:
        """Another sentence, with the words of `known` that are asked for scattered over it."""
        words = self._rng.choice(self._facts).text.rstrip(_STOPS).split()
        for word in known.text.split():
            if any(stem(p) in asked for p in pieces(word)):
                words.insert(self._rng.randrange(len(words) + 1), word.rstrip(_STOPS))
        self._facts.append(self._read(" ".join(words), ()))
        return len(self._facts) - 1

    def _words(self, text: str) -> _Words:
        return tuple((self._encoder.piece(p), stem(p)) for p in pieces(text))

    def item(self, stage: Stage) -> Item:
        """One at random, as token ids; now and then one without any passage, where the stage has refusals."""
        if stage.unanswered and self._rng.random() < _BARE:
            return self._bare()
        chosen = self._choose(stage)
        return self._lay(chosen, stage.copies)

    def asked(self, stage: Stage) -> Asked:
        """One at random, as a user sends it."""
        chosen = self._choose(stage)
        texts = [self._facts[i].text for i in chosen.kept]
        parts = []
        for number in range(1, chosen.numbers[-1] + 1):
            inside = [t for t, n in zip(texts, chosen.numbers, strict=True) if n == number]
            parts.append(f"[{number}] (file{number}.md)\n" + "\n\n".join(inside))
        prompt = "Passages:\n\n" + "\n\n".join(parts) + f"\n\nQuestion: {chosen.asked.text}"
        if chosen.gold < 0:
            return Asked(prompt, "", 0, len(texts))
        return Asked(prompt, texts[chosen.gold], chosen.numbers[chosen.gold], len(texts))

    def _choose(self, stage: Stage) -> _Chosen:
        while True:
            chosen = self._try_written(stage) if stage.written else self._try(stage)
            if chosen is not None:
                return chosen

    def _try(self, stage: Stage) -> _Chosen | None:
        rng = self._rng
        right = rng.randrange(self._size)
        known = self._facts[right]
        question = rng.randrange(len(known.questions))
        asked = known.questions[question].stems
        if not asked & known.stems:
            return None
        count = rng.randint(*stage.passages)
        total = min(sum(rng.randint(*stage.sentences) for _ in range(count)), MARKS)
        unanswered = rng.random() < stage.unanswered
        chosen = [right, *self._others(asked, right, max(total - (not unanswered), 1), stage.near)]
        if rng.random() < _TWIN:
            chosen[1:2] = [self._twin(known, asked)]
        shares = self._shares(asked, chosen)
        fits = self._fits(known.questions[question], shares)
        kept = [i for i in chosen[1:] if (shares[i] < _FAILS if unanswered else fits[i] < 0.8 * fits[right])]
        if not unanswered:
            kept.append(right)
        if len(kept) < count or not (unanswered or shares[right] > _ANSWERS):
            return None
        rng.shuffle(kept)
        cuts = sorted(rng.sample(range(1, len(kept)), count - 1))
        numbers = [1 + sum(at >= cut for cut in cuts) for at in range(len(kept))]
        gold = -1 if unanswered else kept.index(right)
        return _Chosen(known.questions[question], kept, numbers, [shares[i] for i in kept], gold)

    def _try_written(self, stage: Stage) -> _Chosen | None:
        rng = self._rng
        home = rng.randrange(len(self._written))
        right = rng.choice(self._written[home])
        words = [word.strip("`*,;:.!?()\"'|") for word in self._facts[right].text.split()]
        matter = [word for word in words if word and word.lower() not in FORM]
        if len(matter) < 3:
            return None
        asked = self._ask(cues(rng, matter))
        if not asked.stems & self._facts[right].stems:
            return None
        shown = self._around(asked.stems, home, rng.randint(*stage.passages), stage.near)
        chosen = [i for passage in shown for i in self._written[passage]]
        shares = self._shares(asked.stems, chosen)
        fits = self._fits(asked, shares)
        unanswered = rng.random() < stage.unanswered
        told = [
            [
                i
                for i in self._written[p]
                if (shares[i] < _FAILS if unanswered else fits[i] < 0.8 * fits[right])
            ]
            for p in shown
        ]
        if not unanswered:
            at = shown.index(home)
            told[at] = sorted({*told[at], right})
        kept = [i for part in told for i in part][:MARKS]
        numbers = [n for n, part in enumerate([part for part in told if part], 1) for _ in part][:MARKS]
        if not kept or not (unanswered or (shares[right] > _ANSWERS and right in kept)):
            return None
        gold = -1 if unanswered else kept.index(right)
        return _Chosen(asked, kept, numbers, [shares[i] for i in kept], gold)

    def _around(self, asked: frozenset[str], home: int, count: int, near: float) -> list[int]:
        """Passages in any order: `home`, and others, of which a share of `near` has a word of `asked`."""
        rng, taken = self._rng, {home}
        pools = [found for s in sorted(asked) if len(found := self._near.get(s, ())) > 1]
        while len(taken) < min(count, len(self._written)):
            source = rng.choice(pools) if pools and rng.random() < near else range(len(self._written))
            taken.add(source[rng.randrange(len(source))])
        return rng.sample(sorted(taken), len(taken))

    def _others(self, asked: Iterable[str], right: int, wanted: int, near: float) -> list[int]:
        rng, taken = self._rng, {right}
        pools = [found for s in sorted(asked) if len(found := self._by_stem.get(s, ())) > 1]
        for _ in range(wanted * 3):
            if len(taken) > wanted:
                break
            source = rng.choice(pools) if pools and rng.random() < near else range(self._size)
            taken.add(source[rng.randrange(len(source))])
        taken.discard(right)
        return sorted(taken)

    def _shares(self, asked: frozenset[str], chosen: list[int]) -> dict[int, float]:
        """How much of the question each sentence has. Words that few of the sentences have weigh most."""
        seen = Counter(s for i in chosen for s in asked & self._facts[i].stems)
        weights = {s: math.log(1 + len(chosen) / (0.5 + seen[s])) for s in sorted(asked)}
        whole = sum(weights.values())
        return {i: sum(weights[s] for s in sorted(asked & self._facts[i].stems)) / whole for i in chosen}

    def _fits(self, asked: _Question, shares: dict[int, float]) -> dict[int, float]:
        """How well each answers: its share; more if it begins with a word of the question, has its words in a
        row as the question has them, or is short."""
        mean = sum(len(self._facts[i].matter) for i in shares) / len(shares)
        return {
            i: share
            * (_LEAD if asked.stems.issuperset(known.matter[:1]) else 1.0)
            * (1 + _ORDER * len(asked.pairs & known.pairs) / max(1, len(asked.pairs)))
            / (1 - _BREVITY + _BREVITY * len(known.matter) / mean)
            for i, share in shares.items()
            for known in (self._facts[i],)
        }

    def _strange(self, facts: list[_Known]) -> dict[str, tuple[int, ...]]:
        """For some words any tokens, so that those which text seldom has are met and copied as others are."""
        rng = self._rng
        if rng.random() > _STRANGE:
            return {}
        stems = sorted({s for known in facts for s in known.stems})
        text = range(len(layout.SPECIAL), self._encoder.size)
        return {s: tuple(rng.choices(text, k=rng.choice((1, 1, 2, 3)))) for s in stems if rng.random() < 0.5}

    def _lay(self, chosen: _Chosen, copies: int) -> Item:
        asked = chosen.asked
        marks = self._rng.sample(range(MARKS), len(chosen.kept))
        strange = self._strange([self._facts[i] for i in chosen.kept])
        question = _tokens(asked.words, strange)
        beat = self._rng.randrange(BEATS)  # anywhere, so that short prompts have all of them
        ids = [BEGIN, QUESTION, *question, PASSAGES]
        flags, owner = [-1] * len(ids), [-1] * len(ids)
        ends = []
        answer = [NONE, *self._encoder(layout.REFUSAL_TEXT)]
        others = []
        for at, (i, number, mark) in enumerate(zip(chosen.kept, chosen.numbers, marks, strict=True)):
            words = self._facts[i].words
            told = _tokens(words, strange, beat)
            beat += 1 + sum(s is None for _, s in words)
            cite = self._encoder.piece(f" [{number}]")
            ids += [FIRST_S + mark, *told, *cite, FIRST_E + mark]
            flags.append(0)
            for tokens, s in words:
                flags += [-1] * (len(strange.get(s or "", tokens)) - 1)
                flags.append(-1 if s is None else int(s in asked.stems))
            flags += [0] * (len(cite) + 1)
            owner += [mark] * (len(told) + len(cite) + 2)
            ends.append(len(ids) - 1)
            said = [FIRST_S + mark, *told, *cite]
            if at == chosen.gold:
                answer = said
            else:
                others.append(said)
        made = self._close(ids, flags, owner, ends, question, answer, chosen.gold, chosen.shares)
        for said in self._rng.sample(others, min(copies, len(others))):
            made.copies.append(len(made.ids))
            made.ids += [*said, END]
            made.flags += [-1] * (len(said) + 1)
            made.owner += [-1] * (len(said) + 1)
        return made

    def _bare(self) -> Item:
        """A prompt without passages: none were found, or somebody just talks."""
        rng = self._rng
        question = _tokens(rng.choice(self._facts[: self._size]).questions[0].words, {})
        if rng.random() < 0.4:
            question = tuple(self._encoder(" " + rng.choice(_TALK)))
        talk = rng.random() < 0.5
        ids = [BEGIN, QUESTION, *question, PASSAGES]
        answer = [TALK, *self._encoder(layout.ABOUT_TEXT)]
        if not talk:
            ids.append(NONE)
            answer = [NONE, *self._encoder(layout.REFUSAL_TEXT)]
        return self._close(ids, [-1] * len(ids), [-1] * len(ids), [], question, answer, -1, [])

    def _close(
        self, ids: list[int], flags: list[int], owner: list[int], ends: list[int],
        question: tuple[int, ...], answer: list[int], gold: int, shares: list[float],
    ) -> Item:  # fmt: skip
        tail = [QUESTION, *question, ANSWER, *answer, END]
        start = len(ids) + len(question) + 2
        outside = [-1] * len(tail)
        return Item(ids + tail, start, flags + outside, owner + outside, ends, gold, shares)


def _tokens(words: _Words, strange: Mapping[str, tuple[int, ...]], beat: int = 0) -> tuple[int, ...]:
    """`beat`: the number of the first word, which has none before it."""
    found: list[int] = []
    for tokens, s in words:
        beat += s is None
        found += (FIRST_B + beat % BEATS,) if s is None else strange.get(s, tokens)
    return tuple(found)
