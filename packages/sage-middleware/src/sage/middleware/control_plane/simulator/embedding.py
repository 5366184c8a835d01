"""A model of an embedding or rerank engine: batch after batch, `s0 + s1 · tokens + s2 · texts` s each."""

from __future__ import annotations

from random import Random

from sage.middleware.control_plane.simulator.engines import NEVER, Device, SimEngine, Work
from sage.middleware.control_plane.simulator.fleet import EmbedEngine

__all__ = ["EmbedSim"]


class EmbedSim(SimEngine):
    """One engine. A greedy one takes a text of each waiting call in turn, as our embedding server does."""

    __slots__ = ("_batch", "_elastic", "_greedy", "_limits", "_own_threads", "_scaling", "_times")

    def __init__(self, name: str, model: EmbedEngine, device: Device, random: Random) -> None:
        super().__init__(name, model, device, random)
        self._times = (model.s0, model.s1, model.s2)
        self._limits = (model.batch_texts, model.batch_tokens)
        self._greedy = model.batching == "greedy"
        self._elastic = model.elastic
        self._own_threads = model.cores
        self._scaling = model.scaling
        self._batch: list[Work] = []  # calls whose last text is in the batch that runs

    def submit(self, work: Work) -> None:
        """Take a call in."""
        work.left = work.texts
        self.waiting.append(work)

    def resume(self, now: float) -> None:
        """Start the next batch if none runs."""
        if self.due != NEVER or self.frozen:
            return
        texts, tokens, threads = self._take()
        if not texts:
            self._stop(now)
            return
        s0, s1, s2 = self._times
        seconds = (s0 + s1 * tokens + s2 * texts) * self.slow * self._noise(1, now)
        if self._elastic and threads != self._own_threads:
            seconds *= (self._own_threads / threads) ** self._scaling
        if len(self.device.members) > 1:
            seconds *= self.device.factor(self, threads)
        self._begin(now, seconds, threads)

    def advance(self, now: float) -> tuple[list[Work], list[Work]]:
        """End the batch: the calls that are complete. None of them has a first token."""
        self.due = NEVER
        self.busy += now - self._start
        ends, self._batch = self._batch, []
        return [], [work for work in ends if not work.gone]

    def drop(self, now: float) -> None:
        """Its process died."""
        super().drop(now)
        self._batch = []

    def _take(self) -> tuple[int, float, int]:
        """Fill the next batch: its texts, tokens and threads."""
        waiting = self.waiting
        room, most = self._limits
        texts, tokens, threads = 0, 0.0, 0
        while waiting and texts < room and tokens < most:
            work = waiting.popleft()
            if work.gone:
                continue
            per_text = work.prompt / work.texts
            count = 1 if self._greedy and waiting else work.left
            if self._greedy and per_text:  # the last text may go over the budget
                count = min(count, room - texts, max(1, int((most - tokens) / per_text)))
            texts += count
            tokens += count * per_text
            threads = max(threads, work.threads)
            work.left -= count
            if work.left:
                waiting.append(work)
            else:
                self._batch.append(work)
                self.computed += work.prompt
            if not self._greedy:
                break
        return texts, tokens, threads if self._elastic and threads else self._own_threads
