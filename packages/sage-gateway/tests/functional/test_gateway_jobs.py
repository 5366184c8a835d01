"""`/admin/v1/jobs` over the real admin listener of a gateway without engines."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from sage.common.jobs import JobInfo
from sage.gateway.jobs import events
from sage.gateway.testing.wire import Wire
from sage.kernel.testing.sinks import EpochFiles
from sage.middleware.testing.engines import ScriptedEngine
from sage.platform.daemon import alive

FLOWS = """
import asyncio
from sage.kernel import Flow


async def numbers():
    number = 0
    while True:
        yield number
        number += 1
        await asyncio.sleep(0.001)


def endless():
    flow = Flow("endless")
    flow.source(numbers, name="numbers").sink(lambda item: None, name="out")
    return flow


def counted(folder, count):
    from pathlib import Path
    from sage.kernel.testing.sinks import EpochFiles

    async def numbers():
        for number in range(count):
            yield number
            await asyncio.sleep(0.001)

    flow = Flow("counted")
    flow.source(numbers, name="numbers").sink(EpochFiles(Path(folder)), name="out")
    return flow


def asking(model):
    from sage.middleware.operators.connect import Connected

    class Ask(Connected):
        async def __call__(self, text):
            messages = [{"role": "user", "content": text}]
            return "".join([delta.text async for delta in self.client.chat(messages, model=model)])

    flow = Flow("asking")
    flow.source(["hello"]).map(Ask(None), name="ask").sink(print)
    return flow
"""
GATED = {
    "name": "gated",
    "steps": [
        {"source": {"use": "items", "with": {"values": [{"amount": 7}, {"amount": 9}]}}},
        {"gate": {"inbox": "refunds", "timeout": 3600, "on_error": "skip"}},
        {"sink": "stdout"},
    ],
}
PLAN = {
    "name": "copy",
    "steps": [{"source": {"use": "items", "with": {"values": [1, 2]}}, "id": "in"}, {"sink": "stdout"}],
}


def config(folder: Path, **more: Any) -> dict[str, Any]:
    (folder / "gatewayflows.py").write_text(FLOWS)
    return {"jobs": {"code": ["gatewayflows:*"], "path": [str(folder)], **more}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(module_spawner: Any) -> AsyncIterator[Any]:
    gateway = await module_spawner.start(config(module_spawner.folder))
    yield gateway
    assert await gateway.stop() == 0


async def submitted(gateway: Any, **spec: Any) -> JobInfo:
    answer = await gateway.admin("POST", "/jobs", spec)
    assert answer.status == 200, answer.body
    return JobInfo.model_validate_json(answer.body)


class Events:
    """The events of a job, as they come over a connection that stays open."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    @classmethod
    async def of(cls, gateway: Any, which: str) -> Events:
        host, _, port = gateway.run.admin_url.removeprefix("http://").partition(":")
        wire = Wire(*await asyncio.open_connection(host, int(port)))
        head = f"GET /admin/v1/jobs/{which}/events HTTP/1.1\r\nhost: {host}:{port}\r\n"
        await wire.send(f"{head}authorization: Bearer {gateway.keys.admin}\r\n\r\n".encode())
        return cls(wire)

    async def __aiter__(self) -> AsyncGenerator[JobInfo, None]:
        try:
            async with asyncio.timeout(60):
                while not (line := await self.wire.reader.readline()).startswith(b"data: [DONE]"):
                    assert line
                    if line.startswith(b"data: "):
                        yield JobInfo.model_validate_json(line[6:])
        finally:
            self.wire.abort()

    async def until(self, state: str, *, flowing: bool = False) -> JobInfo:
        last = None
        async with aclosing(aiter(self)) as told:
            async for last in told:
                if last.state == state and (not flowing or any(one.items_in for one in last.operators)):
                    return last
        raise AssertionError(last)


async def until(gateway: Any, which: str, state: str, *, flowing: bool = False) -> JobInfo:
    return await (await Events.of(gateway, which)).until(state, flowing=flowing)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_plan_is_run_and_its_operators_are_told_live(gateway: Any) -> None:
    job = await submitted(gateway, plan=PLAN, name="first")
    seen = [found async for found in await Events.of(gateway, "first")]
    assert seen[-1].state == "finished"
    assert [one.items_out for one in seen[-1].operators] == [2, 0]
    shown = (await gateway.admin("GET", f"/jobs/{job.id}")).json
    assert shown["placement"].startswith("pack: ")
    listed = (await gateway.admin("GET", "/jobs")).json["jobs"]
    assert [(one["name"], one["operators"]) for one in listed if one["id"] == job.id] == [("first", [])]
    log = await gateway.admin("GET", "/jobs/first/logs?lines=1&follow=true")
    assert (log.status, log.body) == (200, b"2\n")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_job_is_stopped_and_deleted(gateway: Any) -> None:
    job = await submitted(gateway, flow="gatewayflows:endless")
    running = await until(gateway, job.id, "running", flowing=True)
    metrics = (await gateway.http("GET", f"{gateway.run.admin_url}/metrics", key=gateway.keys.admin)).body
    assert b'sage_jobs{state="running"} 1' in metrics
    assert b'sage_job_checkpoint_age_seconds{job="endless"}' in metrics
    assert (await gateway.admin("POST", f"/jobs/{job.id}/stop")).json["state"] == "draining"
    assert (await until(gateway, job.id, "finished")).detail.startswith("stopped")
    again = await gateway.admin("POST", f"/jobs/{job.id}/stop", {"now": True})
    assert (again.status, again.error["code"]) == (409, "conflict")
    assert (await gateway.admin("DELETE", f"/jobs/{job.id}")).json == {"id": job.id, "deleted": True}
    assert not (gateway.state / "jobs" / job.id).exists()
    assert running.pid is not None
    assert not alive(running.pid)


@pytest.mark.asyncio(loop_scope="module")
async def test_records_at_a_gate_are_decided_on(gateway: Any) -> None:
    job = await submitted(gateway, plan=GATED)
    async with aclosing(aiter(await Events.of(gateway, job.id))) as told:
        async for found in told:
            if found.gates == {"refunds": 2}:
                break
    [gate] = (await gateway.admin("GET", f"/jobs/{job.id}/gates")).json["gates"]
    assert (gate["name"], gate["waiting"]) == ("refunds", 2)
    first, second = gate["records"]
    assert first["record"] == {"amount": 7}

    path = f"/jobs/gated/gates/{first['id']}"
    wrong = await gateway.admin("POST", path, {"gate": "refunds", "decision": "maybe"})
    assert (wrong.status, wrong.error["param"]) == (400, "decision")
    gone = await gateway.admin("POST", "/jobs/gated/gates/x", {"gate": "refunds", "decision": "approve"})
    assert (gone.status, gone.error["code"]) == (404, "not_found")
    assert "has nothing with the id 'x'" in gone.error["message"]
    given = await gateway.admin("POST", path, {"gate": "refunds", "decision": "approve", "value": None})
    assert given.json == {"id": first["id"], "gate": "refunds", "decision": "approve"}
    body = {"gate": "refunds", "decision": "reject", "reason": "no"}
    await gateway.admin("POST", f"/jobs/gated/gates/{second['id']}", body)
    ended = [found async for found in await Events.of(gateway, job.id)][-1]
    assert (ended.state, ended.operators[1].skipped) == ("finished", 1)
    assert (await gateway.admin("GET", "/jobs/gated/logs")).body == b"null\n"
    over = await gateway.admin("GET", "/jobs/gated/gates")
    assert (over.status, over.error["code"]) == (409, "conflict")
    await gateway.admin("DELETE", f"/jobs/{job.id}")


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "/jobs", {}, 400, "either a plan or a flow"),
        ("POST", "/jobs", {"plan": PLAN, "flow": "a:b"}, 400, "either a plan or a flow"),
        ("POST", "/jobs", {"plan": {"name": "x", "steps": []}}, 400, "has no source"),
        (
            "POST",
            "/jobs",
            {"flow": "os:system"},
            400,
            "'os:system' is not allowed; allowed is gatewayflows:*",
        ),
        ("POST", "/jobs", {"flow": "os.system"}, 400, "flow"),
        ("POST", "/jobs", {"flow": "gatewayflows:none"}, 400, "has no attribute 'none'"),
        ("POST", "/jobs", {"flow": "gatewayflows:asking"}, 400, "missing a required argument: 'model'"),
        ("POST", "/jobs", {"plan": PLAN, "name": "../x"}, 400, "name"),
        ("POST", "/jobs", {"plan": PLAN, "restart": "always"}, 400, "valid is none, fixed:TIMES"),
        ("POST", "/jobs", {"plan": PLAN, "every": 0}, 400, "every"),
        ("POST", "/jobs", {"plan": PLAN, "folder": "here"}, 400, "an absolute path"),
        ("POST", "/jobs", {"plan": PLAN, "folder": "/no/such/folder"}, 404, "does not exist"),
        ("POST", "/jobs", {"plan": PLAN, "settings": {"out.x": 1}}, 400, "there are: in"),
        ("POST", "/jobs", {"plan": PLAN, "pickle": "x"}, 400, "pickle"),
        ("POST", "/jobs", {"plan": PLAN, "resources": {"gpu": 64}}, 400, "lacks gpu; nearest is 'local'"),
        ("POST", "/jobs", {"plan": PLAN, "resources": {"memory": "much"}}, 400, "memory"),
        ("POST", "/jobs", {"plan": {**PLAN, "x": "y" * 50_000}}, 413, "49152 are allowed"),
        (
            "POST",
            "/jobs",
            {"plan": {"name": "a", "x": json.loads('{"a":' * 400 + "1" + "}" * 400)}},
            400,
            "JSON",
        ),
        ("POST", "/jobs", b'{"plan": {"name": "\\ud800"}}', 400, "not JSON"),
        ("POST", "/jobs", b'{"plan": {"name": NaN}}', 400, "not JSON"),
        ("POST", "/jobs", {"plan": PLAN, "folder": "/a\0b"}, 404, "does not exist"),
        ("GET", "/jobs/none", None, 404, "There is no job 'none'"),
        ("GET", "/jobs/none/events", None, 404, "There is no job 'none'"),
        ("GET", "/jobs/none/logs", None, 404, "There is no job 'none'"),
        ("POST", "/jobs/none/pause", None, 404, "There is no job 'none'"),
        ("POST", "/jobs/none/resume", None, 404, "There is no job 'none'"),
        ("DELETE", "/jobs/none", None, 404, "There is no job 'none'"),
    ],
)
async def test_what_is_refused(
    gateway: Any, method: str, path: str, body: Any, status: int, words: str
) -> None:
    before = sorted(gateway.state.glob("jobs/*"))
    answer = await gateway.admin(method, path, body)
    assert answer.status == status, answer.body
    assert words in answer.error["message"]
    assert sorted(gateway.state.glob("jobs/*")) == before


@pytest.mark.asyncio(loop_scope="module")
async def test_jobs_need_the_scope_admin_and_a_page_of_another_site_cannot_submit(gateway: Any) -> None:
    url = f"{gateway.run.admin_url}/admin/v1/jobs"
    assert (await gateway.http("GET", url)).status == 401
    assert (await gateway.http("POST", url, key=gateway.keys.default, body={"plan": PLAN})).status == 403
    foreign = {"sec_fetch_site": "cross-site"}
    assert (
        await gateway.http("POST", url, key=gateway.keys.admin, body={"plan": PLAN}, **foreign)
    ).status == 403


async def test_only_so_many_jobs_are_kept(spawner: Any) -> None:
    gateway = await spawner.start(config(spawner.folder, max_jobs=1))
    job = await submitted(gateway, plan=PLAN)
    await until(gateway, job.id, "finished")
    refused = await gateway.admin("POST", "/jobs", {"plan": PLAN})
    assert (refused.status, refused.error["code"]) == (429, "overloaded")
    await gateway.admin("DELETE", f"/jobs/{job.id}")
    await submitted(gateway, plan=PLAN)


async def test_a_job_calls_models_in_the_low_class_with_a_key_of_its_own(spawner: Any) -> None:
    async with ScriptedEngine(model="talker") as engine:
        engines = [engine.config("talker").model_dump(mode="json")]
        gateway = await spawner.start({**config(spawner.folder), "engines": engines})
        job = await submitted(gateway, flow="gatewayflows:asking", settings={"model": "talker"})
        assert job.source == "gatewayflows:asking"
        await until(gateway, job.id, "finished")
        decisions = (await gateway.admin("GET", "/decisions")).json["decisions"]
        assert [(one["request_class"], one["outcome"]) for one in decisions] == [("batch", "done")]
        key = (await gateway.admin("GET", "/keys/sage-jobs")).json
        assert (key["ceiling"], "admin" in key["scopes"]) == ("batch", False)
        assert decisions[0]["tenant"] == key["id"]


async def test_a_stack_that_is_killed_leaves_no_process_and_goes_on_with_its_jobs(spawner: Any) -> None:
    gateway = await spawner.start(config(spawner.folder))
    job = await submitted(gateway, flow="gatewayflows:endless")
    running = await until(gateway, job.id, "running", flowing=True)
    assert running.pid is not None
    await gateway.stop(signal.SIGKILL)
    async with asyncio.timeout(30):
        while alive(running.pid):  # noqa: ASYNC110 - of another process's process no event tells
            await asyncio.sleep(0.02)
    again = await spawner.start(config(spawner.folder))
    found = await until(again, job.id, "running", flowing=True)
    assert (found.restarts, found.pid != running.pid) == (0, True)
    os.kill(found.pid or 0, signal.SIGKILL)
    assert (await until(again, job.id, "queued")).detail.startswith("its process was ended by signal 9")
    stream = await Events.of(again, job.id)
    assert await again.stop() == 0
    assert (await stream.wire.reader.read()).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    stream.wire.abort()


async def test_a_stack_that_is_killed_again_and_again_has_every_record_once(spawner: Any) -> None:
    out, count = spawner.folder / "out", 2000
    gateway = await spawner.start(config(spawner.folder))
    settings = {"folder": str(out), "count": count}
    job = await submitted(gateway, flow="gatewayflows:counted", settings=settings, every=0.2, restart="none")
    newest = 0
    for _ in range(3):
        async with aclosing(aiter(await Events.of(gateway, job.id))) as told:
            async for found in told:
                if found.state == "finished" or (found.checkpoint and found.checkpoint.number > newest):
                    break
        newest = found.checkpoint.number if found.checkpoint else newest
        await gateway.stop(signal.SIGKILL)
        gateway = await spawner.start(config(spawner.folder))
    done = await until(gateway, job.id, "finished")
    assert (done.restarts, done.operators[0].items_out) == (0, count)
    assert EpochFiles.records(out) == list(range(count))


async def test_a_stream_in_which_nothing_changes_says_that_it_is_there() -> None:
    waiting = asyncio.Event()

    async def jobs() -> AsyncIterator[JobInfo]:
        await waiting.wait()
        for nothing in list[JobInfo]():
            yield nothing

    told = events(jobs(), quiet=0.0)
    assert await anext(told) == b": it is as it was\n\n"
    waiting.set()
    assert [piece async for piece in told][-1] == b"data: [DONE]\n\n"
