"""What waits at the gates of a run, told and decided on over the line to the manager."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from sage.common.errors import SageError, UnavailableError
from sage.kernel.jobs.messages import Answer, Decide, Gates
from sage.kernel.runtime.inbox import APPROVED, Parked, Reject, RejectedError
from sage.kernel.runtime.report import spell
from sage.kernel.runtime.run import Run

__all__ = ["SHOWN", "answer"]

SHOWN: Final = 200
"""So many records are told at once, of all gates."""
_LARGE: Final = 4096  # characters of JSON, of which one of text can take six


async def answer(run: Run, order: Gates | Decide) -> Answer:
    """Do what was ordered; a decision is durable then."""
    try:
        if isinstance(order, Gates):
            return Answer(order.number, {"gates": list(_gates(run))})
        await _decide(run, order)
        return Answer(order.number)
    except RejectedError as error:  # the run has failed of it
        hint = "It waits again: with on_error skip or divert at the gate it leaves, and nothing fails."
        return Answer(order.number, {}, error.message, hint, error.code)
    except SageError as error:
        return Answer(order.number, {}, error.message, error.hint, error.code)


def _gates(run: Run) -> Iterator[dict[str, Any]]:
    room = SHOWN
    for name in run.inboxes.names():
        parked = run.parked(name)
        records = [_record(one) for one in islice(parked, room)]
        room -= len(records)
        yield {"name": name, "waiting": len(parked), "records": records}


def _record(one: Parked) -> dict[str, Any]:
    return {"id": one.id, "record": _plain(one.item), "since": one.since, "until": one.until}


def _plain(record: Any) -> Any:
    """The record as JSON; in words where it is none, or is large."""
    try:
        text = json.dumps(record, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return spell(record, _LARGE // 6)
    return json.loads(text) if len(text) <= _LARGE else f"{text[: _LARGE - 1]}…"


async def _decide(run: Run, order: Decide) -> None:
    value = order.value.get("value", APPROVED) if order.approve else Reject(order.reason)
    await run.resolve(order.gate, order.item, value)
    try:
        await run.checkpoint()
    except UnavailableError:
        await run.wait()  # it was the last one: the run has come to its end, with a checkpoint of its own
