"""Names of request classes, metrics and headers: written once, spelled the same everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

__all__ = [
    "BATCHES",
    "BATCH_LINES",
    "BATCH_TEXTS",
    "BATCH_TOKENS",
    "CONNECTIONS",
    "DISPATCH_OVERHEAD",
    "DURATION",
    "ENGINE_FAILED",
    "ENGINE_RESTARTS",
    "ENGINE_RUNNING",
    "ENGINE_SERVED",
    "ENGINE_SLOTS",
    "ENGINE_STATE",
    "FALLBACKS",
    "HEADER_CLASS",
    "HEADER_DEADLINE",
    "HEADER_ENGINE",
    "HEADER_EXPLAIN",
    "HEADER_FALLBACK",
    "HEADER_PARENT",
    "HEADER_PRIORITY",
    "HEADER_QUEUE_MS",
    "HEADER_REASON",
    "HEADER_REQUEST_ID",
    "HEADER_SLO_TPOT",
    "HEADER_SLO_TTFT",
    "HEADER_TENANT",
    "HEADER_TRACE",
    "HEDGES",
    "JOBS",
    "JOB_CHECKPOINT_AGE",
    "JOB_RESTARTS",
    "KEY_REFUSED",
    "KEY_RUNNING",
    "LIMIT_HITS",
    "LOOP_LAG",
    "METRICS",
    "POLICY_INFO",
    "PREDICTIONS",
    "PREDICTION_CALIBRATION",
    "PREDICTION_ERROR",
    "QUARANTINED",
    "QUEUE_BYTES",
    "QUEUE_OLDEST",
    "QUEUE_TIME",
    "QUEUE_WAITING",
    "REQUESTS",
    "REQUESTS_MET",
    "REQUESTS_SHED",
    "RETRIES",
    "STREAMS",
    "TASKS",
    "TOKENS",
    "TPOT",
    "TTFT",
    "UPTIME",
    "Bound",
    "Metric",
    "RequestClass",
    "ShedReason",
]


class RequestClass(StrEnum):
    """What a request is to the scheduler."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBED_INTERACTIVE = "embed_interactive"
    EMBED_BULK = "embed_bulk"
    RERANK = "rerank"
    BATCH = "batch"


class ShedReason(StrEnum):
    """Why a request was refused before an engine had it: the kind; the words are in its decision."""

    QUEUE_FULL = "queue_full"  # its class waits at its bound of count or bytes
    EXPIRED = "expired"  # it waited longer than anything may
    DEADLINE = "deadline"  # its own hard deadline passed while it waited
    FORECAST = "forecast"  # the policy predicted that it would miss its goal
    NO_ENGINE = "no_engine"  # no engine of its model may be sent work
    OTHER = "other"


class Bound(StrEnum):
    """A bound that a request, a client or an engine can meet; none of them makes a name of its own."""

    REQUEST_LINE = "request_line"
    HEADER_BYTES = "header_bytes"  # of one
    HEADERS_BYTES = "headers_bytes"  # of all
    HEADER_COUNT = "header_count"
    HEAD_TIME = "head_time"
    BODY_TIME = "body_time"  # idle, or in all
    BODY_BYTES = "body_bytes"
    PIPELINED = "pipelined"
    CONNECTIONS = "connections"
    ADDRESS_CONNECTIONS = "address_connections"
    WRITE_STALL = "write_stall"
    STREAM_BUFFER = "stream_buffer"  # met, not broken: the engine was made to wait for the client
    JSON_DEPTH = "json_depth"
    JSON_KEYS = "json_keys"
    JSON_STRINGS = "json_strings"
    JSON_CONTAINERS = "json_containers"
    FORM_PARTS = "form_parts"
    FORM_HEAD_BYTES = "form_head_bytes"  # of one part
    FORM_FIELD_BYTES = "form_field_bytes"  # of one that is no file
    MESSAGES = "messages"
    TOOLS = "tools"
    N = "n"
    TOP_LOGPROBS = "top_logprobs"
    MAX_TOKENS = "max_tokens"
    INPUTS = "inputs"  # texts, documents, pairs, prompts
    INPUT_TOKENS = "input_tokens"
    TOKEN_CALLS = "token_calls"  # noqa: S105 - calls about tokens, not a secret
    KEY_CONCURRENT = "key_max_concurrent"
    KEY_RPM = "key_rpm"
    KEY_TPM = "key_tpm"
    KEY_DAY_TOKENS = "key_day_tokens"
    KEY_TOTAL_TOKENS = "key_total_tokens"
    KEY_OPEN_BATCHES = "key_max_open"
    KEY_FILES = "key_max_files"
    KEY_STORED_BYTES = "key_max_stored_bytes"
    QUEUE_REQUESTS = "queue_requests"
    QUEUE_BYTES = "queue_bytes"
    QUEUE_TIME = "queue_time"
    DEADLINE = "deadline"  # of the request itself
    FIRST_BYTE_TIME = "first_byte_time"  # from here on of an engine, for each attempt
    CHUNK_TIME = "chunk_time"
    ANSWER_TIME = "answer_time"
    ANSWER_HEAD_BYTES = "answer_head_bytes"
    ANSWER_BYTES = "answer_bytes"
    EVENT_BYTES = "event_bytes"


HEADER_CLASS: Final = "x-sage-class"
HEADER_DEADLINE: Final = "x-sage-deadline-ms"
HEADER_TENANT: Final = "x-sage-tenant"
HEADER_SLO_TTFT: Final = "x-sage-slo-ttft-ms"
HEADER_SLO_TPOT: Final = "x-sage-slo-tpot-ms"
HEADER_PRIORITY: Final = "x-sage-priority"
HEADER_PARENT: Final = "x-sage-parent"
HEADER_EXPLAIN: Final = "x-sage-explain"
HEADER_REQUEST_ID: Final = "x-request-id"
HEADER_ENGINE: Final = "x-sage-engine"
HEADER_QUEUE_MS: Final = "x-sage-queue-ms"
HEADER_REASON: Final = "x-sage-reason"
HEADER_TRACE: Final = "traceparent"
HEADER_FALLBACK: Final = "x-sage-fallback"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, named as Prometheus names them.

    `bounds`: exponents of the first and the last bucket of a histogram; its bounds are the powers of two
    from one to the other.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[int, int] = (0, 0)


_BY_TENANT: Final = ("request_class", "tenant")
_WAITS: Final = (-10, 9)  # 1 ms to 512 s
_GAPS: Final = (-10, 3)  # 1 ms to 8 s
_LAGS: Final = (-12, 4)  # 0.2 ms to 16 s
_MICROS: Final = (-20, -4)  # 1 us to 63 ms

POLICY_INFO: Final = Metric("sage_policy_info", "gauge", "", "1 for the policy in force", ("policy",))
UPTIME: Final = Metric("sage_uptime_seconds", "gauge", "s", "time since the serving process started")
TASKS: Final = Metric(
    "sage_tasks", "gauge", "tasks", "tasks on the event loop that serves, the few of its own included"
)
REQUESTS: Final = Metric(
    "sage_requests_total",
    "counter",
    "requests",
    "requests that have ended, by outcome: done, failed, rejected, cancelled",
    (*_BY_TENANT, "outcome"),
)
REQUESTS_MET: Final = Metric(
    "sage_requests_met_total", "counter", "requests", "requests done within every goal", _BY_TENANT
)
REQUESTS_SHED: Final = Metric(
    "sage_requests_shed_total",
    "counter",
    "requests",
    "requests refused, by the kind of reason",
    (*_BY_TENANT, "reason"),
)
RETRIES: Final = Metric(
    "sage_request_retries_total", "counter", "retries", "attempts made again after a fault", _BY_TENANT
)
HEDGES: Final = Metric(
    "sage_request_hedges_total", "counter", "hedges", "late calls that were sent a second time", _BY_TENANT
)
QUARANTINED: Final = Metric(
    "sage_requests_quarantined_total",
    "counter",
    "requests",
    "requests given up because engines crashed twice while they ran there",
    _BY_TENANT,
)
QUEUE_TIME: Final = Metric(
    "sage_request_queue_seconds", "histogram", "s", "arrival to an engine", _BY_TENANT, _WAITS
)
TTFT: Final = Metric(
    "gen_ai_server_time_to_first_token_seconds",
    "histogram",
    "s",
    "arrival to the first token of a stream",
    _BY_TENANT,
    _WAITS,
)
TPOT: Final = Metric(
    "gen_ai_server_time_per_output_token_seconds",
    "histogram",
    "s",
    "mean gap between tokens of a stream",
    _BY_TENANT,
    _GAPS,
)
DURATION: Final = Metric(
    "gen_ai_server_request_duration_seconds",
    "histogram",
    "s",
    "arrival to the last byte",
    _BY_TENANT,
    _WAITS,
)
TOKENS: Final = Metric(
    "sage_tokens_total",
    "counter",
    "tokens",
    "tokens of requests that are done, as engines counted them, by type: input, output",
    ("model", "type"),
)
LIMIT_HITS: Final = Metric(
    "sage_limit_hits_total", "counter", "hits", "times that a bound was met, by bound", ("limit",)
)
CONNECTIONS: Final = Metric(
    "sage_connections_open", "gauge", "connections", "connections of clients", ("listener",)
)
STREAMS: Final = Metric("sage_streams_open", "gauge", "streams", "streams that have begun and go on")
LOOP_LAG: Final = Metric(
    "sage_event_loop_lag_seconds",
    "histogram",
    "s",
    "how much too late the serving loop came to its beat, twenty times a second",
    (),
    _LAGS,
)
QUEUE_WAITING: Final = Metric(
    "sage_queue_waiting_requests", "gauge", "requests", "requests that wait", ("request_class",)
)
QUEUE_BYTES: Final = Metric(
    "sage_queue_waiting_bytes", "gauge", "bytes", "bodies of the requests that wait", ("request_class",)
)
QUEUE_OLDEST: Final = Metric(
    "sage_queue_oldest_seconds", "gauge", "s", "how long the oldest one has waited", ("request_class",)
)
DISPATCH_OVERHEAD: Final = Metric(
    "sage_dispatch_overhead_seconds",
    "histogram",
    "s",
    "the control plane's own time for one event, its decisions included",
    (),
    _MICROS,
)
BATCH_TEXTS: Final = Metric(
    "sage_embedding_call_texts", "histogram", "texts", "texts in one embedding call", ("engine",), (0, 11)
)
BATCH_TOKENS: Final = Metric(
    "sage_embedding_call_tokens",
    "histogram",
    "tokens",
    "estimated tokens in one embedding call",
    ("engine",),
    (3, 18),
)
PREDICTIONS: Final = Metric(
    "sage_predictions_total", "counter", "requests", "requests whose prediction could be checked", ("engine",)
)
PREDICTION_ERROR: Final = Metric(
    "sage_prediction_error_ratio_p50",
    "gauge",
    "1",
    "half of the predictions are off by at most this share of the actual time",
    ("engine",),
)
PREDICTION_CALIBRATION: Final = Metric(
    "sage_prediction_calibration_p90",
    "gauge",
    "1",
    "nine of ten requests took at most this many times what was predicted",
    ("engine",),
)
ENGINE_STATE: Final = Metric(
    "sage_engine_state", "gauge", "", "1 for the state that the engine is in", ("engine", "model", "state")
)
ENGINE_RUNNING: Final = Metric(
    "sage_engine_running_requests", "gauge", "requests", "calls at the engine now", ("engine",)
)
ENGINE_SLOTS: Final = Metric(
    "sage_engine_max_running_requests", "gauge", "requests", "calls that it takes at once", ("engine",)
)
ENGINE_SERVED: Final = Metric(
    "sage_engine_served_total", "counter", "requests", "calls that it answered", ("engine",)
)
ENGINE_FAILED: Final = Metric(
    "sage_engine_failed_total", "counter", "requests", "calls that failed", ("engine",)
)
ENGINE_RESTARTS: Final = Metric(
    "sage_engine_restarts_total",
    "counter",
    "restarts",
    "times that its process was started again",
    ("engine",),
)
FALLBACKS: Final = Metric(
    "sage_fallbacks_total",
    "counter",
    "requests",
    "requests for a name that went on to another model, by the kind of the error before",
    ("name", "model", "reason"),
)
KEY_RUNNING: Final = Metric(
    "sage_key_running_requests", "gauge", "requests", "requests of a key under way", ("key",)
)
KEY_REFUSED: Final = Metric(
    "sage_key_refusals_total", "counter", "requests", "requests over a limit of their key", ("key", "limit")
)
BATCHES: Final = Metric("sage_batches", "gauge", "batches", "batches that are stored", ("status",))
BATCH_LINES: Final = Metric(
    "sage_batch_lines_total",
    "counter",
    "lines",
    "lines of batches that have their result, by outcome: completed, failed",
    ("outcome",),
)
JOBS: Final = Metric("sage_jobs", "gauge", "jobs", "jobs that are kept", ("state",))
JOB_RESTARTS: Final = Metric(
    "sage_job_restarts_total",
    "counter",
    "restarts",
    "times that a job's process was started again after a crash, of all jobs",
)
JOB_CHECKPOINT_AGE: Final = Metric(
    "sage_job_checkpoint_age_seconds",
    "gauge",
    "s",
    "since the newest checkpoint of a job that runs, or since its start",
    ("job",),
)
JOB_STUCK: Final = Metric(
    "sage_job_loop_stuck_seconds", "gauge", "s", "since its event loop has last moved", ("job",)
)
_JOB_OPERATOR: Final = ("job", "operator")
JOB_RECORDS: Final = Metric(
    "sage_job_operator_records_total",
    "counter",
    "records",
    "records of an operator of a job that runs, by what it did with them: in, out, diverted, skipped",
    (*_JOB_OPERATOR, "way"),
)
JOB_RETRIES: Final = Metric(
    "sage_job_operator_retries_total", "counter", "calls", "calls that were made again", _JOB_OPERATOR
)
JOB_IN_FLIGHT: Final = Metric(
    "sage_job_operator_in_flight_records", "gauge", "records", "records under way in it", _JOB_OPERATOR
)
JOB_BUSY: Final = Metric(
    "sage_job_operator_busy_seconds_total", "counter", "s", "time inside its code", _JOB_OPERATOR
)
JOB_WAIT: Final = Metric(
    "sage_job_operator_wait_seconds_total", "counter", "s", "time that its stage had to wait", _JOB_OPERATOR
)

METRICS: Final = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
