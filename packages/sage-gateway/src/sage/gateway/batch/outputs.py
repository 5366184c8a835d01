"""The files of a batch that has ended: one of answers, one of errors, each line in one of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Final

from sage.common.clock import Clock
from sage.gateway.batch import states
from sage.gateway.batch.batchstore import BatchStore
from sage.gateway.batch.caller import undone
from sage.gateway.batch.files import Files
from sage.gateway.batch.folder import Draft, publish
from sage.gateway.batch.lines import Line, Lines, read_line
from sage.gateway.batch.states import Batch, Ending

__all__ = ["Outputs", "lines_of"]

_WHY: Final[dict[Ending, tuple[str, str]]] = {
    "expired": (
        "batch_expired",
        "This request could not be executed before the completion window expired.",
    ),
    "cancelled": ("batch_cancelled", "This request was not executed, as the batch was cancelled."),
    "failed": ("batch_failed", "This request was not executed, as the key of the batch may not go on."),
}


async def lines_of(files: Files, batch: Batch, done: set[int]) -> AsyncGenerator[Line, None]:
    """The lines of its input that are not done.

    The input was found right before, by the bounds of that time: none of its lines is too long now.
    """
    file = await files.get(batch.owner, batch.input)
    with await asyncio.to_thread(Lines, files.path(file), file.bytes) as reader:
        while some := await asyncio.to_thread(reader.some):
            for number, raw in some:
                if number not in done and raw is not None:
                    yield read_line(number, raw, batch.endpoint)


class Outputs:
    """Writes them. A crash at any point leaves the batch as it was, and the next start writes them anew."""

    def __init__(self, store: BatchStore, files: Files, clock: Clock) -> None:
        self._store = store
        self._files = files
        self._clock = clock

    async def write(self, batch: Batch) -> None:
        """Put all results into files, an error for each line without one, and end the batch."""
        folder = self._files.folder
        async with folder.draft() as good, folder.draft() as bad:
            await self._results(batch, good, bad)
            if batch.total and batch.ending != "completed":
                await self._rest(batch, bad)
            kept = [draft for draft in (good, bad) if draft.size]

            async def commit() -> None:
                await self._end(batch, good, bad)

            await publish(kept, commit)

    async def _results(self, batch: Batch, good: Draft, bad: Draft) -> None:
        after = 0
        while results := await self._store.results(batch.id, after):
            for result in results:
                await (good if result.good else bad).write(result.text)
            after = results[-1].line

    async def _rest(self, batch: Batch, bad: Draft) -> None:
        """Whatever was not run to its end is told so."""
        code, message = _WHY[batch.ending]
        done = await self._store.done(batch.id)
        async with contextlib.aclosing(lines_of(self._files, batch, done)) as left:
            async for line in left:
                await bad.write(undone(line, code, message))

    async def _end(self, batch: Batch, good: Draft, bad: Draft) -> None:
        drafts = {f"{batch.id}_output.jsonl": good, f"{batch.id}_error.jsonl": bad}
        files = [self._files.output(batch.owner, d, name) for name, d in drafts.items() if d.size]
        output, errors = (draft.id if draft.size else None for draft in (good, bad))
        now = self._clock.wall()
        await self._store.change(
            batch.id, lambda one: states.finish(one, now, output=output, errors=errors), files=files
        )
