"""The workers of an operator as plain data: what a step of a pipeline says about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from sage.common.errors import BadRequestError
from sage.kernel.provision import Parallel, Provision, Scale
from sage.kernel.registry import nearest
from sage.kernel.schema import PROVISION

__all__ = ["known", "provision_data", "read_provision"]


def provision_data(provision: Provision) -> dict[str, Any]:
    """What was said about workers, without what is as it is anyway."""
    found: dict[str, Any] = {}
    if parallel := provision.parallelism:
        plain = Parallel(parallel.n) == parallel
        found["parallelism"] = parallel.n if plain else _set_parts(parallel, Parallel(parallel.n), "n")
    if resources := provision.resources:
        found["resources"] = _set_parts(resources, type(resources)())
        if resources.labels:
            found["resources"]["labels"] = dict(resources.labels)
    if scale := provision.scale:
        found["scale"] = _set_parts(scale, Scale(), "min", "max")
    return found


def _set_parts(value: Any, usual: Any, *always: str) -> dict[str, Any]:
    names = [part.name for part in fields(value)]
    return {n: getattr(value, n) for n in names if n in always or getattr(value, n) != getattr(usual, n)}


def read_provision(body: Mapping[str, Any]) -> Provision:
    """What the options of a step say about workers; raises BadRequestError or TypeError where they cannot."""
    given = {name: body[name] for name in PROVISION if name in body}
    if isinstance(given.get("parallelism"), int):
        given["parallelism"] = {"n": given["parallelism"]}
    kinds: dict[str, Any] = {"parallelism": Parallel, "scale": Scale}
    if "resources" in given:
        from sage.kernel.scheduler import Resources  # a hundred plans ask for none

        kinds["resources"] = Resources
    made = {}
    for name, value in given.items():
        parts = tuple(part.name for part in fields(kinds[name]))
        made[name] = kinds[name](**known(name, value, parts))
    return Provision(**made)


def known(name: str, body: Any, keys: tuple[str, ...]) -> dict[str, Any]:
    """`body` as a dictionary, which has no other keys than these; raises BadRequestError."""
    if not isinstance(body, Mapping):
        raise BadRequestError(f"{name} is {body!r}, not a mapping of {', '.join(keys)}")
    for key in body:
        if key not in keys:
            raise BadRequestError(f"{name}: unknown key {key!r}{nearest(str(key), keys)}")
    return dict(body)
