"""`sage explain`: one decision of the control plane in plain words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from sage.cli.commands.stack import Config, Json, paths
from sage.cli.output import columns, emit

if TYPE_CHECKING:
    from sage.common.api import Decision

__all__ = ["explain"]


def explain(
    request_id: Annotated[str, typer.Argument(help="The x-request-id of an answer.")],
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Why a request was served where it was, and how long it took."""
    from sage.middleware.stack import admin_client

    decision = admin_client(paths(config)).decision(request_id)
    if as_json:
        emit(decision)
        return
    print("\n".join(_lines(decision)))


def _lines(d: Decision) -> Iterator[str]:
    rows = (
        ("request", f"{d.request_id} ({d.request_class}, tenant {d.tenant}, {d.route})"),
        ("model", d.model),
        ("goals", _goals(d)),
        ("expected", _expected(d)),
        ("ahead", _ahead(d)),
        ("engine", d.engine or "never placed"),
        ("why", f"{d.reason} (policy {d.policy})"),
        ("outcome", _outcome(d)),
        ("queued", _ms(d.queue_s)),
        ("first byte", _ms(d.ttft_s)),
        ("latency", _ms(d.latency_s)),
        ("predicted", _prediction(d)),
        ("tokens", f"{_count(d.prompt_tokens)} in, {_count(d.completion_tokens)} out"),
    )
    for name, value in rows:
        yield f"{name:<11}{value}"
    yield ""
    yield _candidates(d)


def _goals(d: Decision) -> str:
    goals = (
        ("first token within", d.slo.ttft_s),
        ("a token every", d.slo.tpot_s),
        ("all of it within", d.slo.total_s),
        ("dropped after", d.deadline_s),
    )
    return ", ".join(f"{what} {_ms(seconds)}" for what, seconds in goals if seconds is not None) or "none"


def _expected(d: Decision) -> str:
    parts = [] if d.prompt_tokens_estimate is None else [f"about {d.prompt_tokens_estimate} tokens in"]
    if d.output_tokens_p50:
        parts.append(f"{d.output_tokens_p50:.0f} out")
    if d.cached_tokens:
        parts.append(f"{d.cached_tokens} of them cached at the engine")
    return ", ".join(parts) or "-"


def _ahead(d: Decision) -> str:
    if d.ahead is None:
        return "-"
    if not d.ahead:
        return "nothing waited before it"
    work = f" ({_ms(d.ahead_s)} of engine time)" if d.ahead_s else ""
    return f"{d.ahead} {_noun(d.ahead, 'request')} waited before it{work}"


def _outcome(d: Decision) -> str:
    facts = [f"{d.outcome} ({d.refusal})" if d.refusal else d.outcome]
    for number, noun in ((d.retries, "retry"), (d.hedges, "hedge"), (d.crashes, "engine crash")):
        if number:
            facts.append(f"{number} {_noun(number, noun)}")
    if d.attempts > 1:
        facts.append(f"{d.attempts} calls to engines")
    return ", ".join(facts)


def _prediction(d: Decision) -> str:
    if d.predicted_s is None:
        return "nothing: this policy predicts no times, or had seen too little"
    what = "the first token" if d.output_tokens_p50 is not None else "the answer"
    said = f"{_ms(d.predicted_s)} from the engine's start to {what}"
    if d.actual_s is None:
        return said
    off = abs(d.predicted_s - d.actual_s)
    share = f" ({off / d.actual_s:.0%} off)" if d.actual_s else ""
    return f"{said}; it took {_ms(d.actual_s)}{share}"


def _candidates(d: Decision) -> str:
    if not d.candidates:
        return (
            "The engines that it could have gone to were not kept: under load only a sample of decisions is."
            "\nSend `x-sage-explain: 1` with a request to have them kept."
        )
    return columns(
        ("CHOSEN", "ENGINE", "RUNNING", "FREE", "PREDICTED", "CACHED TOKENS"),
        [
            (
                "*" if c.engine == d.engine else "",
                c.engine,
                c.running,
                c.free,
                _ms(c.predicted_s),
                c.cached_tokens,
            )
            for c in d.candidates
        ],
    )


def _noun(number: int, noun: str) -> str:
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}es" if noun.endswith("sh") else f"{noun}s"
    return noun if number == 1 else plural


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"


def _count(tokens: int | None) -> str:
    return "-" if tokens is None else str(tokens)
