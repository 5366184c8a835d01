"""The process's end of the line to the manager: two threads, so that code which blocks the event loop does
not silence it.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from sage.kernel.jobs.messages import Beat, Order, Word, decode_order, encode

__all__ = ["BEAT_S", "Line"]

BEAT_S: Final = 1.0


class Line:
    """Speaks and listens. `beat` gives the sign of life of every `BEAT_S` seconds; it must not block."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lines = sock.makefile("rb")
        self._words: queue.SimpleQueue[Word | None] = queue.SimpleQueue()
        self._speaker = threading.Thread(target=self._speak, name="job-words", daemon=True)
        self.beat: Callable[[], Beat] = Beat
        self._speaker.start()

    def next_order(self) -> Order | None:
        """The next one; None when the manager is gone. Blocks."""
        line = self._lines.readline()
        return decode_order(line) if line else None

    def listen(self, on_order: Callable[[Order], None]) -> None:
        """Call `on_order` with each further one, on a thread of its own."""

        def follow() -> None:
            while (order := self.next_order()) is not None:
                on_order(order)

        threading.Thread(target=follow, name="job-orders", daemon=True).start()

    def say(self, word: Word) -> None:
        """Send it soon."""
        self._words.put(word)

    def close(self) -> None:
        """Send all that is to be sent, and hang up."""
        self._words.put(None)
        self._speaker.join()
        self._sock.close()

    def _speak(self) -> None:
        with contextlib.suppress(OSError):  # the manager is gone, and so is this process soon
            self._sock.sendall(encode(Beat()))
            due = time.monotonic() + BEAT_S
            while True:
                try:
                    word = self._words.get(timeout=max(0.0, due - time.monotonic()))
                except queue.Empty:
                    word = self.beat()
                    due = time.monotonic() + BEAT_S
                if word is None:
                    return
                self._sock.sendall(encode(word))
