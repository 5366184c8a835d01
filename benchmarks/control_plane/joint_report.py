"""What `joint.py` found, as JSON and as a page of Markdown."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sage.benchmark import environment
from sage.benchmark.arms import Block, Goals, per_arm, ratios, significance
from sage.benchmark.load import Report
from sage.benchmark.metrics import Limits, lag
from sage.benchmark.stats import quantile
from sage.benchmark.summary import Metric, check_lag

LABEL = "RANDOM-WEIGHTS"
BASELINES = ("siloed-default", "siloed-tuned")
SCALES = (0.5, 2.0)
LEGEND = (
    "* = too few samples for this percentile to be trusted. Latencies count from the intended send. A "
    "request without an answer in time counts as the timeout, one that was refused has no latency; both are "
    "misses. Goodput is what met its goals, per second of the block. A ratio to nothing is infinite."
)
ROWS = {
    ("chat", "ttft_p50"): "chat TTFT p50, ms",
    ("chat", "ttft_p99"): "chat TTFT p99, ms",
    ("chat", "tpot_p50"): "chat TPOT p50, ms",
    ("chat", "tpot_p99"): "chat TPOT p99, ms",
    ("embed", "e2e_p50"): "embedding p50, ms",
    ("embed", "e2e_p99"): "embedding p99, ms",
    ("bulk", "texts_per_s"): "bulk, texts/s",
    ("chat", "attainment"): "chat attainment",
    ("embed", "attainment"): "embedding attainment",
    ("joint", "attainment"): "joint attainment",
    ("chat", "goodput"): "chat goodput, requests/s",
    ("embed", "goodput"): "embedding goodput, requests/s",
    ("joint", "goodput"): "joint goodput, requests/s",
    ("machine", "busy_cores"): "cores kept busy",
}


def write(
    folder: Path,
    *,
    config: dict[str, Any],
    goals: Goals,
    rate: float,
    tried: list[dict[str, float]],
    unloaded: Block,
    blocks: dict[str, list[Block]],
    orders: list[list[str]],
    clients: Sequence[Report],
    wall_s: float,
) -> None:
    """Write `joint.json` and `joint.md` and print the page."""
    seed = config["seed"]
    invalid = _late(blocks)
    result: dict[str, Any] = {
        "schema_version": 1,
        "label": LABEL,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "valid": not invalid,
        "invalid": invalid,
        "environment": environment.describe(),
        "config": config,
        "wall_s": wall_s,
        "block_s": [block.seconds for block in next(iter(blocks.values()))],
        "repetitions": len(orders),
        "orders": orders,
        "load": {"chat_rate": rate, "embed_rate": rate * config["load"]["embed_per_chat"], "sweep": tried},
        "client": _client(clients, blocks),
        "unloaded": [asdict(m) for m in _without_storm(unloaded, goals, seed)],
        "arms": {arm: _arm(found, goals, seed) for arm, found in blocks.items()},
        "ratios": {
            arm: {
                baseline: _against(blocks[arm], blocks[baseline], goals, seed)
                for baseline in BASELINES
                if baseline in blocks and baseline != arm
            }
            for arm in blocks
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "joint.json").write_text(
        json.dumps(_plain(result), indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    page = markdown(result)
    (folder / "joint.md").write_text(page, encoding="utf-8")
    print(page)


def _plain(value: Any) -> Any:
    """JSON knows no infinity: it is written as text."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return "inf" if value == math.inf else value


def _late(blocks: dict[str, list[Block]]) -> list[str]:
    """Arms whose requests left too late to be trusted, and by how much."""
    reasons = {arm: check_lag([r for block in found for r in block.records]) for arm, found in blocks.items()}
    return [f"{arm}: {reason}" for arm, reason in reasons.items() if reason]


def _client(clients: Sequence[Report], blocks: dict[str, list[Block]]) -> dict[str, Any]:
    lags = {
        arm: [lag(record) for block in found for record in block.records if not record.closed]
        for arm, found in blocks.items()
    }
    return {
        "lag_p99_ms": {arm: quantile(late, 0.99) * 1000 for arm, late in lags.items()},
        "priority": sorted({client.priority for client in clients}),
        "busy_cores": sum(c.cpu_s for c in clients) / sum(c.wall_s for c in clients),
    }


def _without_storm(block: Block, goals: Goals, seed: int) -> list[Metric]:
    return [metric for metric in per_arm([block], goals, seed=seed) if metric.group in ("chat", "embed")]


def _arm(blocks: Sequence[Block], goals: Goals, seed: int) -> dict[str, Any]:
    outcomes: dict[str, Counter[str]] = {}
    for block in blocks:
        for kind in goals:
            outcomes.setdefault(kind, Counter()).update(record.outcome for record in block.of(kind))
        refused = Counter(record.outcome for record in block.records if record.kind == "bulk")
        outcomes.setdefault("bulk", Counter()).update(refused)
    scaled = {
        f"x{scale:g}": {
            metric.group: metric.value
            for metric in per_arm(blocks, _scaled(goals, scale), seed=seed)
            if metric.name == "attainment"
        }
        for scale in SCALES
    }
    roles = sorted({role for block in blocks for role in block.cores})
    return {
        "metrics": [asdict(metric) for metric in per_arm(blocks, goals, seed=seed)],
        "outcomes": {kind: dict(tally) for kind, tally in outcomes.items()},
        "attainment_at_scaled_goals": scaled,
        "busy_cores": {role: sum(b.cores.get(role, 0.0) for b in blocks) / len(blocks) for role in roles},
    }


def _scaled(goals: Goals, factor: float) -> Goals:
    def times(limit: float | None) -> float | None:
        return None if limit is None else limit * factor

    return {kind: Limits(times(g.ttft), times(g.tpot), times(g.e2e)) for kind, g in goals.items()}


def _against(arm: Sequence[Block], baseline: Sequence[Block], goals: Goals, seed: int) -> dict[str, Any]:
    return {
        "metrics": [asdict(metric) for metric in ratios(arm, baseline, goals, seed=seed)],
        "p_holm": significance(arm, baseline, goals, seed=seed),
    }


def markdown(result: dict[str, Any]) -> str:
    """The page."""
    arms = result["arms"]
    tables = [_table("Per arm, with 95 % intervals", {arm: found["metrics"] for arm, found in arms.items()})]
    for baseline in BASELINES:
        columns = {
            arm: found[baseline]["metrics"] for arm, found in result["ratios"].items() if baseline in found
        }
        if columns:
            tables.append(_table(f"Ratio to {baseline}, with 95 % intervals over blocks", columns))
    return "\n".join(
        [
            f"# Chat, embeddings and an ingestion storm on one machine [{LABEL}]",
            "",
            _setting(result),
            "",
            *[f"**INVALID**: {reason}." for reason in result["invalid"]],
            *tables,
            _outcomes(arms),
            LEGEND,
            "",
        ]
    )


def _setting(result: dict[str, Any]) -> str:
    hardware, git = result["environment"]["hardware"], result["environment"]["git"]
    load, config = result["load"], result["config"]
    goals = {name: seconds * 1000 for name, seconds in config["goals"].items()}
    alone = {(m["group"], m["name"]): m["value"] for m in result["unloaded"]}
    commit = git.get("commit", "unknown")[:12] + " (dirty)" * bool(git.get("dirty"))
    return " ".join(
        (
            f"{result['at']}, commit {commit},",
            f"{hardware['cpu']}, {hardware['usable_cores']} cores. {result['repetitions']} repetitions of",
            f"{min(result['block_s']):.0f} to {max(result['block_s']):.0f} s per arm, orders drawn.",
            f"Load: {load['chat_rate']:.2f} chats/s, {load['embed_rate']:.2f} single embeddings/s,",
            f"{config['load']['storm_workers']} clients of {config['load']['storm_texts']} texts.",
            f"Goals: chat TTFT {goals['chat_ttft_s']:.0f} ms and TPOT {goals['chat_tpot_s']:.0f} ms,",
            f"embedding {goals['embed_total_s']:.0f} ms. p50 without a storm: TTFT",
            f"{alone['chat', 'ttft_p50']:.0f} ms, TPOT {alone['chat', 'tpot_p50']:.1f} ms, embedding",
            f"{alone['embed', 'e2e_p50']:.0f} ms. Client: {', '.join(result['client']['priority'])},",
            f"{result['client']['busy_cores']:.3f} cores, late by at most",
            f"{max(result['client']['lag_p99_ms'].values()):.1f} ms at p99.",
        )
    )


def _table(title: str, columns: dict[str, list[dict[str, Any]]]) -> str:
    found = {arm: {(m["group"], m["name"]): m for m in metrics} for arm, metrics in columns.items()}
    lines = [f"## {title}", "", f"| | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    for key, words in ROWS.items():
        lines.append(f"| {words} | " + " | ".join(_cell(metrics[key]) for metrics in found.values()) + " |")
    return "\n".join([*lines, ""])


def _cell(metric: dict[str, Any]) -> str:
    star = "*" if metric["starred"] else ""
    return f"{metric['value']:.3g}{star} ({metric['low']:.3g} to {metric['high']:.3g})"


def _outcomes(arms: dict[str, Any]) -> str:
    lines = [
        "## What became of the requests",
        "",
        "| arm | class | ok | shed | failed | timeout |",
        "|---" * 6 + "|",
    ]
    for arm, found in arms.items():
        for kind, tally in found["outcomes"].items():
            cells = " | ".join(str(tally.get(outcome, 0)) for outcome in ("ok", "shed", "failed", "timeout"))
            lines.append(f"| {arm} | {kind} | {cells} |")
    return "\n".join([*lines, ""])
