"""What an engine says when it fails: its own words for our log, ours for the client.

A client sees fixed sentences with a status, the engine's name, the name of a field and numbers, and nothing
that the engine wrote. The log gets the engine's words, cut short and without what echoes the request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final

import msgspec

from sage.common.errors import BadRequestError, EngineError, OverloadedError, UnreachableError

__all__ = [
    "Complaint",
    "LostConnectionError",
    "LostEngineError",
    "UpstreamError",
    "brief",
    "complaint_of",
    "not_let_in",
    "refused",
    "seconds_of",
    "too_busy",
]

_MOST: Final = 300  # characters of an engine's words in one line of the log
_PART: Final = 120  # and of each part of a list of them
_SOON_S: Final = 1.0
_LONGEST_S: Final = 3600.0
_ECHO: Final = re.compile(r"""['"]input['"]\s*:""")  # from here on a validator repeats the request
_FIELD: Final = re.compile(r"[A-Za-z_]\w{0,39}([.\[]\w{1,39}\]?){0,6}", re.ASCII)
_OVERLONG: Final = re.compile(
    r"maximum (context|model) length|longer than the maximum|context (length|window) exceeded"
    r"|exceeds? the (model's )?(maximum )?context",
    re.IGNORECASE,
)
_LIMIT: Final = re.compile(r"maximum (?:context|model) length\D{0,20}(\d{1,9})\b", re.IGNORECASE)
_ASKED: Final = (
    re.compile(r"total of (?:at least )?(\d{1,9}) tokens"),
    re.compile(r"requested (?:about )?(\d{1,9}) tokens"),
    re.compile(r"resulted in (\d{1,9}) tokens"),
    re.compile(r"prompt \(length (\d{1,9})\)"),
)


class UpstreamError(EngineError):
    """The engine's answer is broken or an error. `told` is for the log alone: the engine's or a parser's."""

    def __init__(self, message: str, told: str) -> None:
        super().__init__(message)
        self.told = told


class LostConnectionError(EngineError):
    """It was closed in the middle of a request: the engine may have died of that."""


class LostEngineError(UnreachableError):
    """As `LostConnectionError`, of an engine to which there is no connection any more."""


@dataclass(frozen=True, slots=True)
class Complaint:
    """An engine's error as it was read: words for the log, and what may be said of it to the client."""

    words: str
    param: str | None = None
    overlong: bool = False
    limit: int | None = None
    asked: int | None = None


def brief(text: str, most: int = _MOST) -> str:
    """One short line of an engine's words, for the log: cut before it repeats what the client sent."""
    line = " ".join(text.split())
    echo = _ECHO.search(line)
    if echo is not None:
        line = line[: echo.start()] + "…"
    return line if len(line) <= most else line[:most] + "…"


def complaint_of(body: bytes) -> Complaint:
    """Read an error body: OpenAI's form, a bare string, or FastAPI's `detail`; never raises."""
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Complaint(f"{len(body)} bytes that are not JSON")
    if not isinstance(answer, dict):
        return Complaint("no reason given")
    found = answer.get("error", answer.get("detail", answer.get("message")))
    if isinstance(found, list):
        details = [each for each in found[:8] if isinstance(each, dict)]
        words = brief("; ".join(map(_detail, details))) or "no reason given"
        return Complaint(words, next(filter(None, (_place(each.get("loc")) for each in details)), None))
    param = code = None
    if isinstance(found, dict):
        param, code, found = found.get("param"), found.get("code"), found.get("message")
    return _worded(found if isinstance(found, str) else "", param, code)


def refused(engine: str, status: int, complaint: Complaint) -> BadRequestError:
    """The error that tells a client of an engine's 4xx."""
    if complaint.overlong:
        room = "" if complaint.limit is None else f" of {complaint.limit} tokens"
        asked = "" if complaint.asked is None else f"; it comes to {complaint.asked}"
        return BadRequestError(
            f"The engine {engine} answered {status}: the request does not fit the context{room}{asked}.",
            hint="Send less text, or ask for a shorter answer.",
            param=complaint.param,
        )
    field = "" if complaint.param is None else f" because of {complaint.param}"
    return BadRequestError(
        f"The engine {engine} refused the request with {status}{field}.", param=complaint.param
    )


def not_let_in(engine: str, status: int) -> EngineError:
    """The error for a 401 or 403: it is about our key at the engine, not about that of the client."""
    return EngineError(
        f"The engine {engine} answered {status}: it did not accept this server's key.",
        hint="This is for whoever runs the server: look at api_key_env of that engine.",
    )


def too_busy(engine: str, retry_after: float | None) -> OverloadedError:
    """The error for a 429; without a time to come again it is soon."""
    wait = _SOON_S if retry_after is None else retry_after
    return OverloadedError(f"The engine {engine} answered 429: it is over its limit.", retry_after=wait)


def seconds_of(header: str, now: float) -> float | None:
    """How long a Retry-After header asks to wait: seconds, or until a date (`now` is Unix time), or None.

    An hour at most.
    """
    text = header.strip()
    if text.isascii() and text.isdigit():
        return min(_LONGEST_S, float(text[:9]))
    try:
        return min(_LONGEST_S, max(0.0, parsedate_to_datetime(text).timestamp() - now))
    except (ValueError, OverflowError):
        return None


def _worded(text: str, param: object, code: object) -> Complaint:
    told = text[: echo.start()] if (echo := _ECHO.search(text)) else text
    overlong = code == "context_length_exceeded" or _OVERLONG.search(told) is not None
    asked = next((_number(pattern, told) for pattern in _ASKED if pattern.search(told)), None)
    name = param if isinstance(param, str) and _FIELD.fullmatch(param) else None
    limit = _number(_LIMIT, told) if overlong else None
    return Complaint(brief(text) or "no reason given", name, overlong, limit, asked if overlong else None)


def _number(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.search(text)
    return None if found is None else int(found[1])


def _detail(entry: Mapping[str, Any]) -> str:
    """One complaint of a validator, without the value that it complains about."""
    place = _place(entry.get("loc")) or "body"
    words = (entry.get("type"), entry.get("msg"))
    return f"{place}: " + ", ".join(brief(word, _PART) for word in words if isinstance(word, str))


def _place(loc: object) -> str | None:
    """`["body", "messages", 0, "content"]` as `messages[0].content`."""
    if not isinstance(loc, list):
        return None
    name = ""
    for part in loc[1:] if loc[:1] == ["body"] else loc:
        name += f"[{part}]" if isinstance(part, int) else f".{part}"
    name = name.removeprefix(".")
    return name if _FIELD.fullmatch(name) else None
