"""What a request will cost on an engine, learned online from what the control plane sees: no profiling step.

Predictions are attribute reads and a few multiplications; learning takes a few microseconds per completion.
No clock, no I/O.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from math import ceil, exp, log
from typing import Final

from sage.middleware.control_plane.regression import LeastSquares, Quantile, Residuals, bounded

__all__ = [
    "CPU_LLM",
    "EMBEDDER",
    "GPU_LLM",
    "EmbedCost",
    "LlmCost",
    "LlmPrior",
    "OutputLengths",
    "PromptTokens",
    "Quantile",
]

# What is observed counts as within these, so that no report can make a weight infinite or zero.
_SECONDS: Final = (1e-6, 1e5)
_MOST_TOKENS: Final = 1e9
_MOST_RUNNING: Final = 1e5
_UNUSED: Final = 1.0  # weight of a feature that is always 0
_NOISE_S: Final = 0.025  # of a time to the first token: it makes nobody late, however quick the engine is


@dataclass(frozen=True, slots=True)
class LlmPrior:
    """What is assumed of an LLM engine before its first samples; seconds.

    `ttft`: per iteration, per iteration and running sequence, per prefill token. `tpot`: per token, per
    running sequence, at a prefill share of 1, beside an embedding engine that computes all the time. The
    default lies between a GPU and a CPU. Ratios matter more than sizes, which five samples replace.
    """

    ttft: tuple[float, float, float] = (0.02, 0.001, 0.0003)
    tpot: tuple[float, float, float, float] = (0.015, 0.001, 0.02, 0.01)


GPU_LLM: Final = LlmPrior((0.012, 0.00015, 0.0001), (0.012, 0.00015, 0.02, 0.005))
CPU_LLM: Final = LlmPrior((0.025, 0.005, 0.001), (0.02, 0.005, 0.05, 0.02))
EMBEDDER: Final = (0.008, 0.00005, 0.0001)  # seconds per batch, per token, per text


class LlmCost:
    """Time to first token and per token of one LLM engine.

    `iteration_base`, `iteration_slope`, `per_token` are the weights of `ttft`; `tpot_base`, `tpot_slope`
    those of `tpot` with nothing beside. `margin`, `trusted`: see `Residuals`; they and `samples` are of
    `ttft`. A prediction without samples is the prior's: who refuses work by one asks for `samples` first.
    """

    __slots__ = (
        "_residuals",
        "_tpot",
        "_ttft",
        "chunk",
        "iteration_base",
        "iteration_slope",
        "margin",
        "per_token",
        "samples",
        "tpot_base",
        "tpot_slope",
        "trusted",
    )

    def __init__(self, *, chunk: int = 2048, prior: LlmPrior | None = None) -> None:
        prior = prior or LlmPrior()
        self.chunk = chunk
        self._ttft = LeastSquares((*prior.ttft, _UNUSED))
        self._tpot = LeastSquares(prior.tpot)
        self._residuals = Residuals(_NOISE_S)
        self.iteration_base, self.iteration_slope, self.per_token = prior.ttft
        self.tpot_base, self.tpot_slope, _, _ = prior.tpot
        self.margin = self._residuals.margin
        self.trusted = True
        self.samples = 0

    def restart(self) -> None:
        """The engine's process is new: the same model, as a rule on the same device with the same flags.

        What the old one taught is the prior of the new one, which five samples correct where a flag or the
        device did change. Residuals, trust and `samples` begin anew: nothing is refused by old figures.
        """
        self._ttft = LeastSquares(self._ttft.weights)
        self._tpot = LeastSquares(self._tpot.weights)
        self._residuals = Residuals(_NOISE_S)
        self.margin, self.trusted = self._residuals.margin, self._residuals.trusted
        self.samples = 0

    def ttft(self, tokens: float, running: float) -> float:
        """Seconds from sending to the first token.

        `tokens`: prefill tokens that are not cached and still to be computed there, the request's own among
        them. `running`: sequences that are being decoded there.
        """
        iterations = tokens / self.chunk
        if iterations < 1.0:
            iterations = 1.0
        return iterations * (self.iteration_base + self.iteration_slope * running) + self.per_token * tokens

    def tpot(self, running: float, share: float = 0.0, beside: float = 0.0) -> float:
        """Seconds per token after the first.

        `share`: part of an iteration that is spent on prefill. `beside`: share of the time in which an
        embedding engine on the same device computes.
        """
        base, slope, of_share, of_beside = self._tpot.weights
        return base + slope * running + of_share * share + of_beside * beside

    def observe_ttft(self, tokens: float, running: float, seconds: float) -> None:
        """Learn one time to first token; arguments as in `ttft`, as they were when it was sent."""
        tokens = bounded(tokens, 0.0, _MOST_TOKENS)
        running = bounded(running, 0.0, _MOST_RUNNING)
        seconds = bounded(seconds, *_SECONDS)
        iterations = max(1.0, tokens / self.chunk)
        predicted = self._ttft.observe((iterations, iterations * running, tokens, 0.0), seconds)
        self.iteration_base, self.iteration_slope, self.per_token, _ = self._ttft.weights
        self._residuals.observe(predicted, seconds)
        self.margin, self.trusted = self._residuals.margin, self._residuals.trusted
        self.samples += 1

    def observe_tpot(self, running: float, share: float, beside: float, seconds: float) -> None:
        """Learn one mean time per token; arguments as in `tpot`, as they were on average."""
        x = (
            1.0,
            bounded(running, 0.0, _MOST_RUNNING),
            bounded(share, 0.0, 1.0),
            bounded(beside, 0.0, 1.0),
        )
        self._tpot.observe(x, bounded(seconds, *_SECONDS))
        self.tpot_base, self.tpot_slope, _, _ = self._tpot.weights


class EmbedCost:
    """Time of one batch on one embedding or rerank engine: `s0 + s1 · tokens + s2 · texts` on one thread.

    Other thread counts and a busy LLM on the same device each multiply that by a learned factor.
    `knee`: tokens from which a larger batch gains little, `s1 · tokens ≥ 2 · s0`. `margin`, `trusted`: see
    `Residuals`.
    """

    _SCALING: Final = 0.7  # before it is known, t threads are t^0.7 times as fast as one
    _MOST_THREADS: Final = 512
    _INTERFERENCE: Final = (0.0, 16.0)

    __slots__ = (
        "_interfered",
        "_interference",
        "_per_text",
        "_per_token",
        "_regression",
        "_residuals",
        "_setup",
        "_threads",
        "knee",
        "margin",
        "samples",
        "trusted",
    )

    def __init__(self, *, prior: tuple[float, float, float] = EMBEDDER) -> None:
        self._regression = LeastSquares((*prior, _UNUSED))
        self._residuals = Residuals()
        self._threads: dict[int, tuple[float, int]] = {}  # thread count to factor and samples
        self._interference = 0.5  # slower by this share beside an LLM that computes all the time
        self._interfered = 0
        self.margin = self._residuals.margin
        self.trusted = True
        self.samples = 0
        self._read_weights()

    def restart(self) -> None:
        """The engine's process is new; see `LlmCost.restart`. Factors are kept and followed quickly again."""
        self._regression = LeastSquares(self._regression.weights)
        self._residuals = Residuals()
        self._threads = {threads: (factor, 0) for threads, (factor, _) in self._threads.items()}
        self._interfered = 0
        self.margin, self.trusted = self._residuals.margin, self._residuals.trusted
        self.samples = 0

    def seconds(self, tokens: float, texts: float, threads: int = 1, beside: float = 0.0) -> float:
        """Seconds of one batch. `beside`: share of the time in which an LLM on the same device computes.

        0 threads are the engine's own choice, which is taken as the reference like 1.
        """
        base = self._setup + self._per_token * tokens + self._per_text * texts
        if threads > 1:
            base *= self._factor(threads)
        return base * (1.0 + self._interference * beside) if beside else base

    def observe(
        self, tokens: float, texts: float, seconds: float, threads: int = 1, beside: float = 0.0
    ) -> None:
        """Learn the seconds of one batch that had the engine for itself; arguments as in `seconds`."""
        tokens, texts = bounded(tokens, 0.0, _MOST_TOKENS), bounded(texts, 0.0, _MOST_TOKENS)
        seconds = bounded(seconds, *_SECONDS)
        beside = bounded(beside, 0.0, 1.0)
        self._residuals.observe(self.seconds(tokens, texts, threads, beside), seconds)
        self.margin, self.trusted = self._residuals.margin, self._residuals.trusted
        self.samples += 1
        if beside:
            self._learn_interference(seconds / self.seconds(tokens, texts, threads), beside)
            seconds /= 1.0 + self._interference * beside
        if threads > 1:
            self._learn_threads(seconds / self.seconds(tokens, texts, threads), threads)
            seconds /= self._factor(threads)
        self._regression.observe((1.0, tokens, texts, 0.0), seconds)
        self._read_weights()

    def tokens_within(self, seconds: float, tokens_per_text: float, threads: int = 1) -> int:
        """How many tokens a batch of texts of that length may have to take at most so long, at least 1."""
        if threads > 1:
            seconds /= self._factor(threads)
        slope = self._per_token + self._per_text / max(1.0, tokens_per_text)
        return int(bounded((seconds - self._setup) / slope, 1.0, _MOST_TOKENS))

    def _factor(self, threads: int) -> float:
        learned = self._threads.get(threads)
        return learned[0] if learned is not None else float(threads**-self._SCALING)

    def _learn_threads(self, ratio: float, threads: int) -> None:
        """Move the factor of this thread count by the part of the error that it can explain."""
        if threads > self._MOST_THREADS:
            return
        count = self._threads.get(threads, (0.0, 0))[1] + 1
        moved = self._factor(threads) * exp(max(0.03, 1.0 / (count + 3)) * log(bounded(ratio, 0.25, 4.0)))
        self._threads[threads] = (bounded(moved, 0.5 / threads, 4.0), count)

    def _learn_interference(self, ratio: float, beside: float) -> None:
        self._interfered += 1
        found = bounded((ratio - 1.0) / beside, *self._INTERFERENCE)
        rate = max(0.03, 1.0 / (self._interfered + 3))
        self._interference += rate * beside * (found - self._interference)

    def _read_weights(self) -> None:
        self._setup, self._per_token, self._per_text, _ = self._regression.weights
        self.knee = max(1, ceil(2.0 * self._setup / self._per_token))


class OutputLengths:
    """How long answers are, by model, tenant and size of `max_tokens`: streaming quantiles.

    At most `keys` combinations are kept, those that were observed last; an unknown one gets the prior,
    128 and 512 tokens. Predictions never exceed `max_tokens`.
    """

    __slots__ = ("_keys", "_known")

    _P50: Final = 128.0
    _P90: Final = 512.0

    def __init__(self, keys: int = 4096) -> None:
        self._keys = keys
        self._known: OrderedDict[tuple[str, str, int], tuple[Quantile, Quantile]] = OrderedDict()

    def quantiles(self, model: str, tenant: str, max_tokens: int | None) -> tuple[float, float]:
        """Tokens that half of such answers, and nine in ten, do not exceed."""
        size = -1 if max_tokens is None else max_tokens.bit_length()
        known = self._known.get((model, tenant, size))
        p50, p90 = (self._P50, self._P90) if known is None else (known[0].value, known[1].value)
        if max_tokens is None or p50 < max_tokens > p90:
            return p50, p90
        most = float(max_tokens)
        return p50 if p50 < most else most, p90 if p90 < most else most

    def p50(self, model: str, tenant: str, max_tokens: int | None) -> float:
        """Tokens that half of such answers do not exceed."""
        return self.quantiles(model, tenant, max_tokens)[0]

    def p90(self, model: str, tenant: str, max_tokens: int | None) -> float:
        """Tokens that nine in ten such answers do not exceed."""
        return self.quantiles(model, tenant, max_tokens)[1]

    def observe(self, model: str, tenant: str, max_tokens: int | None, tokens: int) -> None:
        """Learn the length of one complete answer."""
        key = (model, tenant, -1 if max_tokens is None else max_tokens.bit_length())
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = (Quantile(0.5, self._P50), Quantile(0.9, self._P90))
            if len(self._known) > self._keys:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(key)
        length = float(max(1, tokens))
        known[0].observe(length)
        known[1].observe(length)


class PromptTokens:
    """Prompt tokens from bytes, by the bytes per token learned for each model; 4 before the first.

    Long prompts count for more, old ones for less. At most `models` are kept, those observed last.
    """

    __slots__ = ("_known", "_models")

    _PRIOR: Final = (4096.0, 1024.0)  # bytes and tokens
    _FORGET: Final = 0.98
    _RATIO: Final = (0.1, 64.0)  # bytes per token; what is beyond has not been counted by this text

    def __init__(self, models: int = 256) -> None:
        self._models = models
        self._known: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def estimate(self, model: str, prompt_bytes: int) -> int:
        """Tokens of a prompt of so many bytes, at least 1."""
        seen, tokens = self._known.get(model, self._PRIOR)
        return int(prompt_bytes * tokens / seen + 0.5) or 1

    def observe(self, model: str, prompt_bytes: int, tokens: int) -> None:
        """Learn what an engine counted. Tells nothing when either is 0."""
        if prompt_bytes <= 0 or tokens <= 0:
            return
        low, high = self._RATIO
        counted = bounded(tokens, prompt_bytes / high, prompt_bytes / low)
        seen, so_far = self._known.pop(model, self._PRIOR)
        self._known[model] = (seen * self._FORGET + prompt_bytes, so_far * self._FORGET + counted)
        if len(self._known) > self._models:
            self._known.popitem(last=False)
