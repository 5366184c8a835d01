"""What the scripted engine answers where sound or pictures are asked for: small, and the same each time."""

from __future__ import annotations

import base64
from typing import Any, Final

import msgspec

from sage.middleware.engines.forms import read_form
from sage.middleware.engines.server import Request

__all__ = ["PICTURE", "SOUND", "fields_of", "media_answer"]

SOUND: Final = b"\xff\xfb\x90\x00"  # how each piece of it begins: that of an MP3 frame
PICTURE: Final = b"\x89PNG\r\n\x1a\n"
_EVENTS: Final = "text/event-stream; charset=utf-8"
_SOUNDS: Final = {"mp3": "audio/mpeg", "wav": "audio/wav", "pcm": "audio/pcm", "opus": "audio/ogg"}


def fields_of(request: Request) -> dict[str, Any]:
    """The fields of a body, JSON or a form; of a file its size."""
    kind = request.headers.get("content-type", "")
    if not kind.startswith("multipart/"):
        fields: dict[str, Any] = msgspec.json.decode(request.body)
        return fields
    return {
        field.name: field.stop - field.start if field.is_file else field.value.decode()
        for field in read_form(request.body, kind)
    }


def media_answer(path: str, asked: dict[str, Any], words: tuple[str, ...]) -> tuple[str, list[bytes]] | None:
    """Content type and pieces of an answer; None for another path."""
    if path.endswith("audio/speech"):
        return _speech(asked, words)
    if path.endswith(("audio/transcriptions", "audio/translations")):
        return _text(asked, words)
    if path.endswith(("images/generations", "images/edits")):
        return _pictures(asked)
    return None


def _speech(asked: dict[str, Any], words: tuple[str, ...]) -> tuple[str, list[bytes]]:
    sounds = [SOUND + word.encode() for word in words]
    if asked.get("stream_format") != "sse":
        return _SOUNDS[asked.get("response_format") or "mp3"], sounds
    events: list[dict[str, Any]] = [
        {"type": "speech.audio.delta", "audio": base64.b64encode(one).decode()} for one in sounds
    ]
    return _EVENTS, [_event(one) for one in (*events, {"type": "speech.audio.done", "usage": _usage(words)})]


def _text(asked: dict[str, Any], words: tuple[str, ...]) -> tuple[str, list[bytes]]:
    text = "".join(words)
    if str(asked.get("stream", "")).lower() == "true":
        events: list[dict[str, Any]] = [{"type": "transcript.text.delta", "delta": word} for word in words]
        events.append({"type": "transcript.text.done", "text": text, "usage": _usage(words)})
        return _EVENTS, [_event(one) for one in events]
    kind = asked.get("response_format") or "json"
    if kind == "text":
        return "text/html; charset=utf-8", [text.encode()]  # as whisper.cpp's server says
    if kind == "srt":
        return "application/x-subrip", [f"1\n00:00:00,000 --> 00:00:01,000\n{text}\n\n".encode()]
    if kind == "vtt":
        return "text/vtt", [f"WEBVTT\n\n00:00.000 --> 00:01.000\n{text}\n\n".encode()]
    return "application/json", [msgspec.json.encode({"text": text, "usage": _usage(words)})]


def _pictures(asked: dict[str, Any]) -> tuple[str, list[bytes]]:
    one = {"b64_json": base64.b64encode(PICTURE).decode()}
    usage = {"input_tokens": 5, "output_tokens": 7, "total_tokens": 12}
    if asked.get("stream"):
        kinds = ("image_generation.partial_image", "image_generation.completed")
        return _EVENTS, [_event({"type": kind, **one, "usage": usage}) for kind in kinds]
    data = [one] * int(asked.get("n") or 1)
    return "application/json", [msgspec.json.encode({"created": 0, "data": data, "usage": usage})]


def _usage(words: tuple[str, ...]) -> dict[str, Any]:
    return {"type": "tokens", "input_tokens": 3, "output_tokens": len(words), "total_tokens": 3 + len(words)}


def _event(event: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(event))
