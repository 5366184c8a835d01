"""Least squares with positive weights, and what several engines on one device cost each other. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Fit", "Rows", "fit_device", "positive_least_squares"]

Array = NDArray[np.float64]
_TIE: Final = 1e-9  # relative gain in error that another weight must bring
_EXACT: Final = 1e-12  # an error of 0 is as good as this one
_MOST_INTERFERENCE: Final = 3.0
_PASSES: Final = 2  # of choosing readings and interference in turn
_FAR: Final = 2.5  # times what was expected: not what it was taken for
_TRIMS: Final = 3
_REWEIGHTED: Final = 4  # passes; the first is relative to what was seen
_LEAST: Final = 1e-12  # seconds that are predicted for anything
_STEPS: Final = (0.1, 0.01, 0.001)  # of the search for it, coarse to fine


@dataclass(frozen=True, slots=True)
class Rows:
    """Observed durations of one engine. Row i says `seconds[i] · alone[i] = x[i] · w`.

    `beside`: share of that time in which an engine of the other kind computed on the same device. Work that
    takes `1 + interference` times as long meanwhile would have taken `alone = 1 - beside · interference /
    (1 + interference)` of the time by itself. `steps`: how many steps of the engine it was; their noise
    averages out, so longer ones count for more. `at`: the middle of it. `first`: whether it is the time to a
    first token.
    """

    x: Array
    seconds: Array
    beside: Array
    steps: Array
    at: Array
    first: NDArray[np.bool_]

    def expected(self, weights: Sequence[float], interference: float) -> Array:
        """Seconds that the rows should have taken."""
        alone = 1 - self.beside * interference / (1 + interference)
        found: Array = np.maximum(self.x @ np.array(weights) / alone, _LEAST)
        return found


@dataclass(frozen=True, slots=True)
class Fit:
    """Weights of one engine. `error`: mean squared error of the logarithm; `noise`: its sigma of a step."""

    weights: tuple[float, ...]
    error: float
    noise: float


def positive_least_squares(x: Array, y: Array) -> tuple[Array, float]:
    """`w >= 0` that minimises `|x·w - y|²`, and that minimum; a weight that explains nothing is 0.

    Exact: of few weights every subset is solved. `x` is (n, k) with small k, `y` is (n,).
    """
    count = x.shape[1]
    best, least = np.zeros(count), float(y @ y)
    for size in range(1, count + 1):
        for chosen in combinations(range(count), size):
            columns = list(chosen)
            scale = np.linalg.norm(x[:, columns], axis=0)
            if not scale.all():
                continue
            found = np.linalg.lstsq(x[:, columns] / scale, y, rcond=None)[0] / scale
            if (found <= 0).any():
                continue
            error = float(np.square(x[:, columns] @ found - y).sum())
            if error < least * (1 - _TIE) - 1e-30:
                best, least = np.zeros(count), error
                best[columns] = found
    return best, least


def fit_device(engines: Sequence[Sequence[Rows]]) -> tuple[float, list[tuple[int, Fit]]]:
    """The interference of a device; of each engine the best of its readings, and the weights by that.

    An engine's readings count the same calls differently. Where no engine was ever seen beside another kind,
    interference is 0: there is nothing to learn it from.
    """
    interference = 0.0
    chosen = [_best(readings, interference) for readings in engines]
    if any(readings[0].beside.any() for readings in engines):
        for _ in range(_PASSES):
            rows = [readings[number] for readings, (number, _) in zip(engines, chosen, strict=True)]
            interference = _search(rows)
            chosen = [_best(readings, interference) for readings in engines]
    return interference, chosen


def _best(readings: Sequence[Rows], interference: float) -> tuple[int, Fit]:
    fits = [_fit(rows, interference) for rows in readings]
    number = min(range(len(fits)), key=lambda one: fits[one].error)
    return number, fits[number]


def _search(engines: Sequence[Rows]) -> float:
    best, reach = 0.0, _MOST_INTERFERENCE
    for step in _STEPS:
        low, high = max(0.0, best - reach), best + reach
        candidates = np.arange(low, high + step / 2, step)
        errors = [_unlikely(engines, float(one)) for one in candidates]
        best, reach = float(candidates[int(np.argmin(errors))]), step
    return best


def _unlikely(engines: Sequence[Rows], interference: float) -> float:
    """Minus the log-likelihood, but for constants, when each engine has a noise of its own."""
    return sum(len(rows.seconds) * math.log(_fit(rows, interference).error + _EXACT) for rows in engines)


def _fit(rows: Rows, interference: float) -> Fit:
    """Weights for a given interference. Errors are relative, so that a long call does not outweigh many.

    Relative to what the weights before said, not to what was seen: else what came quickly counts for more,
    and all is taken to be quicker than it is on average.
    """
    alone = 1 - rows.beside * interference / (1 + interference)
    x = rows.x / alone[:, None]
    kept = _plausible(x, rows.seconds)
    x, seconds, steps = x[kept], rows.seconds[kept], np.sqrt(rows.steps[kept])
    expected = seconds
    for _ in range(_REWEIGHTED):
        weight = steps / expected
        weights, _ = positive_least_squares(x * weight[:, None], seconds * weight)
        expected = np.maximum(x @ weights, _LEAST)
    error = float(np.square(steps * np.log(seconds / expected)).sum())
    spread = math.sqrt(error / max(1, len(seconds) - len(weights)))
    return Fit(tuple(float(one) for one in weights), error / max(1, len(seconds)), spread)


def _plausible(x: Array, seconds: Array) -> NDArray[np.bool_]:
    """Rows within a factor of `_FAR` of a fit in which long ones count most.

    A live engine hands answers over one by one, so that two ends may lie a moment apart: taken for a whole
    step, that moment would outweigh everything where errors are relative.
    """
    kept = np.ones(len(seconds), dtype=bool)
    for _ in range(_TRIMS):
        weights, _ = positive_least_squares(x[kept], seconds[kept])
        predicted = np.maximum(x @ weights, _LEAST)
        kept = (seconds > predicted / _FAR) & (seconds < predicted * _FAR)
        if not kept.any():
            return np.ones(len(seconds), dtype=bool)
    return kept
