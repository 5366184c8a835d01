"""The words that generated text is made of: own lists, words that nobody has, and what looks like code."""

from __future__ import annotations

import re
import string
from pathlib import Path
from random import Random

__all__ = ["FORM", "NOUNS", "VERBS", "WRITTEN", "code", "invented", "noun", "pieces", "scrambled", "stem"]

NOUNS = (
    "account address agent alert answer archive array batch bench binding block board bound bridge "
    "browser buffer build bundle button cable cache call camera candle cargo carrier cell chain channel "
    "chapter check clause client clock cloud cluster coat code column command commit compiler container "
    "contract copy core corner counter crate cursor cycle dashboard data database deadline default delay "
    "deploy depth design desk device digest disk document door draft drawer driver edge editor element "
    "engine entry error event example export factor failure farmer fence field figure file filter flag "
    "flow folder forest form frame function garden gate gateway graph group guard guide handle harbour "
    "header health heap history hook host hour image import index input insert instance item job join "
    "journal kernel key label lamp language layer leader leaf ledger length letter level library license "
    "limit line link list load lock log loop machine manager map margin market mask matrix measure "
    "meeting member memory merge message method metric mill mirror model module monitor month mountain "
    "name network node note notice number object office offset operator option order output owner package "
    "packet page painter panel parcel parser part partner passage password patch path pattern peer person "
    "pipeline plan planet plugin point policy pool port post prefix price printer process product profile "
    "program project prompt protocol proxy query question queue quota range rate reader reason record "
    "recipe region register release reply report repository request reserve resource response result "
    "retry ring river road role room root route router row rule runner sample scale schedule scheduler "
    "schema scope score screen script season seat second secret section segment sensor sentence sequence "
    "series server service session shape shard shelf ship signal site size slot snapshot socket source "
    "space speed stack stage state station status step store stream string student studio suite sum "
    "summary switch symbol system table tag target task teacher template tenant term test text thread "
    "threshold ticket timeout token tool topic tower trace track train transfer tree trigger tunnel type "
    "unit update upload user value vector version view village volume wait wall watch water weight wheel "
    "window winter word worker workshop writer year zone"
).split()
VERBS = (
    "accept add admit allow answer append apply ask assign balance begin bind block bound build cache "
    "call cancel carry catch change check choose clean clear close collect combine commit compare compute "
    "connect contain control convert copy count cover create cut decide declare defer delay delete "
    "deliver deny describe detect divide drain drop embed enable encode end enter estimate expect explain "
    "export extend fail fetch fill filter find finish fix flush follow forget form forward free gather "
    "get give group guard handle hold ignore import include index inherit insert inspect install invoke "
    "join keep label last launch lead leave lend limit list listen load lock log lose make map mark match "
    "measure merge mount move name need notify offer open order own pack paint park parse pass pause pick "
    "place plan plant poll prefer prepare print produce promise protect prove publish pull push put queue "
    "raise read receive record recover refuse reject release reload remove rename render repair repeat "
    "replace replay reply report require reset resolve restart restore resume retry return revoke rewrite "
    "rotate route run sample save scale scan schedule search select send serve set share ship show shut "
    "sign skip sleep sort split stand start stay stop store stream submit switch take teach tell test "
    "throttle track transform translate travel trigger trust try turn update use validate wait wake walk "
    "warn wash watch win wrap write"
).split()
ADJECTIVES = (
    "active atomic average bad big bitter black blue bounded brief bright broken busy careful central "
    "cheap clean clear cold common complete cool correct current daily dark deep different direct double "
    "dry durable early easy empty equal even exact external extra fair false fast final fine first fixed "
    "flat free fresh full general global good great green grey hard heavy hidden high hot idle inner "
    "integer internal invalid large last late lazy left light local long loose loud low main many middle "
    "missing narrow native near new next noisy old open optional outer plain poor private proper public "
    "pure quick quiet rare raw ready recent red remote rich right round safe same second secure separate "
    "short silent simple single slow small smooth soft sorted stable stale static strict strong sudden "
    "thin third tiny total true typed unique upper useful usual valid warm weak whole wide wild yellow "
    "young"
).split()
ADVERBS = (
    "again alone always early first here instead later never often once only quickly rarely safely slowly "
    "sometimes soon still then there together twice usually"
).split()
PREPOSITIONS = (
    "about above after against at before behind below beside between by for from in into near of on "
    "over through to under until with without"
).split()
UNITS = (
    "bytes characters days GB hours items kB MB microseconds milliseconds minutes ms percent rows "
    "seconds tokens s times weeks"
).split()
CALENDAR = (
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday January March April June August October "
    "December"
).split()


def _written(docs: Path) -> list[str]:
    """The words of the project's own documentation as they stand there, with the marks around them."""
    text = " ".join(file.read_text(encoding="utf-8") for file in sorted(docs.rglob("*.md")))
    words = {word.strip(".!?#-*") for word in text.split()}
    return sorted(
        w for w in words if re.search(r"[A-Za-z0-9]", w) and not re.search(r"[\[\]{}]|<\||--|^e\.g|^i\.e", w)
    )


WRITTEN = _written(Path(__file__).parents[2] / "docs")
FORM = frozenset(
    "a about an and any are as at be by can could did do does each every for from had has have how i if "
    "in into is it its let many may me much must no not of on one or our out say said should so some "
    "tell than that the their them then there these they this to under up us was we were what when "
    "where which while who whom whose why will with would you your please".split()
)
"""Words that carry the form of a question or sentence, not its matter."""

_PIECE = re.compile(r" ?[A-Za-z]+| ?\[[0-9]\]| ?[0-9]| ?[^\sA-Za-z0-9]|\s+")
_ENDING = re.compile(r"(?:ing|ed|es|s|e|er|ers)$")
_START = tuple(
    ("b bl br c ch cl d dr f fl g gl gr h j k kl l m n p pl pr qu r s sh sk sl st t th tr v w y z").split()
)
_MIDDLE = tuple("a ai e ea i o oa oo u a e i o u".split())
_STOP = ("", "", *"b ck d g l m n p r rn s sk t x nd lt".split())


def pieces(text: str) -> list[str]:
    """How text is cut before byte pairs are merged: a word, a digit or a mark each, with one space before it.

    >>> pieces("The port is 80. [2]")
    ['The', ' port', ' is', ' 8', '0', '.', ' [2]']
    """
    return _PIECE.findall(text)


def stem(piece: str) -> str:
    """What a piece has in common with its other forms; empty for one that carries no matter.

    >>> [stem(piece) for piece in (" Listens", "listening", " the", ".")]
    ['listen', 'listen', '', '']
    """
    word = piece.strip().lower()
    if word in FORM or not word or not (word[0].isalnum()):
        return ""
    return _ENDING.sub("", word) if len(word) > 4 else word.removesuffix("s") if len(word) > 3 else word


def invented(rng: Random) -> str:
    """A word that no list holds."""
    count = rng.choice((1, 2, 2, 2, 3))
    parts = [rng.choice(_START) + rng.choice(_MIDDLE) + rng.choice(_STOP) for _ in range(count)]
    word = "".join(parts)
    return word.capitalize() if rng.random() < 0.2 else word


def scrambled(rng: Random) -> str:
    """Halves of two written words, or letters of any case: what is to be copied need not be a word."""
    if rng.random() < 0.6:
        left, right = rng.choice(WRITTEN), rng.choice(WRITTEN)
        return left[: len(left) // 2] + right[len(right) // 2 :] + rng.choice("aeiou")
    return "".join(rng.choices(string.ascii_letters, k=rng.randrange(2, 8)))


def noun(rng: Random) -> str:
    """Mostly a word of the list."""
    return rng.choice(NOUNS) if rng.random() < 0.8 else invented(rng)


def number(rng: Random) -> str:
    """As documents write them."""
    kind = rng.random()
    if kind < 0.1:  # where a copy has to count
        return rng.choice("123456789") * rng.randrange(2, 5)
    if kind < 0.2:
        return str(rng.randrange(1, 100)) + rng.choice(
            ("0", "00", "000", ",000", ",000,000", "0.0.1", ".0.0.1")
        )
    if kind < 0.5:
        return str(rng.choice((rng.randrange(2, 100), rng.randrange(100, 10000), rng.randrange(1024, 65536))))
    if kind < 0.7:
        return f"{rng.randrange(0, 100)}.{rng.randrange(0, 100)}"
    if kind < 0.85:
        return f"{rng.randrange(1, 100)} %"
    return f"{rng.randrange(1, 10)},{rng.randrange(100, 1000)}"


def code(rng: Random) -> str:
    """Something that stands between backticks in technical text."""
    a, b = (noun(rng).lower() for _ in range(2))
    verb = rng.choice(VERBS)
    return rng.choice(
        (
            f"{a}_{b}",
            f"{verb}_{a}",
            f"{a.capitalize()}{b.capitalize()}",
            f"{a}.{b}",
            f"{a}.{verb}()",
            f"--{a}-{b}",
            f"--{a}",
            f"/{rng.choice(('v1', 'api', a))}/{b}",
            f"{a}/{b}.{rng.choice(('py', 'yaml', 'json', 'md'))}",
            f"{a}: {number(rng)}",
            f"{a} {verb}",
            f"{a.upper()}_{b.upper()}",
            f"x-{a}-{b}",
            a,
            verb,
            number(rng),
        )
    )
