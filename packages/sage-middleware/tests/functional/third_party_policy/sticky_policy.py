"""A policy from outside: each tenant stays on one engine while that has room."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

from sage.middleware.control_plane.policies.base import BasePolicy, least_loaded
from sage.middleware.control_plane.policy import Choice, EngineView, Wait
from sage.middleware.control_plane.records import Record

__all__ = ["Sticky"]


class Sticky(BasePolicy):
    """Each tenant's requests go to one engine (rendezvous hashing), to the least loaded while that is full.

    It is right when engines keep something for each tenant that is dear to load.
    It is not right for few tenants, who leave the other engines idle.
    """

    name = "sticky"

    def choose(self, record: Record, engines: Sequence[EngineView], now: float) -> Choice | Wait:
        """The tenant's own engine, else the least loaded."""
        tenant = record.job.tenant
        own = max(engines, key=lambda engine: crc32(f"{tenant} {engine.name}".encode()))
        if own.free:
            return Choice(own.name, f"keeps what belongs to tenant {tenant}")
        return least_loaded(engines)
