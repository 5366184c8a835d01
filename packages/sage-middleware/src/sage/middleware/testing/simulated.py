"""Small fleets and requests for tests with the simulator."""

from __future__ import annotations

from typing import Any

from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.simulator.fleet import Fleet
from sage.middleware.control_plane.simulator.types import SimRequest
from sage.middleware.control_plane.types import Job
from sage.middleware.engines.port import Capability

__all__ = ["LLM", "chat_request", "embed_engine", "embed_request", "fleet_of", "llm_engine"]

LLM = {"a": 0.01, "b": 0.001, "c": 0.0001, "chunk": 512, "kv_tokens": 10_000, "max_running": 4}


def llm_engine(name: str = "llm", **changes: Any) -> dict[str, Any]:
    """An LLM engine of the model `chat`, without noise, as in `fleet.yaml`."""
    return {"name": name, "kind": "llm", "model": "chat", "noise": 0.0, "cold_start_s": 5.0, **LLM, **changes}


def embed_engine(name: str = "embed", **changes: Any) -> dict[str, Any]:
    """An embedding engine of the model `vectors`, without noise: 10 ms + 0.1 ms per token + 1 ms per text."""
    times = {"s0": 0.01, "s1": 0.0001, "s2": 0.001}
    common = {"name": name, "kind": "embedding", "model": "vectors", "noise": 0.0, "cold_start_s": 5.0}
    return {**common, **times, **changes}


def fleet_of(*engines: dict[str, Any], **devices: dict[str, Any]) -> Fleet:
    """A fleet of these engines on these devices."""
    return Fleet.model_validate({"name": "test", "engines": engines, "devices": devices})


def chat_request(
    ident: str, at: float = 0.0, prompt: int = 100, output: int = 10, **changes: Any
) -> SimRequest:
    """A streamed chat whose estimates are right. `job_…` goes to the job, the rest to the request."""
    needs = frozenset((Capability.CHAT,))
    of_job = {key[4:]: changes.pop(key) for key in list(changes) if key.startswith("job_")}
    fields = {"stream": True, "max_tokens": output, **of_job}
    job = Job(ident, "chat", RequestClass.CHAT, "t", needs, 4 * prompt, prompt, **fields)
    return SimRequest(at, job, output, prompt, **changes)


def embed_request(
    ident: str, at: float = 0.0, tokens: int = 100, texts: int = 1, **changes: Any
) -> SimRequest:
    """An embedding request of `texts` equal texts with `tokens` in all."""
    needs = frozenset((Capability.EMBEDDINGS,))
    of_job = {key[4:]: changes.pop(key) for key in list(changes) if key.startswith("job_")}
    request_class = RequestClass.EMBED_INTERACTIVE if texts <= 8 else RequestClass.EMBED_BULK
    job = Job(ident, "vectors", request_class, "t", needs, 4 * tokens, tokens, None, texts=texts, **of_job)
    return SimRequest(at, job, 0, tokens, **changes)
