"""Sentences and questions about them, at random: filled patterns, and words that only stand together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

from tools.nano.words import (
    ADJECTIVES,
    ADVERBS,
    CALENDAR,
    FORM,
    PREPOSITIONS,
    UNITS,
    VERBS,
    WRITTEN,
    code,
    invented,
    noun,
    number,
    scrambled,
)

__all__ = ["Fact", "cues", "fact"]

_MANY = 30
_BLOCKS = 0.05
_FUNCTION = sorted(FORM - {"i", "me", "please", "us", "let"})


@dataclass(frozen=True, slots=True)
class Fact:
    """A sentence, and questions that it answers."""

    text: str
    questions: tuple[str, ...]


def fact(rng: Random, words: int = 24) -> Fact:
    """One of either kind, of about `words` words at most; where that is many, now and then several in one, or
    a block of code, which is one sentence to the chat template."""
    made = _pattern(rng) if words >= 10 and rng.random() < 0.5 else _heap(rng, words)
    if words < _MANY or (kind := rng.random()) > 0.1 + _BLOCKS:
        return made
    if kind > 0.1:
        return _block(rng)
    parts = [made.text, *(fact(rng, 24).text for _ in range(rng.choice((1, 1, 2, 3))))]
    rng.shuffle(parts)
    return Fact(
        rng.choice((" ", ", ", "; ")).join(part.rstrip(".!:") for part in parts) + ".", made.questions
    )


# ---- words that stand together -----------------------------------------------------------------------------


def _heap(rng: Random, most: int) -> Fact:
    size = rng.randrange(4, most + 1)
    plain = rng.random() < 0.5  # half of them without anything that looks like code
    matter: list[str] = []
    parts: list[str] = []
    for _ in range(size):
        if parts and rng.random() < 0.35:
            parts.append(rng.choice(_FUNCTION))
            continue
        word = _matter(rng, plain)
        matter.append(word.strip("`,;:()\"'"))
        parts.append(word)
    if not matter:
        parts.append(noun(rng))
        matter.append(parts[-1])
    _repeat(rng, parts)
    if rng.random() < 0.15:  # and at which of the numbers that begin alike
        base = rng.randrange(10, 1000)
        for _ in range(rng.choice((2, 2, 3, 4))):
            near = f"{base}{rng.randrange(10)}{rng.choice(('', ','))}"
            parts.insert(rng.randrange(1, len(parts) + 1), near)
    text = " ".join(parts)
    for mark in (",", ";", ":"):
        if rng.random() < 0.15 and size > 5:
            at = rng.randrange(2, size - 1)
            words = text.split(" ")
            if at < len(words) - 1 and words[at][-1].isalnum():
                words[at] += mark
                text = " ".join(words)
    return Fact(_finish(rng, text), tuple(cues(rng, matter) for _ in range(2)))


def _block(rng: Random) -> Fact:
    """Commands or settings in a row, which have many words that are asked for and seldom answer."""
    matter = [
        rng.choice(WRITTEN) if rng.random() < 0.4 else rng.choice((code, noun, number))(rng)
        for _ in range(rng.randrange(6, 50))
    ]
    parts = [word + rng.choice(("", "", "", "", " =", ":", ",", " |")) for word in matter]
    _repeat(rng, parts)
    head = "```" + rng.choice(("bash", "python", "yaml", "json", ""))
    return Fact(
        " ".join((head, *parts)),
        tuple(cues(rng, [w.strip("`,;:()\"'") or head for w in matter]) for _ in range(2)),
    )


def _repeat(rng: Random, parts: list[str]) -> None:
    """A copy has to know at which of two equal words it is, and of two equal marks in a list."""
    while len(parts) > 3 and rng.random() < 0.5:
        start, run = rng.randrange(len(parts)), rng.choice((1, 1, 2, 2, 3))
        at = rng.randrange(len(parts))
        parts[at:at] = parts[start : start + run]
    if len(parts) > 5 and rng.random() < 0.25:
        form = rng.choice(("`{}`,", "`{}`,", "{},", '"{}",', "`{}` |", "/{}/"))
        at = rng.randrange(len(parts))
        parts[at:at] = [
            form.format(code(rng) if rng.random() < 0.5 else noun(rng)) for _ in range(rng.randrange(2, 6))
        ]


def _matter(rng: Random, plain: bool) -> str:
    kind = rng.random()
    if kind < 0.40:
        return _form(rng, noun(rng), ("", "", "s"))
    if kind < 0.60:
        return _form(rng, rng.choice(VERBS), ("", "s", "s", "ed", "ing"))
    if kind < 0.72:
        return rng.choice(ADJECTIVES)
    if kind < 0.76:
        return rng.choice(ADVERBS)
    if kind < 0.86 or plain:
        return invented(rng)
    if kind < 0.93:
        return rng.choice(WRITTEN) if rng.random() < 0.8 else scrambled(rng)
    if kind < 0.97:
        return f"`{code(rng)}`"
    return number(rng)


def cues(rng: Random, matter: list[str]) -> str:
    """A question that names some of the words, mostly in a row, as a question about a real sentence does."""
    count = min(len(matter), rng.choice((1, 2, 2, 3, 3, 4, 5)))
    if rng.random() < 0.6:
        start = rng.randrange(len(matter) - count + 1)
        chosen = matter[start : start + count]
    else:
        chosen = rng.sample(matter, count)
        if rng.random() < 0.5:
            rng.shuffle(chosen)
    said = _astray(rng, [_reform(rng, word) for word in chosen])
    glued = said[0]
    for word in said[1:]:
        glued += rng.choice((" ", " ", " and ", " of ", " the ", " in ", " to ", ", ")) + word
    return _ask(rng, glued)


_FRAMES = (
    "what is {}", "what is the {}", "what does {} do", "what does the {} do", "which {}", "which {} is it",
    "how does {}", "how does the {}", "how do I {}", "how can I {}", "how is the {}", "where is {}",
    "where is the {}", "where does the {}", "when does {}", "when is {}", "why does the {}", "why is {}",
    "who can {}", "is there a {}", "does it {}", "can the {}", "what about {}", "what happens to {}",
    "what happens when {}", "tell me about {}", "what is said about {}", "what if {}", "how many {}",
    "how much {}", "how long does {}", "how often does {}", "which {} does the {{}}", "what must {}",
    "should I {}", "{}", "{}", "what are the {}", "what are {}",
)  # fmt: skip


def _ask(rng: Random, about: str) -> str:
    text = rng.choice(_FRAMES).replace("{{}}", rng.choice(_FUNCTION)).format(about)
    text = text[0].upper() + text[1:] if rng.random() < 0.8 else text
    return text + rng.choice(("?", "?", "?", "?", ""))


def _astray(rng: Random, said: list[str]) -> list[str]:
    """Now and then with words that the sentence need not have, as people ask in words of their own."""
    while rng.random() < 0.35:
        said.insert(rng.randrange(len(said) + 1), _matter(rng, plain=True))
    return said


def _reform(rng: Random, word: str) -> str:
    """The word as a question may write it: mostly the same, or another form of it."""
    kind = rng.random()
    if kind < 0.75 or not word.isalpha():
        return f"`{word}`" if not word.isalpha() and rng.random() < 0.5 else word
    if kind < 0.85:
        return word.lower()
    if kind < 0.95:
        return word.removesuffix("s") if word.endswith("s") and not word.endswith("ss") else word + "s"
    return word.capitalize()


def _form(rng: Random, word: str, endings: tuple[str, ...]) -> str:
    ending = rng.choice(endings)
    if ending in ("ed", "ing") and word.endswith("e"):
        return word[:-1] + ending
    if ending == "s" and word.endswith(("s", "x", "ch", "sh")):
        return word + "es"
    if ending == "s" and word.endswith("y") and word[-2:-1] not in ("a", "e", "o", "u"):
        return word[:-1] + "ies"
    return word + ending


# ---- filled patterns ---------------------------------------------------------------------------------------

_FILE = Path(__file__).with_name("patterns.txt")


def read_patterns(text: str) -> list[tuple[str, list[str]]]:
    """Sentences, and the questions that are indented below each."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith(" "):
            found[-1][1].append(line.strip())
        elif line and not line.startswith("#"):
            found.append((line, []))
    return found


_PATTERNS = read_patterns(_FILE.read_text(encoding="utf-8"))
_TAILS = (
    ", and the {m2} {vs2} {adv2}", ", but only {p2} the {m2}", " ({x2} {u2})",
    ", which {vs2} the {a2} {m2}", " and {vs2} `{c2}`", " as long as no {m2} {vs2}", "; see `{c2}`",
    " unless {N2} {vs2} it", " because the {m2} {vs2}",
)  # fmt: skip


def _pattern(rng: Random) -> Fact:
    text, questions = rng.choice(_PATTERNS)
    slots = _slots(rng)
    if rng.random() < 0.35 and text.endswith("."):
        text = text[:-1] + rng.choice(_TAILS) + "."
    said = tuple(_vary(rng, q.format(**slots)) for q in rng.sample(questions, 2))
    filled = text.format(**slots)
    return Fact(filled[0].upper() + filled[1:], said)


def _vary(rng: Random, question: str) -> str:
    if rng.random() < 0.15:
        question = question.removesuffix("?")
    if rng.random() < 0.15:
        question = question.replace("`", "")
    if rng.random() < 0.1:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.05:
        question = rng.choice(("Please tell me: ", "I want to know ", "Can you say ")) + question
    for word in _astray(rng, []):
        joint = rng.choice((" for the ", " of the ", " in a ", " and ", " when the ", " "))
        mark = "?" if question.endswith("?") else ""
        question = question.removesuffix("?") + joint + word + mark
    return question


def _slots(rng: Random) -> dict[str, str]:
    made: dict[str, str] = {}
    for tail in ("", "2"):
        for name in "nmo":
            word = noun(rng).lower()
            made[name + tail] = word
            made[name + "s" + tail] = _form(rng, word, ("s",))
        for name in "vw":
            verb = rng.choice(VERBS) if rng.random() < 0.9 else invented(rng).lower()
            made[name + tail] = verb
            made[name + "s" + tail] = _form(rng, verb, ("s",))
            made[name + "ed" + tail] = _form(rng, verb, ("ed",))
        for name in "ab":
            made[name + tail] = rng.choice(ADJECTIVES) if rng.random() < 0.9 else invented(rng).lower()
        for name in "NM":
            made[name + tail] = invented(rng).capitalize()
        made["p" + tail] = rng.choice(PREPOSITIONS)
        made["x" + tail] = number(rng)
        made["u" + tail] = rng.choice(UNITS)
        made["c" + tail] = code(rng)
        made["d" + tail] = rng.choice((*CALENDAR, str(rng.randrange(1700, 2030))))
        made["adv" + tail] = rng.choice(ADVERBS)
    made["Ns"] = made["ns"].capitalize()
    return made


def _finish(rng: Random, text: str) -> str:
    text = text[0].upper() + text[1:] if rng.random() < 0.8 else text
    return text + rng.choice((".", ".", ".", ".", "!", "", ":"))
