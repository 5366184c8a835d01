"""What a request for sound or pictures asks for, and what is refused of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sage.common.errors import BadRequestError
from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.classify import Parsed, ParseLimits, parse
from sage.middleware.control_plane.media_bodies import MAX_IMAGES, MAX_MODEL
from sage.middleware.control_plane.routing import retarget
from sage.middleware.control_plane.types import Slo
from sage.middleware.engines.port import Capability, Route, asks_media

TYPE = 'multipart/form-data; boundary="b"'
FILE: dict[str, str | bytes] = {"file": b"x" * 4096, "model": "whisper"}


def form(fields: dict[str, str | bytes]) -> bytes:
    """Text fields, and files for values that are bytes."""
    out = b""
    for name, value in fields.items():
        text = isinstance(value, str)
        head = f'Content-Disposition: form-data; name="{name}"' + ("" if text else '; filename="f.wav"')
        out += b"--b\r\n%b\r\n\r\n%b\r\n" % (
            head.encode(),
            value.encode() if isinstance(value, str) else value,
        )
    return out + b"--b--\r\n"


def read(route: Route, body: bytes | dict[str, Any], **headers: str) -> Parsed:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"content-type": TYPE, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return parse(route, raw, limits=ParseLimits(), tenant="t", headers=given)


def test_speech_is_a_stream_by_its_nature() -> None:
    parsed = read(Route.SPEECH, {"model": "tts", "input": "a word or two", "voice": "alloy", "speed": 1.5})
    job, call = parsed.job, parsed.call
    assert job.needs == {Capability.SPEECH}
    assert (job.model, job.request_class) == ("tts", RequestClass.COMPLETION)
    assert (job.prompt_tokens, job.prompt_bytes, job.max_tokens, job.texts) == (3, 0, None, 0)
    assert (call.stream, call.include_usage, call.content_type) == (True, True, "")
    assert asks_media(job.needs)
    assert not asks_media(frozenset((Capability.CHAT, Capability.N)))


@pytest.mark.parametrize(
    ("route", "need"),
    [
        (Route.TRANSCRIPTIONS, Capability.TRANSCRIPTION),
        (Route.TRANSLATIONS, Capability.TRANSLATION),
    ],
)
def test_sound_to_text(route: Route, need: Capability) -> None:
    parsed = read(route, form({**FILE, "prompt": "four"}))
    assert parsed.job.needs == {need}
    assert (parsed.job.model, parsed.job.prompt_tokens) == ("whisper", 5)
    assert parsed.call.body == form({**FILE, "prompt": "four"})
    assert (parsed.call.content_type, parsed.call.stream) == (TYPE, False)
    streamed = read(route, form({**FILE, "stream": "True"}))
    assert (streamed.call.stream, streamed.job.stream) == (True, True)


@pytest.mark.parametrize("stream", [None, False, True])
def test_pictures(stream: bool | None) -> None:
    parsed = read(Route.IMAGES, {"model": "dall", "prompt": "a boat", "n": MAX_IMAGES, "stream": stream})
    assert parsed.job.needs == {Capability.IMAGES}
    assert parsed.call.stream is bool(stream)


def test_edits_of_one_picture_or_of_several() -> None:
    for name in ("image", "image[]"):
        parsed = read(Route.IMAGE_EDITS, form({name: b"png", "prompt": "a boat", "n": "2", "model": "dall"}))
        assert parsed.job.needs == {Capability.IMAGE_EDITS}


def test_the_class_may_be_lowered_and_goals_be_named() -> None:
    body = {"model": "m", "input": "a"}
    assert read(Route.SPEECH, body, x_sage_class="batch").job.request_class is RequestClass.BATCH
    slo = read(Route.SPEECH, body, x_sage_slo_ttft_ms="500", x_sage_deadline_ms="9000").job.slo
    assert slo == Slo(0.5, None, 9.0)
    for header in ("x_sage_class", "x_sage_slo_tpot_ms"):
        with pytest.raises(BadRequestError):
            read(Route.SPEECH, body, **{header: "30"})


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        (Route.SPEECH, {"input": "a"}, "model"),
        (Route.SPEECH, {"model": "m"}, "input"),
        (Route.SPEECH, {"model": "m", "input": ""}, "input"),
        (Route.SPEECH, {"model": "m", "input": ["a"]}, "input"),
        (Route.IMAGES, {"prompt": "a"}, "model"),
        (Route.IMAGES, {"model": "m"}, "prompt"),
        (Route.IMAGES, {"model": "m", "prompt": ""}, "prompt"),
        (Route.IMAGES, {"model": "m", "prompt": "a", "n": 0}, "n"),
        (Route.IMAGES, {"model": "m", "prompt": "a", "n": MAX_IMAGES + 1}, "n"),
        (Route.IMAGES, {"model": "m", "prompt": "a", "stream": "yes"}, "stream"),
        (Route.TRANSCRIPTIONS, form({"file": b"x"}), "model"),
        (Route.TRANSCRIPTIONS, form({"file": b"x", "model": ""}), "model"),
        (Route.TRANSCRIPTIONS, form({"file": b"x", "model": b"m"}), "model"),
        (Route.TRANSCRIPTIONS, form({"file": b"x", "model": "m" * (MAX_MODEL + 1)}), "model"),
        (Route.TRANSCRIPTIONS, form({"file": b"x", "model": "é"}).replace(b"\xc3", b"\xff"), "model"),
        (Route.TRANSCRIPTIONS, form({"model": "m"}), "file"),
        (Route.TRANSCRIPTIONS, form({"model": "m", "file": "text"}), "file"),
        (Route.TRANSCRIPTIONS, form({"model": "m", "file": b""}), "file"),
        (Route.TRANSLATIONS, form({"model": "m", "image": b"x"}), "file"),
        (Route.TRANSCRIPTIONS, form({**FILE, "stream": "maybe"}), "stream"),
        (Route.IMAGE_EDITS, form({"model": "m", "file": b"x"}), "image"),
        (Route.IMAGE_EDITS, form({"model": "m", "image": b"x", "n": "9"}), "n"),
        (Route.IMAGE_EDITS, form({"model": "m", "image": b"x", "n": "two"}), "n"),
        (Route.IMAGE_EDITS, form({"model": "m", "image": b"x", "n": "٣"}), "n"),
        (Route.IMAGE_EDITS, form({"model": "m", "image": b"x", "n": "1" * 5000}), "n"),
    ],
)
def test_what_is_refused_names_the_field(route: Route, body: bytes | dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        read(route, body)
    assert caught.value.param == param


def test_another_model_is_asked_for_in_the_form_too() -> None:
    parsed = read(Route.TRANSCRIPTIONS, form(FILE))
    job, call = retarget(parsed.job, parsed.call, "whisper-large")
    assert (job.model, job.asked, job.body_bytes) == ("whisper-large", "whisper", len(call.body))
    assert call.body == form({**FILE, "model": "whisper-large"})
    assert call.content_type == TYPE
