"""What the data plane hands to the control plane of a request's head."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, Literal, cast

import pytest

from sage.common.api import Decision
from sage.common.errors import SageError
from sage.common.testing import VirtualClock
from sage.gateway.accounts import Accounts
from sage.gateway.conversations import Conversations
from sage.gateway.dataplane import DataPlane
from sage.gateway.edge import Admission
from sage.gateway.keys import Principal
from sage.gateway.reply import Reply
from sage.gateway.requests import HotRequest
from sage.gateway.tokens import TokenDecoder
from sage.gateway.usage import Meter, UsageStore
from sage.gateway.watch import Watch
from sage.middleware.control_plane.classify import ParseLimits
from sage.middleware.control_plane.records import Record
from sage.middleware.control_plane.tickets import Ticket
from sage.middleware.control_plane.types import Job, Slo
from sage.middleware.engines.port import Call, Route, Sink, Usage, WholeSink

BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 600}]}).encode()


class Submitted:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Job, float | None]] = []

    async def submit(
        self,
        job: Job,
        call: Call,
        sink: Sink,
        *,
        deadline: float | None = None,
        used: Callable[[Usage], None] | None = None,
        task: asyncio.Task[None] | None = None,
        ended: Callable[[Record], None] | None = None,
    ) -> Literal["done", "failed"]:
        self.jobs.append((job, deadline))
        return "done"

    def is_plain(self, job: Job, call: Call) -> bool:
        return False

    def begin(
        self, job: Job, call: Call, sink: WholeSink, over: Callable[[BaseException | None], None]
    ) -> Ticket:
        raise AssertionError("nothing is plain")

    def cancel(self, ticket: Ticket) -> None:
        """Nothing was begun."""

    def decision(self, ident: str) -> Decision | None:
        return None


class Replied:
    """The part of a reply that is used before an answer begins."""

    def __init__(self) -> None:
        self.error: SageError | None = None
        self.chunks = 0
        self.paused = False
        self.trace = b""

    def configure(self, *, stream: bool) -> None:
        """Nothing to set."""

    def explain(self, explanation: Any) -> None:
        """Nothing to explain."""

    def remember(self, record: Record) -> None:
        """Nothing to keep."""

    def fail(self, error: SageError) -> None:
        self.error = error


class Nowhere:
    """A usage store that nobody asks."""

    async def add(self, tallies: Any) -> None:
        raise AssertionError("nothing is stored while a request runs")


def ask(
    headers: dict[str, str], *, prefixes: bool = False, **principal: Any
) -> tuple[Job | None, float | None, SageError | None]:
    submitted, replied = Submitted(), Replied()
    limits = ParseLimits(tenants=frozenset(("search",)))
    accounts = Accounts(VirtualClock(), Meter(cast(UsageStore, Nowhere())), lambda _: True)
    accounts.put("key-1")
    conversations = cast(Conversations, None)  # of chats there are none
    handler = DataPlane(submitted, limits, TokenDecoder(), lambda: prefixes, accounts, Watch(), conversations)
    asker = Principal("key-1", **principal)
    admission = Admission(asker, Route.CHAT, 4096, expect_continue=False)
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


@pytest.mark.parametrize("scopes", [("chat",), ("chat", "admin")])
def test_a_tenant_that_is_not_configured_is_refused_to_everyone(scopes: tuple[str, ...]) -> None:
    job, _, error = ask({"x-sage-tenant": "somebody"}, scopes=frozenset(scopes))
    assert job is None
    assert error is not None
    assert (error.status, error.param) == (400, "x-sage-tenant")
    assert "key-1, search" in error.message


def test_without_a_header_the_key_is_the_tenant() -> None:
    job, deadline, _ = ask({})
    assert job is not None
    assert (job.tenant, deadline, job.slo) == ("key-1", None, None)


def test_a_key_of_a_tenant_acts_for_no_other() -> None:
    job, _, _ = ask({}, tenant="team")
    assert job is not None
    assert job.tenant == "team"
    job, _, error = ask({"x-sage-tenant": "search"}, tenant="team")
    assert job is None
    assert error is not None
    assert (error.status, error.param) == (400, "x-sage-tenant")


def test_a_lowered_key_runs_in_the_low_class_and_may_not_ask_for_another() -> None:
    job, _, _ = ask({}, lowered=True)
    assert job is not None
    assert job.request_class == "batch"
    assert ask({"x-sage-class": "batch"}, lowered=True)[0] == job
    job, _, error = ask({"x-sage-class": "chat"}, lowered=True)
    assert job is None
    assert error is not None
    assert (error.status, error.param) == (403, "x-sage-class")
    assert "may only use batch" in error.message


def test_a_model_that_is_not_the_keys_is_named_with_those_that_are() -> None:
    job, _, error = ask({}, models=frozenset(("a", "b")))
    assert job is None
    assert error is not None
    assert (error.status, error.param) == (403, "model")
    assert "'m'; it may use: a, b" in error.message
    assert ask({}, models=frozenset(("a", "m")))[0] is not None


def test_prompts_are_hashed_only_for_a_policy_that_looks_at_them() -> None:
    plain, _, _ = ask({})
    hashed, _, _ = ask({}, prefixes=True)
    assert plain is not None
    assert hashed is not None
    assert (plain.blocks, len(hashed.blocks)) == ((), 2)
