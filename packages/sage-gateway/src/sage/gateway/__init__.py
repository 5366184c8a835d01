"""Layer 6: the OpenAI-compatible front door. `python -m sage.gateway` is the serving process."""
