"""pydantic-ai: an agent with a tool, and with a typed answer."""

from __future__ import annotations

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class Colour(BaseModel):
    """A colour."""

    name: str
    strength: float


def model(base_url: str, key: str) -> OpenAIChatModel:
    return OpenAIChatModel("talker", provider=OpenAIProvider(base_url=base_url, api_key=key))


async def check_text(base_url: str, key: str) -> None:
    answer = await Agent(model(base_url, key)).run("Say something.")
    assert answer.output == "one two three"


async def check_stream(base_url: str, key: str) -> None:
    async with Agent(model(base_url, key)).run_stream("Say something.") as answer:
        assert await answer.get_output() == "one two three"


async def check_a_tool_is_called_and_its_result_goes_back(base_url: str, key: str) -> None:
    asked: list[str] = []

    def weather(city: str) -> str:
        """The weather of a city."""
        asked.append(city)
        return "sunny"

    answer = await Agent(model(base_url, key), tools=[weather]).run("What is the weather?")
    assert asked == ["text"]
    assert answer.output == "one two three"


async def check_typed_answer(base_url: str, key: str) -> None:
    answer = await Agent(model(base_url, key), output_type=Colour).run("A colour.")
    assert answer.output == Colour(name="text", strength=0.5)
