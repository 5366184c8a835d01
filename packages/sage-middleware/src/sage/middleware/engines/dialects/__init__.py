"""Dialects beside OpenAI's chat: Anthropic's Messages, OpenAI's Responses, and how they become a chat."""
