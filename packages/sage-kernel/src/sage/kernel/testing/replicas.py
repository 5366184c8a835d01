"""An operator of which one replica is slow, however the replicas are made."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Sequence
from pathlib import Path

__all__ = ["OneSlow"]

LIMIT = 30.0


class OneSlow:
    """Gives (record, replica) pairs. The replica that is called first waits at that call until another has
    done `batches` of them; raises TimeoutError where none goes on beside it for half a minute."""

    def __init__(self, folder: Path, batches: int) -> None:
        self._folder = folder
        self._batches = batches
        self._done: dict[str, int] = {}  # by replica: one object may serve several threads
        os.mkfifo(folder / "pipe")

    def __call__(self, records: Sequence[int]) -> list[tuple[int, str]]:
        """A batch."""
        me = f"{os.getpid()}-{threading.get_ident()}"
        first = me not in self._done
        self._done[me] = self._done.get(me, 0) + 1
        if first and self._is_slow(me):
            self._wait()
        elif self._done[me] == self._batches and (self._folder / "slow").read_text() != me:
            (self._folder / "pipe").write_bytes(b"")
        return [(record, me) for record in records]

    def _wait(self) -> None:
        pipe = os.open(self._folder / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        try:
            if not select.select([pipe], [], [], LIMIT)[0]:
                raise TimeoutError("the other replica does not go on")
        finally:
            os.close(pipe)

    def _is_slow(self, me: str) -> bool:
        try:
            # Linked whole: another replica that finds it can read who it is.
            name = self._folder / me
            name.write_text(me)
            os.link(name, self._folder / "slow")
        except FileExistsError:
            return False
        return True
