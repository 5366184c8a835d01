from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from sage.common.errors import SageError
from sage.common.log import configure, get_logger, redact


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_events_are_json_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    configure(stream=stream)
    get_logger("sage.test").info("engine ready", engine="llm", port=8001)
    (line,) = _lines(stream)
    assert (line["event"], line["engine"], line["port"], line["level"]) == (
        "engine ready",
        "llm",
        8001,
        "info",
    )
    assert line["logger"] == "sage.test"
    assert line["timestamp"].endswith("Z")


def test_other_libraries_are_rendered_and_redacted_too() -> None:
    stream = io.StringIO()
    configure(style="json", stream=stream)
    logging.getLogger("other").warning("call with Bearer abc.def and sk-sage-12ab.secret_part")
    (line,) = _lines(stream)
    assert line["event"] == "call with Bearer [redacted] and sk-sage-12ab.[redacted]"


def test_the_level_counts_and_the_last_configuration_counts() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure("debug", style="json", stream=first)
    configure("warning", style="json", stream=second)
    get_logger("x").info("quiet")
    get_logger("x").warning("loud")
    assert not first.getvalue()
    assert [line["event"] for line in _lines(second)] == ["loud"]


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_traceback_has_no_local_variables(style: Any) -> None:
    stream = io.StringIO()
    configure(style=style, stream=stream)
    try:
        hidden = "a prompt that must not " + "show"
        raise ValueError(len(hidden))
    except ValueError:
        get_logger("x").exception("failed", prompt="secret words", token="t0")
    text = stream.getvalue()
    assert "ValueError: 28" in text or "ValueError" in text
    assert "must not show" not in text
    assert "secret words" not in text
    assert "[redacted]" in text


@pytest.mark.parametrize(
    "key",
    [
        "authorization",
        "Authorization",
        "api_key",
        "api-key",
        "x-api-key",
        "token",
        "admin_token",
        "prompt",
        "messages",
        "input",
    ],
)
def test_private_keys_are_hidden_at_any_depth(key: str) -> None:
    assert redact({"a": [{"b": {key: ["x"]}}]}) == {"a": [{"b": {key: "[redacted]"}}]}


@pytest.mark.parametrize("key", ["prompt_tokens", "max_tokens", "tokens", "input_bytes", "key", "model"])
def test_counts_and_names_stay(key: str) -> None:
    assert redact({key: 5}) == {key: 5}


SENT = "what a client sent"


def _fault(error: Exception) -> None:
    try:
        try:
            raise KeyError(SENT)
        except KeyError as cause:
            raise error from cause
    except Exception:
        get_logger("x").exception("failed")


@pytest.mark.parametrize("style", ["json", "console"])
@pytest.mark.parametrize(
    "error", [ValueError("a prompt"), ExceptionGroup("a prompt", [TypeError("a prompt")])]
)
def test_a_traceback_does_not_quote_what_the_exception_quotes(style: Any, error: Exception) -> None:
    stream = io.StringIO()
    configure("info", style=style, stream=stream)
    _fault(error)
    text = stream.getvalue()
    assert SENT not in text
    assert "a prompt" not in text
    assert type(error).__name__ in text
    assert "KeyError" in text
    assert "in _fault" in text


@pytest.mark.parametrize("error", [SageError("ours"), OSError(28, "No space left on device")])
def test_errors_of_ours_and_of_the_system_are_told(error: Exception) -> None:
    stream = io.StringIO()
    configure("info", style="json", stream=stream)
    _fault(error)
    assert str(error) in stream.getvalue()


def test_debug_tells_what_exceptions_say() -> None:
    stream = io.StringIO()
    configure("debug", style="json", stream=stream)
    _fault(ValueError("a prompt"))
    assert "ValueError: a prompt" in stream.getvalue()


def test_an_exception_may_be_given_or_be_the_one_that_is_handled() -> None:
    stream = io.StringIO()
    configure(style="json", stream=stream)
    logging.getLogger("x").error("given", exc_info=ValueError("hidden"))
    logging.getLogger("x").error("none", exc_info=True)
    given, none = _lines(stream)
    assert given["exception"] == "ValueError\n"
    assert "exception" not in none
