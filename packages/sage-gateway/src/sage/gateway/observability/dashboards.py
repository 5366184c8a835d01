"""The dashboards, as data. `dashboard` makes of one what Grafana imports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["DASHBOARDS", "Board", "Panel", "dashboard"]

SCHEMA: Final = 41  # of Grafana 12; older ones migrate what they can
WIDTH: Final = 12
HEIGHT: Final = 8
SOURCE: Final[Mapping[str, str]] = {"type": "prometheus", "uid": "${source}"}


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: queries by their legends. `unit` is Grafana's name of it."""

    title: str
    unit: str
    queries: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard."""

    title: str
    panels: tuple[Panel, ...]


def dashboard(name: str, board: Board) -> dict[str, Any]:
    """What Grafana imports, with a variable that chooses the Prometheus to ask."""
    return {
        "uid": f"sage-{name}",
        "title": f"SAGE: {board.title}",
        "tags": ["sage"],
        "schemaVersion": SCHEMA,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [{"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}]
        },
        "panels": [_panel(number, panel) for number, panel in enumerate(board.panels)],
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(number, 2)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": dict(SOURCE),
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + at), "datasource": dict(SOURCE), "expr": query, "legendFormat": legend}
            for at, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def _quantiles(metric: str, by: str = "request_class") -> dict[str, str]:
    """Half and 99 % of a histogram's observations."""
    inner = f"sum by (le{f', {by}' if by else ''}) (rate({metric}_bucket[5m]))"
    name = f" {{{{{by}}}}}" if by else ""
    return {f"p{share}{name}": f"histogram_quantile(0.{share}, {inner})" for share in (50, 99)}


DASHBOARDS: Final[dict[str, Board]] = {
    "overview": Board(
        "overview",
        (
            Panel(
                "Requests by outcome",
                "reqps",
                {"{{outcome}}": "sum by (outcome) (rate(sage_requests_total[5m]))"},
            ),
            Panel(
                "Requests by class",
                "reqps",
                {"{{request_class}}": "sum by (request_class) (rate(sage_requests_total[5m]))"},
            ),
            Panel(
                "Tokens by model",
                "short",
                {"{{model}} {{type}}": "sum by (model, type) (rate(sage_tokens_total[5m]))"},
            ),
            Panel(
                "Open",
                "short",
                {
                    "connections {{listener}}": "sum by (listener) (sage_connections_open)",
                    "streams": "sum(sage_streams_open)",
                },
            ),
            Panel(
                "Bounds that were met",
                "short",
                {"{{limit}}": "sum by (limit) (rate(sage_limit_hits_total[5m])) > 0"},
            ),
            Panel("Lag of the serving loop", "s", _quantiles("sage_event_loop_lag_seconds", "")),
        ),
    ),
    "latency": Board(
        "latency and goals",
        (
            Panel("Time to first token", "s", _quantiles("gen_ai_server_time_to_first_token_seconds")),
            Panel("Time per output token", "s", _quantiles("gen_ai_server_time_per_output_token_seconds")),
            Panel("Whole answer", "s", _quantiles("gen_ai_server_request_duration_seconds")),
            Panel("Arrival to an engine", "s", _quantiles("sage_request_queue_seconds")),
            Panel(
                "Share of the offered requests that met every goal",
                "percentunit",
                {
                    "{{request_class}}": "sum by (request_class) (rate(sage_requests_met_total[5m])) / "
                    'sum by (request_class) (rate(sage_requests_total{outcome!="cancelled"}[5m]))'
                },
            ),
            Panel("The control plane itself", "s", _quantiles("sage_dispatch_overhead_seconds", "")),
        ),
    ),
    "engines": Board(
        "engines and cores",
        (
            Panel("Engines by state", "short", {"{{state}}": "sum by (state) (sage_engine_state)"}),
            Panel(
                "Share of their slots in use",
                "percentunit",
                {"{{engine}}": "sage_engine_running_requests / sage_engine_max_running_requests"},
            ),
            Panel(
                "Calls",
                "reqps",
                {
                    "{{engine}} answered": "sum by (engine) (rate(sage_engine_served_total[5m]))",
                    "{{engine}} failed": "sum by (engine) (rate(sage_engine_failed_total[5m]))",
                },
            ),
            Panel("Restarts", "short", {"{{engine}}": "increase(sage_engine_restarts_total[15m])"}),
            Panel(
                "Half of the predictions are off by at most",
                "percentunit",
                {"{{engine}}": "sage_prediction_error_ratio_p50"},
            ),
            Panel("Texts in one embedding call", "short", _quantiles("sage_embedding_call_texts", "engine")),
        ),
    ),
    "queues": Board(
        "queues, admission, tenants",
        (
            Panel("Waiting", "short", {"{{request_class}}": "sage_queue_waiting_requests"}),
            Panel("Waiting bytes", "bytes", {"{{request_class}}": "sage_queue_waiting_bytes"}),
            Panel("The oldest has waited", "s", {"{{request_class}}": "sage_queue_oldest_seconds"}),
            Panel(
                "Refused, by reason",
                "reqps",
                {"{{reason}}": "sum by (reason) (rate(sage_requests_shed_total[5m]))"},
            ),
            Panel(
                "Sent again",
                "reqps",
                {
                    "retries": "sum(rate(sage_request_retries_total[5m]))",
                    "hedges": "sum(rate(sage_request_hedges_total[5m]))",
                    "quarantined": "sum(rate(sage_requests_quarantined_total[5m]))",
                    "fallbacks of {{name}}": "sum by (name) (rate(sage_fallbacks_total[5m]))",
                },
            ),
            Panel(
                "Batches",
                "short",
                {
                    "{{status}}": "sum by (status) (sage_batches)",
                    "lines {{outcome}}": "sum by (outcome) (increase(sage_batch_lines_total[15m]))",
                },
            ),
            Panel("By tenant", "reqps", {"{{tenant}}": "sum by (tenant) (rate(sage_requests_total[5m]))"}),
        ),
    ),
    "keys": Board(
        "keys, usage, limits",
        (
            Panel("Under way, by key", "short", {"{{key}}": "sage_key_running_requests"}),
            Panel(
                "Over a limit of their key",
                "reqps",
                {"{{key}} {{limit}}": "sum by (key, limit) (rate(sage_key_refusals_total[5m]))"},
            ),
            Panel(
                "Refused at the door and for their bodies",
                "reqps",
                {"{{limit}}": 'sum by (limit) (rate(sage_limit_hits_total{limit!~"key_.*"}[5m])) > 0'},
            ),
            Panel("Tokens by type", "short", {"{{type}}": "sum by (type) (increase(sage_tokens_total[1h]))"}),
        ),
    ),
    "jobs": Board(
        "jobs",
        (
            Panel("Jobs by state", "short", {"{{state}}": "sum by (state) (sage_jobs)"}),
            Panel(
                "Restarts after a crash", "short", {"all jobs": "sum(increase(sage_job_restarts_total[15m]))"}
            ),
            Panel("Since the newest checkpoint", "s", {"{{job}}": "sage_job_checkpoint_age_seconds"}),
            Panel("Event loop has not moved for", "s", {"{{job}}": "sage_job_loop_stuck_seconds"}),
            Panel(
                "Records out of each operator",
                "short",
                {
                    "{{job}} {{operator}}": "sum by (job, operator) "
                    '(rate(sage_job_operator_records_total{way="out"}[5m]))'
                },
            ),
            Panel(
                "Diverted, skipped and tried again",
                "short",
                {
                    "{{job}} {{operator}} {{way}}": "sum by (job, operator, way) "
                    '(rate(sage_job_operator_records_total{way=~"diverted|skipped"}[5m]))',
                    "{{job}} {{operator}} again": "sum by (job, operator) "
                    "(rate(sage_job_operator_retries_total[5m]))",
                },
            ),
            Panel(
                "Seconds of work in a second",
                "short",
                {
                    "{{job}} {{operator}}": "sum by (job, operator) "
                    "(rate(sage_job_operator_busy_seconds_total[5m]))"
                },
            ),
            Panel(
                "Share of the time that a stage waits",
                "percentunit",
                {
                    "{{job}} {{operator}}": "sum by (job, operator) "
                    "(rate(sage_job_operator_wait_seconds_total[5m]))"
                },
            ),
            Panel("Under way", "short", {"{{job}} {{operator}}": "sage_job_operator_in_flight_records"}),
        ),
    ),
}
