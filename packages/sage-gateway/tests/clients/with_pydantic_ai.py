"""pydantic-ai: an agent with a tool, and with a typed answer, by each of the three dialects."""

from __future__ import annotations

from typing import Any

from anthropic import AsyncAnthropic
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider


class Colour(BaseModel):
    """A colour."""

    name: str
    strength: float


def models(base_url: str, key: str) -> list[Any]:
    openai = OpenAIProvider(base_url=base_url, api_key=key)
    client = AsyncAnthropic(base_url=base_url.removesuffix("/v1"), api_key=key)
    return [
        OpenAIChatModel("talker", provider=openai),
        OpenAIResponsesModel("talker", provider=openai),
        AnthropicModel("talker", provider=AnthropicProvider(anthropic_client=client)),
    ]


async def check_text(base_url: str, key: str) -> None:
    for model in models(base_url, key):
        answer = await Agent(model).run("Say something.")
        assert answer.output == "one two three"
        more = await Agent(model).run("And then?", message_history=answer.all_messages())
        assert more.output == "one two three"


async def check_stream(base_url: str, key: str) -> None:
    for model in models(base_url, key):
        async with Agent(model).run_stream("Say something.") as answer:
            assert await answer.get_output() == "one two three"
            assert answer.usage.output_tokens == 3


async def check_a_tool_is_called_and_its_result_goes_back(base_url: str, key: str) -> None:
    asked: list[str] = []

    def weather(city: str) -> str:
        """The weather of a city."""
        asked.append(city)
        return "sunny"

    for model in models(base_url, key):
        agent = Agent(model, instructions="Be brief.", tools=[weather])
        answer = await agent.run("What is the weather?")
        assert answer.output == "one two three"
        async with agent.run_stream("What is the weather?") as stream:
            assert await stream.get_output() == "one two three"
    assert asked == ["text"] * 6


async def check_typed_answer(base_url: str, key: str) -> None:
    for model in models(base_url, key):
        answer = await Agent(model, output_type=Colour).run("A colour.")
        assert answer.output == Colour(name="text", strength=0.5)
