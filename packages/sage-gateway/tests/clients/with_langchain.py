"""langchain-openai, with its default settings."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, SecretStr


class Colour(BaseModel):
    """A colour."""

    name: str
    strength: float


def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def chat(base_url: str, key: str, **settings: Any) -> Any:
    return ChatOpenAI(model="talker", base_url=base_url, api_key=SecretStr(key), **settings)


def check_chat(base_url: str, key: str) -> None:
    answer = chat(base_url, key).invoke("Say something.")
    assert answer.content == "one two three"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 3


async def check_stream(base_url: str, key: str) -> None:
    pieces = [piece async for piece in chat(base_url, key).astream("Say something.")]
    assert "".join(str(piece.content) for piece in pieces) == "one two three"


def check_batch(base_url: str, key: str) -> None:
    answers = chat(base_url, key).batch(["one", "two", "three"])
    assert [answer.content for answer in answers] == ["one two three"] * 3


def check_tools(base_url: str, key: str) -> None:
    answer: Any = chat(base_url, key).bind_tools([tool(weather)]).invoke("What is the weather?")
    assert answer.tool_calls[0]["name"] == "weather"
    assert answer.tool_calls[0]["args"] == {"city": "text"}


def check_structured_output(base_url: str, key: str) -> None:
    for method in ("json_schema", "function_calling"):
        answer = chat(base_url, key).with_structured_output(Colour, method=method).invoke("A colour.")
        assert answer == Colour(name="text", strength=0.5), method


async def check_responses(base_url: str, key: str) -> None:
    """The same, by the Responses API."""
    model = chat(base_url, key, use_responses_api=True)
    first = model.invoke("Say something.")
    assert (first.text, first.usage_metadata["output_tokens"]) == ("one two three", 3)
    pieces = [piece async for piece in model.astream([("user", "Say something."), first, ("user", "More.")])]
    assert "".join(piece.text for piece in pieces) == "one two three"
    question: Any = [HumanMessage("What is the weather?")]
    asked: Any = model.bind_tools([tool(weather)]).invoke(question)
    assert asked.tool_calls[0]["args"] == {"city": "text"}
    result = ToolMessage("sunny", tool_call_id=asked.tool_calls[0]["id"])
    assert model.bind_tools([tool(weather)]).invoke([*question, asked, result]).text == "one two three"
    assert model.with_structured_output(Colour).invoke("A colour.") == Colour(name="text", strength=0.5)


def check_embeddings_as_token_arrays_in_base64(base_url: str, key: str) -> None:
    """The default: texts go as arrays of cl100k_base tokens, vectors come back as base64."""
    embeddings = OpenAIEmbeddings(
        model="minilm",
        base_url=base_url,
        api_key=SecretStr(key),
        tiktoken_model_name="text-embedding-3-small",
    )
    one = embeddings.embed_query("a red apple")
    many = embeddings.embed_documents(["a red apple", "the theory of sets", "word " * 3000])
    assert [len(vector) for vector in many] == [384] * 3
    assert all(abs(left - right) < 1e-3 for left, right in zip(one, many[0], strict=True))
