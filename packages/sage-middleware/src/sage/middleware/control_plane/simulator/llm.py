"""A model of an LLM engine with continuous batching, chunked prefill, a prefix cache and a KV limit.

Each iteration prefills up to `chunk` tokens, of the oldest sequences first, and gives every decoding sequence
one token. It takes `a + b · decoding + c · prefill tokens` seconds. The keys and values of a prompt are
reserved when it is admitted; when decoding needs more than there is, the newest sequence is preempted: it
waits at the head of the queue and is computed again, prompt and answer so far. Between two changes of the
batch all iterations are equal, so that one step is many of them; a newcomer cuts the step short at the end
of the iteration that runs.

The prefix cache is a least-recently-used list of blocks over the whole KV space; what decoding occupies does
not displace blocks.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Iterable
from heapq import heappop, heappush
from random import Random
from typing import Final

from sage.middleware.control_plane.simulator.engines import NEVER, Device, SimEngine, Work
from sage.middleware.control_plane.simulator.fleet import LlmEngine
from sage.middleware.control_plane.simulator.variation import Variation

__all__ = ["LlmSim"]

_LONG: Final = 1 << 60  # iterations; more than any run has
_Shares = list[tuple[Work, int]]


class LlmSim(SimEngine):
    """One LLM engine."""

    __slots__ = (
        "_aborted",
        "_active",
        "_admitted",
        "_cache",
        "_cached_tokens",
        "_chunk",
        "_decoding",
        "_each",
        "_finish",
        "_first_token",
        "_iteration",
        "_kv",
        "_kv_tokens",
        "_max_running",
        "_planned",
        "_prefill",
        "_prefix_cache",
        "_shares",
        "_steps",
    )

    def __init__(self, name: str, model: LlmEngine, device: Device, random: Random) -> None:
        super().__init__(name, model, device, random)
        self._iteration = (model.a, model.b, model.c)
        self._chunk = model.chunk
        self._kv_tokens = model.kv_tokens
        self._prefix_cache = model.prefix_cache
        self._max_running = model.max_running
        self._first_token = Variation(model.first_token, random) if model.first_token else None
        self._forget()

    def _forget(self) -> None:
        self._active: dict[int, Work] = {}  # by order of admission
        self._prefill: deque[Work] = deque()
        self._finish: list[tuple[int, int, Work]] = []  # heap of (last step, order, work); some are outdated
        self._cache: OrderedDict[int, int] = OrderedDict()  # block to tokens, least recently used first
        self._cached_tokens = 0
        self._aborted: list[Work] = []
        self._shares: _Shares = []  # prefill tokens of one iteration
        self._decoding = self._kv = self._steps = self._admitted = 0
        self._planned = 0  # iterations of the step that runs
        self._each = 0.0  # seconds of one of them

    # ---- what the world calls ------------------------------------------------------------------------

    def fits(self, work: Work) -> bool:
        """Whether its keys and values have room when nothing else runs."""
        return work.prompt + work.output - 1 <= self._kv_tokens

    def resume(self, now: float) -> None:
        """Start a step, or let the one that runs end early for what waits."""
        if not self._planned:
            if not self.frozen:
                self._plan(now)
        elif self.waiting and not self._shares and len(self._active) < self._max_running:
            self.cut(now)

    def cut(self, now: float) -> None:
        """End the step with the iteration that runs."""
        if self._planned > 1 and not self.frozen:
            iterations = max(1, math.ceil((now - self._start) / self._each))
            if iterations < self._planned:
                self._planned = iterations
                self.due = self._start + iterations * self._each

    def thaw(self, now: float) -> None:
        """Go on where it stood, with what came since."""
        super().thaw(now)
        self.cut(now)

    def advance(self, now: float) -> tuple[list[Work], list[Work]]:
        """End the step: sequences whose first token came, and those that have their last."""
        iterations, self._planned = self._planned, 0
        self.due = NEVER
        self.busy += now - self._start
        self._steps = steps = self._steps + iterations
        self._kv += self._decoding * iterations
        firsts: list[Work] = []
        ends: list[Work] = []
        if self._shares:
            for work, share in self._shares:
                work.left -= share * iterations
                self.computed += share * iterations
            while self._prefill and not self._prefill[0].left:
                self._prefilled(self._prefill.popleft(), firsts, ends)
        finish = self._finish
        while finish and finish[0][0] <= steps:
            done_at, _, work = heappop(finish)
            if work.decoding and work.done_at == done_at:
                self._leave(work)
                if not work.gone:
                    ends.append(work)
        if self._aborted:
            self._let_go()
        return firsts, ends

    def cancel(self, work: Work, now: float) -> None:
        """Break a sequence off at the end of the iteration that runs."""
        work.gone = True
        if self._active.get(work.order) is work:
            self._aborted.append(work)
            self.cut(now)

    def drop(self, now: float) -> None:
        """Its process died: sequences, keys and values are lost."""
        super().drop(now)
        self._forget()

    def streaming(self) -> Iterable[Work]:
        """The sequences that decode."""
        return [work for work in self._active.values() if work.decoding]

    # ---- one step ------------------------------------------------------------------------------------

    def _plan(self, now: float) -> None:
        """Put the next batch together and jump to the end of its last equal iteration."""
        budget = self._chunk
        shares: _Shares = []
        preempted = self._kv + self._decoding > self._kv_tokens and self._preempt()
        for work in self._prefill:
            share = min(work.left, budget)
            shares.append((work, share))
            budget -= share
            if not budget:
                break
        if self.waiting and budget and not preempted:
            budget = self._admit(shares, budget)
        self._shares = shares
        tokens = self._chunk - budget
        if not (tokens or self._decoding):
            self._stop(now)
            return
        iterations = self._equal_iterations(shares)
        a, b, c = self._iteration
        each = (a + b * self._decoding + c * tokens) * self.slow
        if tokens and self._first_token is not None:
            each *= self._first_token.at(now)
        else:
            if self._variation is not None:  # a factor holds only so long
                iterations = max(1, min(iterations, int(self._variation.hold_s / each)))
            each *= self._noise(iterations, now)
        if len(self.device.members) > 1:
            each *= self.device.factor(self, self.model.cores)
        self._planned, self._each = iterations, each
        self._begin(now, each * iterations, self.model.cores)

    def _equal_iterations(self, shares: _Shares) -> int:
        """How many iterations in a row have this batch."""
        iterations = _LONG
        if shares:
            work, share = shares[0]
            if share < self._chunk or work.left == share:
                return 1
            iterations = (work.left - 1) // share  # the one that completes it is not like the others
        if self._decoding:
            finish = self._finish
            while not (finish[0][2].decoding and finish[0][2].done_at == finish[0][0]):
                heappop(finish)
            headroom = (self._kv_tokens - self._kv) // self._decoding
            iterations = min(iterations, finish[0][0] - self._steps, headroom)
        return iterations

    def _admit(self, shares: _Shares, budget: int) -> int:
        """Take in what waits, in order, while there is room; returns what is left of the token budget."""
        waiting, active = self.waiting, self._active
        while waiting and budget and len(active) < self._max_running:
            work = waiting[0]
            if work.gone:
                waiting.popleft()
                continue
            need = work.prompt + work.emitted
            if self._kv + self._decoding + need > self._kv_tokens:
                break
            waiting.popleft()
            self._kv += need
            self._admitted += 1
            work.context, work.order = need, self._admitted
            hit = self._lookup(work.blocks, need) if work.blocks else 0  # 0 too where nothing is remembered
            work.left = need - hit
            self.cached += hit
            active[work.order] = work
            self._prefill.append(work)
            share = min(work.left, budget)
            shares.append((work, share))
            budget -= share
        return budget

    def _preempt(self) -> bool:
        """Send the newest sequences back until the others can decode."""
        while self._kv + self._decoding > self._kv_tokens:
            work = self._active[next(reversed(self._active))]
            if work.decoding:
                work.emitted += self._steps - work.began
                self._leave(work)
            else:
                self._prefill.pop()  # prompts are computed in order of admission
                del self._active[work.order]
                self._kv -= work.context
            self.waiting.appendleft(work)
            self.preemptions += 1
        return True

    def _prefilled(self, work: Work, firsts: list[Work], ends: list[Work]) -> None:
        """The last piece of a prompt gives a token."""
        if work.blocks and self._prefix_cache:
            self._remember(work.blocks, work.per_block)
        work.emitted += 1
        if work.emitted == 1 and not work.gone:
            firsts.append(work)
        work.began = self._steps
        work.decoding = True
        self._decoding += 1
        if work.emitted < work.output:
            work.done_at = self._steps + work.output - work.emitted
            heappush(self._finish, (work.done_at, work.order, work))
        else:
            self._leave(work)
            if not work.gone:
                ends.append(work)

    def _leave(self, work: Work) -> None:
        """A decoding sequence gives its room back."""
        del self._active[work.order]
        work.decoding = False
        self._decoding -= 1
        self._kv -= work.context + self._steps - work.began

    def _let_go(self) -> None:
        """Drop the sequences that were broken off."""
        for work in self._aborted:
            if self._active.get(work.order) is not work:
                continue  # it was complete, or had been preempted
            if work.decoding:
                self._leave(work)
            else:
                self._prefill.remove(work)
                del self._active[work.order]
                self._kv -= work.context
        self._aborted.clear()

    # ---- prefix cache --------------------------------------------------------------------------------

    def _lookup(self, blocks: tuple[int, ...], need: int) -> int:
        """How many tokens of a prompt need not be computed; the last one always is."""
        cache, found = self._cache, 0
        for block in blocks:
            if block not in cache:
                break
            found += 1
        for block in reversed(blocks[:found]):  # a chain is of use from its head on: that goes last
            cache.move_to_end(block)
        return min(sum(cache[block] for block in blocks[:found]), need - 1)

    def _remember(self, blocks: tuple[int, ...], per_block: int) -> None:
        cache = self._cache
        for block in reversed(blocks):
            if block in cache:
                cache.move_to_end(block)
            else:
                cache[block] = per_block
                self._cached_tokens += per_block
        while self._cached_tokens > self._kv_tokens:
            self._cached_tokens -= cache.popitem(last=False)[1]
