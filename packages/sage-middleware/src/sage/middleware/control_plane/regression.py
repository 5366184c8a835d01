"""Learning from one sample at a time: a quantile, a guarded linear regression, how far predictions are off.

Constant memory and constant time per sample; slow to forget. No clock, no I/O.
"""

from __future__ import annotations

from bisect import insort
from math import exp, log
from typing import Final

__all__ = ["LeastSquares", "Quantile", "Residuals", "bounded"]

_SMALLEST: Final = 1e-9
_LARGEST: Final = 1e12
_DIAGONAL: Final = (0, 4, 7, 9)  # of an upper triangle of 4 by 4, row by row


def bounded(value: float, low: float, high: float) -> float:
    """`value`, or the end of the range that it is beyond."""
    return low if value < low else high if value > high else value


class Quantile:
    """The `q` quantile of a stream of positive values; `value` is `initial` before the first.

    Exact over the first `WARM` values (with `initial` as one more); then it steps in log space, up by q and
    down by 1 - q of a step that is a share of the mean distance. Steps balance where a share q of the values
    lies below, whatever their distribution (Gibbs and Candès 2021, adaptive conformal inference).
    """

    WARM: Final = 20
    _STEP: Final = 0.05
    _FAR: Final = 3.0  # one value counts as at most e^3 away

    __slots__ = ("_first", "_q", "_spread", "samples", "value")

    def __init__(self, q: float, initial: float) -> None:
        self.value = initial
        self.samples = 0
        self._q = q
        self._first: list[float] | None = [initial]
        self._spread = 0.0

    def observe(self, x: float) -> None:
        """Learn one value; it counts as within 1e-9 and 1e12."""
        x = bounded(x, _SMALLEST, _LARGEST)
        self.samples += 1
        first = self._first
        if first is not None:
            insort(first, x)
            self.value = first[int(self._q * len(first))]
            if self.samples == self.WARM:
                self._spread = sum(min(abs(log(v / self.value)), self._FAR) for v in first) / len(first)
                self._first = None
            return
        gap = bounded(log(x / self.value), -self._FAR, self._FAR)
        self._spread += self._STEP * (abs(gap) - self._spread)
        step = self._STEP * self._spread
        self.value *= exp(step * self._q if gap > 0.0 else step * (self._q - 1.0))


class Residuals:
    """How far off predictions are, of which each must have been made before its outcome was known.

    `margin`: p90 of actual / predicted, within 1 and 4, 2 at first. `trusted`: false while most of the last
    `WINDOW` predictions were off by more than half of the actual value and by more than `noise` seconds; a
    model is innocent until so many are known to be, so it is trusted at first.
    """

    WINDOW: Final = 50
    _OFF: Final = 0.5
    _WIDEST: Final = 4.0
    _ALL: Final = (1 << WINDOW) - 1

    __slots__ = ("_noise", "_off", "_ratio", "margin", "trusted")

    def __init__(self, noise: float = 0.0) -> None:
        self._noise = noise
        self._ratio = Quantile(0.9, 2.0)
        self._off = 0  # one bit per prediction, the newest is the lowest
        self.margin = 2.0
        self.trusted = True

    def observe(self, predicted: float, actual: float) -> None:
        """Learn one outcome; both are positive."""
        self._ratio.observe(actual / predicted)
        self.margin = bounded(self._ratio.value, 1.0, self._WIDEST)
        off = abs(actual - predicted) > max(self._OFF * actual, self._noise)
        self._off = (self._off << 1 | off) & self._ALL
        self.trusted = self._off.bit_count() <= self.WINDOW // 2


Four = tuple[float, float, float, float]


class LeastSquares:
    """Recursive least squares of `actual = weights · x` on four features, of the relative error.

    Each feature is taken as its share of the prediction, so that seconds and milliseconds count alike and
    one set of constants fits every engine. A feature that is always 0 is not learned. The guards:

    - Outliers: an actual value counts as at most 4 times the prediction.
    - Bounds: weights stay within 1/100 and 32 of the prior times a scale, the median of actual values over
      what the prior predicts. The first `RESTART` samples set nothing else: so is a far-off prior replaced.
    - Wind-up: forgetting acts only in the direction of the sample (Kulhavý 1987), so that features that never
      vary do not blow the covariance up; its trace is bounded besides.
    - Regime changes: when errors have one sign for some ten samples, the covariance is widened.
    """

    RESTART: Final = 5
    _FORGET: Final = 0.995
    _OUTLIER: Final = 4.0
    _LEAST: Final = 1.0 / _OUTLIER - 1.0
    _LOW: Final = 0.01
    _HIGH: Final = 32.0
    # Variances of the weights relative to that of the noise: upper triangle of the covariance, row by row.
    _NOTHING_KNOWN: Final = tuple(10.0 * (i in _DIAGONAL) for i in range(10))
    _WIDEN: Final = 1.0
    _TRACE: Final = 100.0
    _DRIFT: Final = 0.3  # of the mean log error, and 0.7 of its mean size: a change, not noise

    __slots__ = ("_anchor", "_covariance", "_drift", "_prior", "_scale", "_spread", "samples", "weights")

    def __init__(self, prior: Four) -> None:
        self._prior = prior
        self.weights: Four = prior
        self._anchor: Four = prior
        self.samples = 0
        self._scale = Quantile(0.5, 1.0)
        self._drift = self._spread = 0.0
        self._covariance = self._NOTHING_KNOWN

    def observe(self, x: Four, actual: float) -> float:
        """Learn one sample, and return what was predicted for it before."""
        x0, x1, x2, x3 = x
        w0, w1, w2, w3 = self.weights
        p = w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3
        if self.samples >= self.RESTART:
            a0, a1, a2, a3 = self._anchor
            g0, g1, g2, g3 = self._gain(x0 * a0 / p, x1 * a1 / p, x2 * a2 / p, x3 * a3 / p)
            error = min(actual / p, self._OUTLIER) - 1.0
            w0 += a0 * g0 * error
            w1 += a1 * g1 * error
            w2 += a2 * g2 * error
            w3 += a3 * g3 * error
            self._watch(log(error + 1.0 if error > self._LEAST else 1.0 / self._OUTLIER))
        # The scale moves slowly once it is known: one sample in four is enough for it.
        if self.samples < Quantile.WARM or not self.samples & 3:
            self._rescale(x, actual)
        a0, a1, a2, a3 = self._anchor
        if self.samples < self.RESTART:
            self.weights = self._anchor
        else:
            low, high = self._LOW, self._HIGH
            self.weights = (
                w0 if low * a0 < w0 < high * a0 else bounded(w0, low * a0, high * a0),
                w1 if low * a1 < w1 < high * a1 else bounded(w1, low * a1, high * a1),
                w2 if low * a2 < w2 < high * a2 else bounded(w2, low * a2, high * a2),
                w3 if low * a3 < w3 < high * a3 else bounded(w3, low * a3, high * a3),
            )
        self.samples += 1
        return p

    def _rescale(self, x: Four, actual: float) -> None:
        """Let the anchor of the bounds follow the median of actual / prior."""
        a0, a1, a2, a3 = self._prior
        self._scale.observe(actual / (a0 * x[0] + a1 * x[1] + a2 * x[2] + a3 * x[3]))
        scale = self._scale.value
        self._anchor = (a0 * scale, a1 * scale, a2 * scale, a3 * scale)

    def _gain(self, u0: float, u1: float, u2: float, u3: float) -> Four:
        """How far each weight follows an error at `u`; updates the covariance. Unrolled for speed."""
        p00, p01, p02, p03, p11, p12, p13, p22, p23, p33 = self._covariance
        g0 = p00 * u0 + p01 * u1 + p02 * u2 + p03 * u3
        g1 = p01 * u0 + p11 * u1 + p12 * u2 + p13 * u3
        g2 = p02 * u0 + p12 * u1 + p22 * u2 + p23 * u3
        g3 = p03 * u0 + p13 * u1 + p23 * u2 + p33 * u3
        r = g0 * u0 + g1 * u1 + g2 * u2 + g3 * u3
        if r < _SMALLEST:  # rounding has eaten it up
            self._covariance = self._NOTHING_KNOWN
            return 0.0, 0.0, 0.0, 0.0
        keep = self._FORGET - (1.0 - self._FORGET) / r
        if keep > 0.0 or p00 + p11 + p22 + p33 < self._TRACE:
            k = keep / (self._FORGET * (1.0 + r))
            k0, k1, k2, k3 = k * g0, k * g1, k * g2, k * g3
            self._covariance = (
                p00 - k0 * g0,
                p01 - k0 * g1,
                p02 - k0 * g2,
                p03 - k0 * g3,
                p11 - k1 * g1,
                p12 - k1 * g2,
                p13 - k1 * g3,
                p22 - k2 * g2,
                p23 - k2 * g3,
                p33 - k3 * g3,
            )
        one = 1.0 + r
        return g0 / one, g1 / one, g2 / one, g3 / one

    def _watch(self, error: float) -> None:
        """Widen the covariance when log errors have had one sign for some time."""
        self._drift += 0.1 * (error - self._drift)
        self._spread += 0.1 * (abs(error) - self._spread)
        size = abs(self._drift)
        if size > self._DRIFT and size > 0.7 * self._spread:
            self._drift = 0.0
            c = self._covariance
            if sum(c[i] for i in _DIAGONAL) < self._TRACE:
                self._covariance = tuple(p + self._WIDEN * (i in _DIAGONAL) for i, p in enumerate(c))
