"""From one configuration to another: what can be applied while requests run, and what cannot. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from sage.common.api import ConfigChange, EngineChanges, ReloadReport
from sage.common.config import SageConfig
from sage.middleware.live_pool import in_place

__all__ = ["Plan", "plan"]

# What is not named here needs a new process: a key that is forgotten is not applied by halves.
_HOT: Final = frozenset(
    (
        "gateway.allowed_hosts",
        "gateway.max_body_bytes",
        "gateway.max_embedding_body_bytes",
        "gateway.max_media_body_bytes",
        "gateway.max_inputs",
        "gateway.max_connections",
        "gateway.max_connections_per_address",
        "gateway.drain_s",
        "control_plane.policy",
        "control_plane.queue_max_requests",
        "control_plane.queue_max_bytes",
        "control_plane.queue_max_wait_s",
        "control_plane.bulk_texts",
        "control_plane.bulk_tokens",
        "control_plane.decision_history",
        "control_plane.tenants",
        "control_plane.exploration",
        "control_plane.retry_share",
        "control_plane.hedge_share",
        "models",
        "pipelines",
    )
)
_HOT_BELOW: Final = ("control_plane.slos.",)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done. `config`: the one in force afterwards, with the old values of `needs_restart`."""

    config: SageConfig
    report: ReloadReport

    @property
    def keys(self) -> frozenset[str]:
        """The keys that change."""
        return frozenset(change.key for change in self.report.applied)


def plan(old: SageConfig, new: SageConfig) -> Plan:
    """The way from `old`, which is in force, to `new`. Engines are known by their names."""
    before, after = dict(_values(old)), dict(_values(new))
    changes = [
        ConfigChange(key=key, before=before.get(key), after=after.get(key))
        for key in dict.fromkeys((*before, *after))
        if before.get(key) != after.get(key)
    ]
    hot = [change for change in changes if _is_hot(change.key)]
    cold = [change for change in changes if not _is_hot(change.key)]
    config = _restored(new, old, [change.key for change in cold]) if cold else new
    return Plan(config, ReloadReport(applied=hot, needs_restart=cold, engines=_engines(old, new)))


def _is_hot(key: str) -> bool:
    return key in _HOT or key.startswith(_HOT_BELOW)


def _values(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key outside of `engines` with its value as JSON; a list is one value."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _values(value, f"{prefix}{name}.")
        elif prefix or name != "engines":
            yield prefix + name, section.model_dump(mode="json", include={name})[name]


def _restored(new: SageConfig, old: SageConfig, keys: list[str]) -> SageConfig:
    """`new` with the values that `old` has of these keys."""
    values, former = new.model_dump(), old.model_dump()
    for key in keys:
        *path, last = key.split(".")
        inside: dict[str, Any] = values
        source: Mapping[str, Any] = former
        for part in path:
            inside, source = inside[part], source[part]
        inside[last] = source[last]
    return SageConfig.model_validate(values)


def _engines(old: SageConfig, new: SageConfig) -> EngineChanges:
    before = {one.name: one for one in old.engines}
    after = {one.name: one for one in new.engines}
    differ = [name for name in after if name in before and before[name] != after[name]]
    return EngineChanges(
        added=[name for name in after if name not in before],
        removed=[name for name in before if name not in after],
        replaced=[name for name in differ if not in_place(before[name], after[name])],
        changed=[name for name in differ if in_place(before[name], after[name])],
    )
