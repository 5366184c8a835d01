"""Logs: one line an event on stderr, for eyes or as JSON, without secrets and without prompts."""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal, TextIO

import structlog

from sage.common.errors import SageError

__all__ = ["LogStyle", "configure", "get_logger", "redact"]

LogStyle = Literal["auto", "json", "console"]

_REDACTED = "[redacted]"
_CONTENT = {"prompt", "messages", "input"}
_SECRET = re.compile(r"(^|_)(authorization|api_key|token|secret|password)$")
_KEY_IN_TEXT = re.compile(r"(sk-[A-Za-z0-9]+-[A-Za-z0-9]+\.|[Bb]earer\s+)[A-Za-z0-9._~+/=-]+")


def configure(level: str = "info", *, style: LogStyle = "auto", stream: TextIO | None = None) -> None:
    """Send all logs of this process, those of other libraries too, to `stream` (default: stderr).

    `auto` writes for eyes on a terminal and JSON elsewhere. May be called again; the last call counts.
    A traceback says what was raised and where; what the exception says is left out, as it may quote a
    request, but for errors of ours and of the operating system, and at the level `debug`.
    """
    out = stream or sys.stderr
    plain = style == "json" or (style == "auto" and not out.isatty())
    before: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    last: list[structlog.types.Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    last += [structlog.processors.format_exc_info if level.lower() == "debug" else _traceback, _redact_event]
    if plain:
        last.append(structlog.processors.JSONRenderer())
    else:  # plain tracebacks: the pretty ones print local variables, prompts and keys among them
        pretty = structlog.dev.plain_traceback
        last.append(structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=pretty))
    handler = logging.StreamHandler(out)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=before, processors=last))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    structlog.configure(
        processors=[*before, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger for events with key-value pairs: `log.info("engine ready", engine="llm")`."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def redact(value: Any) -> Any:
    """A copy without secrets and user content: by names of keys at any depth, by the form of API keys."""
    if isinstance(value, Mapping):
        return {key: _REDACTED if _private(str(key)) else redact(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact(inner) for inner in value]
    return _KEY_IN_TEXT.sub(rf"\1{_REDACTED}", value) if isinstance(value, str) else value


def _private(key: str) -> bool:
    name = key.lower().replace("-", "_")
    return name in _CONTENT or _SECRET.search(name) is not None


def _traceback(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    found = event.pop("exc_info", None)
    error = sys.exc_info()[1] if found is True else found[1] if isinstance(found, tuple) else found
    if isinstance(error, BaseException):
        event["exception"] = _quiet(error)
    return event


def _quiet(error: BaseException) -> str:
    """The traceback of an exception and of what led to it, without what the exceptions say."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    words = f": {error}" if isinstance(error, SageError | OSError) else ""
    parts = [_quiet(before), "\nwhich led to:\n\n"] if before is not None else []
    parts += [*traceback.format_tb(error.__traceback__), f"{type(error).__name__}{words}\n"]
    if isinstance(error, BaseExceptionGroup):
        parts += [f"with:\n{_quiet(inner)}" for inner in error.exceptions]
    return "".join(parts)


def _redact_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    clean: dict[str, Any] = redact(event)
    return clean
