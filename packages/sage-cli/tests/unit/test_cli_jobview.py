"""Jobs as a person reads them."""

from __future__ import annotations

import io
from typing import Any

from sage.cli.jobview import Screen, describe, line, parked, table
from sage.common.jobs import CheckpointInfo, JobGates, JobInfo, JobResources, OperatorInfo

OPERATOR = OperatorInfo(
    name="embed",
    verb="map_batch",
    items_in=40,
    items_out=39,
    diverted=1,
    skipped=0,
    retries=2,
    in_flight=3,
    busy=1.234,
    wait=0.5,
)


def job(**changes: Any) -> JobInfo:
    usual: dict[str, Any] = {
        "id": "job-1",
        "name": "docs",
        "flow": "ingest",
        "state": "running",
        "created_at": 1_800_000_000,
        "restart": "fixed:3:1",
        "every": 10.0,
        "resources": JobResources(),
    }
    return JobInfo.model_validate({**usual, **changes})


def facts(text: str) -> dict[str, str]:
    rows = text.partition("\n\n")[0].splitlines()[1:]
    at = text.index("VALUE")
    return {row[:at].strip(): row[at:] for row in rows}


def test_a_line_says_the_state_and_why() -> None:
    assert line(job()) == "job docs is running"
    assert line(job(state="failed", detail="it died")) == "job docs is failed: it died"
    waits = job(state="queued", placement="no node has free cpu 1 (most: 0)")
    assert line(waits) == "job docs is queued: no node has free cpu 1 (most: 0)"
    assert line(job(placement="pack: it has room")) == "job docs is running"


def test_all_that_is_known_of_a_job_and_nothing_that_is_not() -> None:
    found = facts(describe(job()))
    assert found == {
        "job": "docs (job-1)",
        "flow": "ingest",
        "state": "running",
        "asks for": "cpu 0.1, memory 128MiB",
        "restarts": "0 (fixed:3:1)",
        "checkpoint": "none yet, every 10 s",
        "created": "2027-01-15 08:00:00 UTC",
    }
    whole = job(
        source="flows:ingest",
        detail="it went on from checkpoint 6",
        node="local",
        placement="pack: it has room",
        resources=JobResources(cpu=2, gpu=0.5, memory="1GiB", labels={"disk": "fast"}),
        restarts=2,
        checkpoint=CheckpointInfo(number=7, at=1_800_000_060),
        started_at=1_800_000_001,
        ended_at=1_800_000_100,
        pid=17,
        stuck_s=4.6,
        operators=[OPERATOR],
    )
    text = describe(whole)
    found = facts(text)
    assert found["flow"] == "ingest (flows:ingest)"
    assert found["state"] == "running: it went on from checkpoint 6"
    assert found["asks for"] == "cpu 2, gpu 0.5, memory 1GiB, disk=fast"
    assert found["checkpoint"] == "7 at 2027-01-15 08:01:00 UTC"
    assert found["stuck"] == "its event loop has not moved for 5 s"
    assert found["process"] == "17"
    head, row = text.splitlines()[-2:]
    assert head.split()[0] == "OPERATOR"
    assert row.split() == ["embed", "40", "39", "1", "0", "2", "3", "1.23", "0.50"]


def test_a_table_has_a_row_for_each() -> None:
    rows = table([job(), job(name="other", node="local")]).splitlines()
    assert [row.split()[0] for row in rows] == ["NAME", "docs", "other"]
    assert rows[1].split()[4] == "-"


def test_on_a_terminal_a_text_takes_the_place_of_the_one_before() -> None:
    out = io.StringIO()
    screen = Screen(out)
    screen.show("one\ntwo")
    screen.show("three")
    assert out.getvalue() == "one\ntwo\n\x1b[2F\x1b[Jthree\n"


def test_what_waits_at_gates_is_a_row_each() -> None:
    record = {"id": "item-1", "since": 1_800_000_000.0, "until": 1_800_003_600.0}
    records = [{**record, "record": {"note": "é\x1b[31m"}}, {**record, "record": "x" * 200}]
    found = JobGates.model_validate({"gates": [{"name": "refunds", "waiting": 2, "records": records}]})
    _, first, second = parked(found).splitlines()
    assert first.endswith('{"note": "é\\u001b[31m"}')
    assert "2027-01-15 08:00:00 UTC  2027-01-15 09:00:00 UTC" in first
    assert second.endswith("x…")
    assert facts(describe(job(gates={"refunds": 2, "other": 1})))["gates"] == (
        "2 wait at refunds, 1 wait at other"
    )
