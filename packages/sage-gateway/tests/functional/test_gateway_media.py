"""Sound and pictures through the real process, asked for by the official client."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio

from sage.middleware.testing.engines import Script, ScriptedEngine
from sage.middleware.testing.media import PICTURE, SOUND, fields_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

MEDIA = ["speech", "transcription", "translation", "images", "image_edits"]
WAV = ("a.wav", b"RIFF" + bytes(range(256)) * 8, "audio/wav")
SPOKEN = b"".join(SOUND + word for word in (b"one ", b"two ", b"three"))
SAY: Any = {"model": "media", "input": "one two three", "voice": "alloy"}


class Stack:
    """One engine with sound and pictures, under another name than its own, and one that only chats."""

    def __init__(self, gateway: Any, media: ScriptedEngine) -> None:
        self.gateway = gateway
        self.media = media

    @property
    def url(self) -> str:
        return str(self.gateway.run.base_url)

    def client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.url, api_key=self.gateway.keys.default, max_retries=0)

    async def post(self, path: str, body: Any, **more: str) -> Any:
        key = more.pop("key", self.gateway.keys.default)
        return await self.gateway.http("POST", f"{self.url}/{path}", key=key, body=body, **more)

    async def decision(self) -> Any:
        return (await self.gateway.admin("GET", "/decisions?limit=1")).json["decisions"][0]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(module_spawner: Any) -> AsyncIterator[Stack]:
    async with ScriptedEngine(model="upstream/media") as media, ScriptedEngine(model="talker") as chat:
        own = media.config("media-0", served_as="media", capabilities=MEDIA, max_running=1)
        engines = [one.model_dump(mode="json") for one in (own, chat.config("chat-0"))]
        names = [{"name": "voice", "to": [{"model": "media"}]}]
        limits = {"max_media_body_bytes": 100_000}
        gateway = await module_spawner.start({"engines": engines, "models": names, "gateway": limits})
        await gateway.until_ready()
        yield Stack(gateway, media)
        assert await gateway.stop() == 0


async def test_speech_is_bytes_of_the_engines_own_type(stack: Stack) -> None:
    async with stack.client() as client:
        answer = await client.audio.speech.create(**SAY)
        wav = await client.audio.speech.create(**SAY, response_format="wav")
    assert answer.content == SPOKEN
    assert answer.response.headers["content-type"] == "audio/mpeg"
    assert wav.response.headers["content-type"] == "audio/wav"
    assert fields_of(stack.media.requests[-1])["model"] == "upstream/media"
    decision = await stack.decision()
    assert (decision["route"], decision["request_class"], decision["outcome"]) == (
        "audio/speech",
        "completion",
        "done",
    )


async def test_speech_is_heard_before_it_is_whole(stack: Stack) -> None:
    gate = asyncio.Event()
    stack.media.next_scripts.append(Script(gate=gate, gate_after=1))
    async with stack.client() as client, client.audio.speech.with_streaming_response.create(**SAY) as answer:
        heard = answer.iter_bytes()
        first = await anext(heard)
        assert first == SOUND + b"one "
        gate.set()
        assert first + b"".join([chunk async for chunk in heard]) == SPOKEN


async def test_speech_as_events(stack: Stack) -> None:
    async with stack.client() as client:
        answer = await client.audio.speech.create(**SAY, stream_format="sse")
    assert answer.response.headers["content-type"].startswith("text/event-stream")
    assert answer.content.count(b"speech.audio.delta") == 6  # its name and its type
    assert (await stack.decision())["completion_tokens"] == 3


async def test_transcriptions_in_each_form(stack: Stack) -> None:
    async with stack.client() as client:
        create: Any = client.audio.transcriptions.create
        assert (await create(model="media", file=WAV)).text == "one two three"
        assert await create(model="media", file=WAV, response_format="text") == "one two three"
        assert (await create(model="media", file=WAV, response_format="srt")).startswith("1\n00:00")
        assert (await create(model="media", file=WAV, response_format="vtt")).startswith("WEBVTT")
        stream = await create(model="media", file=WAV, stream=True)
        kinds = [event.type async for event in stream]
    assert kinds == ["transcript.text.delta"] * 3 + ["transcript.text.done"]


async def test_the_form_reaches_the_engine_as_it_was_but_for_the_model(stack: Stack) -> None:
    def body(model: str) -> bytes:
        file = b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nX-Odd: 1\r\n\r\n' + WAV[1]
        named = b'content-disposition: form-data; name="model"\r\n\r\n' + model.encode()
        return b"--q\r\n" + file + b"\r\n--q\r\n" + named + b"\r\n--q--\r\nepilogue"

    for asked in ("media", "voice"):
        answer = await stack.post(
            "audio/transcriptions", body(asked), media="multipart/form-data; boundary=q"
        )
        assert (answer.status, answer.json["text"]) == (200, "one two three")
        sent = stack.media.requests[-1]
        assert sent.body == body("upstream/media")
        assert sent.headers["content-type"] == 'multipart/form-data; boundary="q"'
    html = await stack.post(
        "audio/transcriptions",
        body("media").replace(
            b"--q--", b'--q\r\nContent-Disposition: form-data; name="response_format"\r\n\r\ntext\r\n--q--'
        ),
        media="multipart/form-data; boundary=q",
    )
    assert html.headers["content-type"] == "text/plain; charset=utf-8"


async def test_translations(stack: Stack) -> None:
    async with stack.client() as client:
        answer = await client.audio.translations.create(model="media", file=WAV)
    assert answer.text == "one two three"
    assert stack.media.requests[-1].path == "/v1/audio/translations"


async def test_pictures_made_and_changed(stack: Stack) -> None:
    async with stack.client() as client:
        made = await client.images.generate(model="media", prompt="a boat", n=2)
        changed = await client.images.edit(model="media", prompt="a boat", image=[("a.png", PICTURE)] * 2)
        stream: Any = await client.images.generate(model="media", prompt="a boat", stream=True)
        kinds = [event.type async for event in stream]
    assert [base64.b64decode(one.b64_json or "") for one in made.data or []] == [PICTURE, PICTURE]
    assert changed.data
    assert kinds == ["image_generation.partial_image", "image_generation.completed"]
    rows = (await stack.gateway.admin("GET", "/usage?model=media")).json
    assert "completion" in str(rows)


async def test_a_model_without_the_capability_names_the_engines_that_have_it(stack: Stack) -> None:
    async with stack.client() as client:
        with pytest.raises(
            openai.BadRequestError, match=r"does not serve audio/speech.*media-0 \(model media\)"
        ):
            await client.audio.speech.create(**{**SAY, "model": "talker"})
        with pytest.raises(openai.BadRequestError, match="does not serve images/generations"):
            await client.images.generate(model="talker", prompt="a boat")
        with pytest.raises(openai.BadRequestError, match="does not serve audio/translations"):
            await client.audio.translations.create(model="talker", file=WAV)
        with pytest.raises(openai.BadRequestError, match="does not serve chat"):
            await client.chat.completions.create(model="media", messages=[{"role": "user", "content": "a"}])


async def test_what_is_too_large_or_of_another_type(stack: Stack) -> None:
    large = await stack.post("audio/transcriptions", b"x" * 100_001, media="multipart/form-data; boundary=q")
    assert (large.status, large.error["code"]) == (413, "request_too_large")
    for path, media, valid in (
        ("audio/transcriptions", "application/json", "multipart/form-data"),
        ("audio/speech", "multipart/form-data; boundary=q", "application/json"),
    ):
        answer = await stack.post(path, b"{}", media=media)
        assert (answer.status, f"must be {valid}" in answer.error["message"]) == (415, True)
    for path, body in (("audio/speech", {"input": "a"}), ("images/generations", {"prompt": "a"})):
        missing = await stack.post(path, body)
        assert (missing.status, missing.error["param"]) == (400, "model")


@pytest.mark.parametrize("gate_after", [-1, 1])
async def test_a_client_that_leaves_frees_the_engine(stack: Stack, gate_after: int) -> None:
    """`max_running` is 1: only if its slot is free again is the next one served."""
    before, gate = stack.media.cancelled, asyncio.Event()
    asked = len(stack.media.requests)
    stack.media.next_scripts.append(Script(gate=gate, gate_after=gate_after))
    async with stack.client() as client:
        call = asyncio.create_task(client.audio.speech.create(**SAY))
        await stack.media.until(lambda: len(stack.media.requests) > asked)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await stack.media.until(lambda: stack.media.cancelled == before + 1)
        assert (await client.audio.speech.create(**SAY)).content == SPOKEN


async def test_sound_that_breaks_off_is_never_taken_for_whole(stack: Stack) -> None:
    stack.media.next_scripts.append(Script(cut_at=10))
    async with stack.client() as client:
        with pytest.raises(openai.APIConnectionError):
            await client.audio.speech.create(**SAY)
        assert (await client.audio.speech.create(**SAY)).content == SPOKEN
    decisions = (await stack.gateway.admin("GET", "/decisions?limit=2")).json["decisions"]
    assert [one["outcome"] for one in decisions] == ["done", "failed"]


async def test_a_fault_in_events_is_an_event(stack: Stack) -> None:
    stack.media.next_scripts.append(Script(error=b'{"error": {"message": "secret"}}'))
    body = {**SAY, "stream_format": "sse"}
    answer = await stack.post("audio/speech", body)
    assert answer.status == 200
    assert b'data: {"error":' in answer.body
    assert b"secret" not in answer.body


async def test_before_the_first_byte_a_fault_is_a_status(stack: Stack) -> None:
    stack.media.next_scripts.append(Script(status=422))
    refused = await stack.post("images/generations", {"model": "media", "prompt": "a"})
    assert (refused.status, "media-0 refused the request" in refused.error["message"]) == (400, True)
    stack.media.next_scripts.append(Script(status=404))
    absent = await stack.post("audio/speech", SAY)
    assert (absent.status, "it has no /v1/audio/speech" in absent.error["message"]) == (400, True)
    stack.media.next_scripts.extend([Script(cut_at=0)] * 2)
    broken = await stack.post("audio/speech", SAY)
    assert broken.status == 502
    stack.media.next_scripts.clear()  # how often it is tried is not what is asked here


async def test_a_key_opens_what_its_scopes_say(stack: Stack) -> None:
    made = await stack.gateway.admin("POST", "/keys", {"name": "ears", "scopes": ["audio"]})
    secret = made.json["secret"]
    assert (await stack.post("audio/speech", SAY, key=secret)).status == 200
    refused = await stack.post("images/generations", {"model": "media", "prompt": "a"}, key=secret)
    assert (refused.status, "images" in refused.error["message"]) == (403, True)
