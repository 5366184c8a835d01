"""The thread that computes: what all connections ask for, in common batches."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

from sage.middleware.engines.batching import Item, Work, cut, patience, plan, take
from sage.middleware.engines.encoders import Model

__all__ = ["Batcher"]

_log = logging.getLogger("sage.engines.embedding")


class Batcher:
    """The worker thread. `submit` may be called anywhere; callbacks of the work come on the worker thread."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._queue: deque[Work] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._last = (0, 0.0)  # requests and seconds of the last round
        self._thread = threading.Thread(target=self._run, name="embedding", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> None:
        """Queue the texts of one request."""
        with self._wake:
            self._queue.append(work)
            self._wake.notify()

    @property
    def alive(self) -> bool:
        """Whether the worker runs: without it nothing is ever answered."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Requests with texts that are not being computed yet."""
        return sum(not work.cancelled for work in tuple(self._queue))

    def close(self) -> None:
        """Stop after the batch that is being computed."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while items := self._next():
            begun = time.perf_counter()
            for batch in plan(items) if self._model.pads else cut(items):
                self._compute([item for item in batch if not item[0].cancelled])
            self._last = (len({id(work) for work, _ in items}), time.perf_counter() - begun)

    def _next(self) -> list[Item]:
        """Wait for texts; empty when closed."""
        with self._wake:
            while True:
                self._wake.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return []
                self._gather()
                if items := take(self._queue):
                    return items

    def _gather(self) -> None:
        """Clients that wait for their answers ask again at once: let them into one batch instead of two."""
        begun = time.monotonic()
        while not self._closed:
            left = patience(len(self._queue), *self._last) - (time.monotonic() - begun)
            if left <= 0:
                break
            self._wake.wait(left)

    def _compute(self, batch: list[Item]) -> None:
        if not batch:
            return
        try:
            texts = [work.texts[index] for work, index in batch]
            vectors, tokens = self._model.encode(texts, max(work.threads for work, _ in batch))
            rows = list(zip(batch, vectors, tokens, strict=True))
        except Exception as error:  # the model's own errors are of any type; the server goes on
            for work in {work for work, _ in batch}:
                _give_up(work, error)
            return
        for (work, index), vector, count in rows:
            work.vectors[index] = vector
            work.tokens += count
            work.missing -= 1
            if not work.missing:
                _hand_over(work)


def _hand_over(work: Work) -> None:
    """Give a request its vectors. One that cannot take them must not end the only worker."""
    try:
        work.done(work.vectors, work.tokens)
    except Exception as error:
        _give_up(work, error)


def _give_up(work: Work, error: Exception) -> None:
    work.cancelled = True
    try:
        work.failed(error)
    except Exception:
        _log.exception("a failed request could not be told so")
