"""What the data plane hands to the control plane of a request's head."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import pytest

from sage.common.api import Decision
from sage.common.errors import SageError
from sage.gateway.dataplane import DataPlane
from sage.gateway.edge import Admission
from sage.gateway.keys import Principal
from sage.gateway.reply import Reply
from sage.gateway.requests import HotRequest
from sage.gateway.tokens import TokenDecoder
from sage.middleware.control_plane.classify import ParseLimits
from sage.middleware.control_plane.types import Job, Slo
from sage.middleware.engines.port import Call, Route, Sink

BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 600}]}).encode()


class Submitted:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Job, float | None]] = []

    async def submit(self, job: Job, call: Call, sink: Sink, *, deadline: float | None = None) -> object:
        self.jobs.append((job, deadline))
        return "done"

    def decision(self, ident: str) -> Decision | None:
        return None


class Replied:
    """The part of a reply that is used before an answer begins."""

    def __init__(self) -> None:
        self.error: SageError | None = None

    def configure(self, *, stream: bool) -> None:
        """Nothing to set."""

    def explain(self, explanation: Any) -> None:
        """Nothing to explain."""

    def fail(self, error: SageError) -> None:
        self.error = error


def ask(
    headers: dict[str, str], *, admin: bool = False, prefixes: bool = False
) -> tuple[Job | None, float | None, SageError | None]:
    submitted, replied = Submitted(), Replied()
    limits = ParseLimits(tenants=frozenset(("search",)))
    handler = DataPlane(submitted, limits, TokenDecoder(), lambda: prefixes)
    admission = Admission(Principal("key-1", admin=admin), Route.CHAT, 4096, expect_continue=False)
    raw = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
    asyncio.run(handler(HotRequest("req-1", admission, raw, BODY), cast(Reply, replied)))
    job, deadline = submitted.jobs[0] if submitted.jobs else (None, None)
    return job, deadline, replied.error


def test_every_wish_reaches_the_scheduler() -> None:
    job, deadline, error = ask(
        {
            "x-sage-class": "batch",
            "x-sage-deadline-ms": "5000",
            "x-sage-slo-ttft-ms": "100",
            "x-sage-slo-tpot-ms": "20",
            "x-sage-priority": "4",
            "x-sage-parent": "req-0",
            "x-sage-explain": "1",
            "x-sage-tenant": "search",
            "x-request-id": "the edge has judged this one already",
        }
    )
    assert error is None
    assert job is not None
    assert (job.id, job.request_class, job.slo, deadline) == ("req-1", "batch", Slo(0.1, 0.02, 5.0), 5.0)
    assert (job.priority, job.parent, job.explain, job.tenant) == (4, "req-0", True, "search")


@pytest.mark.parametrize("admin", [False, True])
def test_a_tenant_that_is_not_configured_is_refused_to_everyone(admin: bool) -> None:
    job, _, error = ask({"x-sage-tenant": "somebody"}, admin=admin)
    assert job is None
    assert error is not None
    assert (error.status, error.param) == (400, "x-sage-tenant")
    assert "key-1, search" in error.message


def test_without_a_header_the_key_is_the_tenant() -> None:
    job, deadline, _ = ask({})
    assert job is not None
    assert (job.tenant, deadline, job.slo) == ("key-1", None, None)


def test_prompts_are_hashed_only_for_a_policy_that_looks_at_them() -> None:
    plain, _, _ = ask({})
    hashed, _, _ = ask({}, prefixes=True)
    assert plain is not None
    assert hashed is not None
    assert (plain.blocks, len(hashed.blocks)) == ((), 2)
