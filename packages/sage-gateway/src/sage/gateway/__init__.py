"""Layer 6: the OpenAI-compatible front door."""
