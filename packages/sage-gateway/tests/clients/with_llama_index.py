"""llama-index's clients for servers that are like OpenAI's."""

from __future__ import annotations

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


class Colour(BaseModel):
    """A colour."""

    name: str
    strength: float


def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def model(base_url: str, key: str) -> OpenAILike:
    return OpenAILike(
        model="talker", api_base=base_url, api_key=key, is_chat_model=True, is_function_calling_model=True
    )


def check_chat(base_url: str, key: str) -> None:
    answer = model(base_url, key).chat([ChatMessage(role="user", content="Say something.")])
    assert answer.message.content == "one two three"


def check_stream(base_url: str, key: str) -> None:
    pieces = model(base_url, key).stream_chat([ChatMessage(role="user", content="Say something.")])
    assert "".join(piece.delta or "" for piece in pieces) == "one two three"


def check_completion(base_url: str, key: str) -> None:
    plain = OpenAILike(model="talker", api_base=base_url, api_key=key, is_chat_model=False)
    assert plain.complete("Once").text == "one two three"


def check_tools(base_url: str, key: str) -> None:
    llm = model(base_url, key)
    answer = llm.chat_with_tools([FunctionTool.from_defaults(weather)], user_msg="What is the weather?")
    call = llm.get_tool_calls_from_response(answer)[0]
    assert (call.tool_name, call.tool_kwargs) == ("weather", {"city": "text"})


def check_structured_output(base_url: str, key: str) -> None:
    llm = model(base_url, key).as_structured_llm(Colour)
    answer = llm.chat([ChatMessage(role="user", content="A colour.")])
    assert Colour.model_validate_json(answer.message.content or "") == Colour(name="text", strength=0.5)


def check_embeddings(base_url: str, key: str) -> None:
    embedding = OpenAILikeEmbedding(model_name="minilm", api_base=base_url, api_key=key)
    one = embedding.get_text_embedding("a red apple")
    many = embedding.get_text_embedding_batch(["a red apple", "the theory of sets"])
    assert len(one) == 384
    assert all(abs(left - right) < 1e-3 for left, right in zip(one, many[0], strict=True))
