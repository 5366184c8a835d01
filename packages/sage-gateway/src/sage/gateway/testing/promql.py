"""The part of PromQL that the dashboards and alerts use, read and evaluated over a few recorded values.

Grammar: numbers, selectors with matchers and a range, `rate`, `increase`, `absent`, `histogram_quantile`,
`sum` and `max` with `by`, arithmetic, comparisons, `and`. Anything else raises ValueError.
"""

from __future__ import annotations

import math
import operator
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

__all__ = ["Query", "Series", "parse", "read_series"]

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]

_TOKEN: Final = re.compile(
    r'\s*(>=|<=|==|!=|=~|!~|"[^"]*"|\d+\.?\d*|\[\d+[mh]\]|[A-Za-z_:]\w*|[-+*/(){},=<>])'
)
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_OPERATORS: Final[dict[str, Callable[[float, float], float]]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": lambda a, b: a / b if b else math.nan,
}
_COMPARISONS: Final[dict[str, Callable[[float, float], bool]]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
}
_MATCHES: Final[dict[str, Callable[[str, str], bool]]] = {
    "=": lambda value, wanted: value == wanted,
    "!=": lambda value, wanted: value != wanted,
    "=~": lambda value, wanted: re.fullmatch(wanted, value) is not None,
    "!~": lambda value, wanted: re.fullmatch(wanted, value) is None,
}


@dataclass(frozen=True)
class Series:
    """The values of one series, one for each scrape; nan where it was not there."""

    name: str
    labels: Mapping[str, str]
    values: Sequence[float]
    every_s: float = 60.0


@dataclass
class Query:
    """An expression, and what it names."""

    evaluate: Callable[[Sequence[Series]], Vector | float]
    metrics: dict[str, set[str]] = field(default_factory=dict)  # name to labels that it needs

    def at(self, series: Sequence[Series]) -> Vector:
        """Its value after the last scrape."""
        found = self.evaluate(series)
        assert isinstance(found, dict), "an expression that is a number"
        return found


def read_series(text: str, every_s: float) -> Iterator[Series]:
    """Lines of a series and its values; `_` where it was not there yet."""
    for line in text.splitlines():
        head, *values = line.rsplit(" ", line.count(" ") - line.partition("}")[0].count(" ") * ("{" in line))
        name, _, labels = head.partition("{")
        numbers = [math.nan if value == "_" else float(value) for value in values]
        yield Series(name, dict(_LABEL.findall(labels)), numbers, every_s)


def parse(text: str) -> Query:
    """Raises ValueError for what is not in the grammar."""
    return _Parser(text).query()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[str] = []
        at = 0
        while at < len(text.rstrip()):
            found = _TOKEN.match(text, at)
            if found is None:
                raise ValueError(f"{text!r} cannot be read at {text[at:]!r}")
            self._tokens.append(found[1])
            at = found.end()
        self._at = 0
        self._metrics: dict[str, set[str]] = defaultdict(set)
        self._selected: list[str] = []

    def query(self) -> Query:
        evaluate = self._and()
        if self._at != len(self._tokens):
            raise ValueError(f"{self._text!r} goes on with {self._tokens[self._at]!r}")
        return Query(evaluate, dict(self._metrics))

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self, wanted: str = "") -> str:
        token = self._peek()
        if not token or (wanted and token != wanted):
            raise ValueError(f"{self._text!r}: found {token!r}, expected {wanted or 'more'!r}")
        self._at += 1
        return token

    def _and(self) -> _Evaluate:
        left = self._comparison()
        while self._peek() == "and":
            self._take()
            left = _both(left, self._comparison())
        return left

    def _comparison(self) -> _Evaluate:
        left = self._sum()
        while self._peek() in _COMPARISONS:
            left = _compare(_COMPARISONS[self._take()], left, self._sum())
        return left

    def _sum(self) -> _Evaluate:
        left = self._product()
        while self._peek() in ("+", "-"):
            left = _compute(_OPERATORS[self._take()], left, self._product())
        return left

    def _product(self) -> _Evaluate:
        left = self._atom()
        while self._peek() in ("*", "/"):
            left = _compute(_OPERATORS[self._take()], left, self._atom())
        return left

    def _atom(self) -> _Evaluate:
        word = self._take()
        if word == "(":
            inner = self._and()
            self._take(")")
            return inner
        if word[0].isdigit():
            number = float(word)
            return lambda _: number
        if word in ("sum", "max"):
            return self._aggregate(sum if word == "sum" else max)
        if self._peek() == "(":
            return self._function(word)
        return self._selector(word, "")

    def _aggregate(self, fold: Callable[[list[float]], float]) -> _Evaluate:
        by: list[str] = []
        if self._peek() == "by":
            self._take()
            self._take("(")
            while self._peek() != ")":
                by.append(self._take())
                if self._peek() == ",":
                    self._take()
            self._take(")")
        self._take("(")
        before = len(self._selected)
        inner = self._and()
        self._take(")")
        for name in self._selected[before:]:
            self._metrics[name].update(by)
        return _grouped(fold, by, inner)

    def _function(self, name: str) -> _Evaluate:
        self._take("(")
        if name == "histogram_quantile":
            share = float(self._take())
            self._take(",")
            inner = self._and()
            found = _quantile(share, inner)
        elif name in ("rate", "increase"):
            found = self._selector(self._take(), name)
        elif name == "absent":
            inner = self._and()
            found = _absent(inner)
        else:
            raise ValueError(f"{self._text!r}: the function {name!r} is not known here")
        self._take(")")
        return found

    def _selector(self, name: str, over: str) -> _Evaluate:
        self._selected.append(name)
        matchers: list[tuple[str, str, str]] = []
        if self._peek() == "{":
            self._take()
            while self._peek() != "}":
                matchers.append((self._take(), self._take(), self._take().strip('"')))
                self._metrics[name].add(matchers[-1][0])
                if self._peek() == ",":
                    self._take()
            self._take("}")
        self._metrics.setdefault(name, set())
        ranged = self._peek().startswith("[")
        if ranged != bool(over):
            raise ValueError(f"{self._text!r}: {name} {'needs no' if ranged else 'needs a'} range")
        seconds = 0.0
        if ranged:
            token = self._take()
            seconds = float(token[1:-2]) * (60 if token[-2] == "m" else 3600)
        return _select(name, matchers, over, seconds)


_Evaluate = Callable[[Sequence[Series]], "Vector | float"]


def _select(name: str, matchers: list[tuple[str, str, str]], over: str, seconds: float) -> _Evaluate:
    def evaluate(series: Sequence[Series]) -> Vector:
        found: Vector = {}
        for one in series:
            fits = (_MATCHES[how](one.labels.get(label, ""), wanted) for label, how, wanted in matchers)
            if one.name != name or not all(fits):
                continue
            window = len(one.values) if not over else int(seconds // one.every_s) + 1
            values = [value for value in one.values[-window:] if not math.isnan(value)]
            if not over and values:
                found[frozenset(one.labels.items())] = values[-1]
            elif len(values) > 1:
                grown = sum(max(0.0, b - a) if b >= a else b for a, b in pairwise(values))
                span = one.every_s * (len(values) - 1)
                found[frozenset(one.labels.items())] = grown / span * (seconds if over == "increase" else 1.0)
        return found

    return evaluate


def _grouped(fold: Callable[[list[float]], float], by: Sequence[str], inner: _Evaluate) -> _Evaluate:
    def evaluate(series: Sequence[Series]) -> Vector:
        groups: dict[Labels, list[float]] = defaultdict(list)
        for labels, value in _vector(inner(series)).items():
            groups[frozenset(pair for pair in labels if pair[0] in by)].append(value)
        return {labels: fold(values) for labels, values in groups.items()}

    return evaluate


def _quantile(share: float, inner: _Evaluate) -> _Evaluate:
    def evaluate(series: Sequence[Series]) -> Vector:
        groups: dict[Labels, list[tuple[float, float]]] = defaultdict(list)
        for labels, value in _vector(inner(series)).items():
            bound = next(value for name, value in labels if name == "le")
            groups[frozenset(pair for pair in labels if pair[0] != "le")].append((float(bound), value))
        return {labels: _within(share, sorted(buckets)) for labels, buckets in groups.items()}

    return evaluate


def _within(share: float, buckets: list[tuple[float, float]]) -> float:
    """As Prometheus does it: linear inside of the bucket."""
    wanted = share * buckets[-1][1]
    low = below = 0.0
    for bound, count in buckets:
        if count >= wanted > 0:
            if bound == math.inf:
                return low
            return low + (bound - low) * (wanted - below) / (count - below)
        low, below = bound, count
    return math.nan


def _absent(inner: _Evaluate) -> _Evaluate:
    return lambda series: {} if _vector(inner(series)) else {frozenset(): 1.0}


def _compute(how: Callable[[float, float], float], left: _Evaluate, right: _Evaluate) -> _Evaluate:
    def evaluate(series: Sequence[Series]) -> Vector | float:
        a, b = left(series), right(series)
        if isinstance(a, dict) and isinstance(b, dict):
            return {labels: how(a[labels], b[labels]) for labels in a.keys() & b.keys()}
        if isinstance(a, dict):
            assert not isinstance(b, dict)
            return {labels: how(value, b) for labels, value in a.items()}
        raise ValueError("a number before an operator")

    return evaluate


def _compare(how: Callable[[float, float], bool], left: _Evaluate, right: _Evaluate) -> _Evaluate:
    def evaluate(series: Sequence[Series]) -> Vector:
        bound = right(series)
        assert not isinstance(bound, dict)
        return {labels: value for labels, value in _vector(left(series)).items() if how(value, bound)}

    return evaluate


def _both(left: _Evaluate, right: _Evaluate) -> _Evaluate:
    def evaluate(series: Sequence[Series]) -> Vector:
        other = _vector(right(series))
        return {labels: value for labels, value in _vector(left(series)).items() if labels in other}

    return evaluate


def _vector(found: Vector | float) -> Vector:
    assert isinstance(found, dict)
    return found
