"""The port of backends, and the one that says that it is still to come."""

from __future__ import annotations

import pytest

from sage.common.errors import UnavailableError
from sage.kernel import Environment, Flow, LocalEnvironment, PlanError, RemoteEnvironment, call_service


def flow_of(*names: str) -> Flow:
    flow = Flow("two")
    stream = flow.source([1, 2])
    for name in names:
        stream = stream.map(abs, name=name)
    stream.sink(print)
    return flow


def test_both_fit_the_port() -> None:
    backends: list[Environment] = [LocalEnvironment(), RemoteEnvironment("10.0.0.1:6380")]
    assert len(backends) == 2


async def test_the_remote_one_says_that_it_cannot_run_and_what_can() -> None:
    remote, flow = RemoteEnvironment("10.0.0.1:6380"), flow_of("a")
    with pytest.raises(
        UnavailableError, match=r"flow 'two' cannot run on the cluster at '10.0.0.1:6380'"
    ) as e:
        await remote.run(flow)
    assert e.value.hint is not None
    assert "LocalEnvironment" in e.value.hint
    for refused in (remote.start, remote.submit):
        with pytest.raises(UnavailableError):
            await refused(flow)
    with pytest.raises(UnavailableError):
        remote.run_sync(flow)


async def test_a_flow_is_checked_first() -> None:
    with pytest.raises(PlanError, match="2 operators are named 'same'"):
        await RemoteEnvironment().run(flow_of("same", "same"))


def test_a_flow_with_its_services_can_be_checked_for_it() -> None:
    remote, flow = RemoteEnvironment(), Flow("calls")
    flow.source([1]).map(call_service("store")).sink(print)
    with pytest.raises(PlanError, match="store"):
        remote.check(flow)
    remote.register_service("store", lambda: str)
    remote.check(flow)
