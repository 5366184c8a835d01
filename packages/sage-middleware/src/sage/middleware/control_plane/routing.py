"""Which models a name stands for, and what a request becomes for each of them. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import structs

from sage.common.config import ModelConfig
from sage.common.errors import ModelNotFoundError, SageError
from sage.middleware.control_plane.types import Job
from sage.middleware.engines.passthrough import rename
from sage.middleware.engines.port import Call

__all__ = ["NameTable", "elsewhere", "models_of", "resolve", "retarget"]

NameTable = Mapping[str, ModelConfig]
"""The names of section `models`; none leads back to itself, which loading has checked."""

_WHOLE: Final = 2.0**64
_OVERLOAD: Final = frozenset((429, 503))


def resolve(table: NameTable, name: str, seed: str) -> tuple[str, ...]:
    """The models to ask for `name`, in this order, each once. Equal seeds take the same side of a split."""
    entry = table.get(name)
    if entry is None:
        return (name,)
    first = entry.to[0].model if len(entry.to) == 1 else _drawn(entry, seed)
    found: dict[str, None] = {}
    for one in (first, *entry.fallbacks):
        found.update(dict.fromkeys(resolve(table, one, seed)))
    return tuple(found)


def _drawn(entry: ModelConfig, seed: str) -> str:
    """By weight, from a hash: the same in every process, and another for each name."""
    digest = hashlib.blake2b(f"{entry.name}\0{seed}".encode(), digest_size=8).digest()
    point = int.from_bytes(digest) / _WHOLE * sum(target.weight for target in entry.to)
    for target in entry.to:
        point -= target.weight
        if point < 0.0:
            return target.model
    return entry.to[-1].model  # a rounding error


def models_of(table: NameTable, name: str) -> frozenset[str]:
    """All models that a request for `name` may come to."""
    entry = table.get(name)
    if entry is None:
        return frozenset((name,))
    inner: Iterable[str] = (*(target.model for target in entry.to), *entry.fallbacks)
    return frozenset().union(*(models_of(table, one) for one in inner))


def retarget(job: Job, call: Call, model: str, fallback: str = "") -> tuple[Job, Call]:
    """The same request for another model. `fallback`: why those before it could not serve it."""
    key = job.batch_key
    if key:  # begins with the model, so that only texts for one model share a call
        key = model + key.removeprefix(job.model)
    body = rename(call, model)
    aimed = structs.replace(
        job,
        model=model,
        batch_key=key,
        body_bytes=len(body),
        asked=job.model,
        fallback=fallback,
    )
    return aimed, structs.replace(call, body=body)


def elsewhere(error: SageError) -> bool:
    """Whether another model may serve what failed with this, given that nothing has gone to the client.

    Overload, no engine, an engine's fault; never what is wrong with the request itself, nor its deadline.
    """
    overload = error.status in _OVERLOAD
    return overload or error.status == 502 or isinstance(error, ModelNotFoundError)
