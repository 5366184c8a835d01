"""Clients that go away in every window of a request: the engine hears of it, and nothing stays."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import cycle
from typing import Final

from sage.benchmark.resilience.acts import Act, chat, embedding
from sage.benchmark.resilience.answers import vector
from sage.benchmark.resilience.options import Experiment, Options
from sage.benchmark.resilience.report import Check, at_most, equal, nothing_left
from sage.benchmark.resilience.stage import Puppet, Stage, staged, until
from sage.benchmark.resilience.wire import CHAT, EMBEDDINGS, Answer, Wire, request
from sage.benchmark.stats import percentile

__all__ = ["DISCONNECTS"]

WAVE: Final = 50  # clients that go away from one window
SEEN_S: Final = 0.1  # within which an engine must see that its client has gone, p99
PATIENCE_S: Final = 10.0
NARROW: Final = "narrow"  # a model whose engine takes one call at a time
PLACES: Final = 200  # requests at once that the key may have
DOOR: Final = "door"  # a model whose engine can be kept from accepting connections


class _Run:
    """One stage, what was left when, and what the engines saw."""

    def __init__(self, stage: Stage, dice: random.Random) -> None:
        self.stage = stage
        self.dice = dice
        self.gone: dict[str, float] = {}  # by tag
        self.late: list[float] = []  # seconds from a client's leaving to its engine's knowing
        self.unseen = 0
        self.wrong: list[str] = []
        self._number = 0

    def tag(self) -> str:
        """A name for one request."""
        self._number += 1
        return f"t{self._number}"

    async def open(self, bodies: Sequence[tuple[str, bytes]], part: float = 1.0) -> list[Wire]:
        """Send each a request over a connection of its own, or only the first `part` of its bytes."""
        wires = []
        for path, body in bodies:
            wire = await Wire.open(self.stage.port)
            raw = request(self.stage.port, self.stage.key, path, body)
            wire.send(raw if part == 1.0 else raw[: max(1, int(len(raw) * part))])
            wires.append(wire)
        return wires

    async def leave(self, wires: Sequence[Wire], tags: Sequence[str] = ()) -> None:
        """All of them, in any order, with breaks between."""
        order = list(range(len(wires)))
        self.dice.shuffle(order)
        for index in order:
            at = wires[index].leave(reset=self.dice.random() < 0.5)
            if tags:
                self.gone[tags[index]] = at
            if self.dice.random() < 0.1:
                await asyncio.sleep(self.dice.uniform(0.0, 0.003))

    async def seen(self, puppet: Puppet, tags: Sequence[str]) -> None:
        """Wait until the engine has seen that the clients of these calls have gone."""
        missing = set(tags)

        async def all_seen() -> bool:
            for members, at in (await puppet.look()).closes:
                known = [self.gone[tag] for tag in members if tag in self.gone]
                if known:
                    self.late.append(max(0.0, at - max(known)))
                missing.difference_update(members)
            return not missing

        if not await until(all_seen, timeout=PATIENCE_S):
            self.unseen += len(missing)

    async def reached(self, puppet: Puppet, calls: int = 0, texts: int = 0) -> None:
        """Wait until the engine has so many calls, with so many texts. Raises TimeoutError."""

        async def there() -> bool:
            seen = await puppet.look()
            return seen.active >= calls and seen.texts >= texts

        if not await until(there, timeout=PATIENCE_S):
            raise TimeoutError(f"{puppet.name} did not get {calls} calls with {texts} texts")

    async def waiting(self, count: int) -> None:
        """Wait until so many requests are in queues. Raises TimeoutError."""

        async def there() -> bool:
            return await self.stage.waiting() >= count

        if not await until(there, timeout=PATIENCE_S):
            raise TimeoutError(f"there are not {count} requests in queues")

    def chats(
        self, act: Act, count: int, *, model: str = "llm", stream: bool = True
    ) -> tuple[list[str], list[tuple[str, bytes]]]:
        """Tags and bodies of so many chats."""
        tags = [self.tag() for _ in range(count)]
        acts = [Act(tag=tag, words=act.words, hold=act.hold, gap_ms=act.gap_ms) for tag in tags]
        return tags, [(CHAT, chat(one, model=model, stream=stream)) for one in acts]


# ---- the windows -------------------------------------------------------------------------------------------


async def _half_a_head(run: _Run, size: int) -> None:
    _, bodies = run.chats(Act(), size)
    wires = await run.open(bodies, part=run.dice.uniform(0.02, 0.4))
    await run.leave(wires)


async def _half_a_body(run: _Run, size: int) -> None:
    _, bodies = run.chats(Act(), size)
    wires = await run.open(bodies, part=run.dice.uniform(0.7, 0.99))
    await run.leave(wires)


async def _queued(run: _Run, size: int) -> None:
    """Behind a call that holds the only slot."""
    puppet = run.stage.puppets[NARROW]
    first, bodies = run.chats(Act(hold=-1), 1, model=NARROW)
    holder = await run.open(bodies)
    await run.reached(puppet, calls=1)
    before = (await puppet.look()).requests
    _, bodies = run.chats(Act(), size, model=NARROW)
    wires = await run.open(bodies)
    await run.waiting(size)
    await run.leave(wires)
    await run.waiting(0)
    await run.leave(holder, first)
    await run.seen(puppet, first)
    if (after := (await puppet.look()).requests) != before:
        run.wrong.append(f"{after - before} of {size} that left their queue came to an engine")


async def _connecting(run: _Run, size: int) -> None:
    """While the gateway waits for an engine to accept its connection."""
    puppet = run.stage.puppets[DOOR]
    door = await Wire.open(puppet.port)  # kept, as it could not be opened later
    door.send(request(puppet.port, "", "/puppet/freeze", b""))
    await door.answer()
    _, bodies = run.chats(Act(), size, model=DOOR)
    wires = await run.open(bodies)

    async def connecting() -> bool:
        return sum(one.running for one in await run.stage.engines() if one.name == DOOR) >= size

    if not await until(connecting, timeout=2.0):
        run.wrong.append("not all were connecting")
    await run.leave(wires)
    door.send(request(puppet.port, "", "/puppet/thaw", b""))
    await door.answer()
    door.leave(reset=False)
    if (await puppet.look()).requests:
        run.wrong.append("a request whose client had left while it was connecting came to the engine")


async def _before_the_first_token(run: _Run, size: int) -> None:
    tags, bodies = run.chats(Act(hold=run.dice.choice((-1, 0))), size)
    wires = await run.open(bodies)
    await run.reached(run.stage.puppets["llm"], calls=size)
    await run.leave(wires, tags)
    await run.seen(run.stage.puppets["llm"], tags)


async def _mid_stream(run: _Run, size: int) -> None:
    """After a few tokens of a stream that goes on."""
    hold = run.dice.randint(1, 20)
    tags, bodies = run.chats(Act(hold=hold, words=hold + 1, gap_ms=0.2), size)
    wires = await run.open(bodies)
    for wire in wires:
        assert (await wire.head()).status == 200
        for _ in range(run.dice.randint(1, hold)):
            await wire.piece()
    await run.leave(wires, tags)
    await run.seen(run.stage.puppets["llm"], tags)


async def _while_a_whole_answer_is_awaited(run: _Run, size: int) -> None:
    tags, bodies = run.chats(Act(hold=run.dice.choice((-1, 0))), size, stream=False)
    wires = await run.open(bodies)
    await run.reached(run.stage.puppets["llm"], calls=size)
    await run.leave(wires, tags)
    await run.seen(run.stage.puppets["llm"], tags)


async def _in_a_shared_batch(run: _Run, size: int) -> None:
    """Some leave a call that carries the texts of all, or everybody does."""
    puppet = run.stage.puppets["vectors"]
    holder = await run.open([(EMBEDDINGS, embedding([Act(tag="holder", hold=-1).text]))])
    await run.reached(puppet, calls=1)
    tags = [run.tag() for _ in range(size)]
    texts = [Act(tag=tag, hold=-1).text for tag in tags]
    wires = await run.open([(EMBEDDINGS, embedding([text])) for text in texts])
    await run.waiting(size)
    await puppet.tell("release")
    assert (await holder[0].answer()).status == 200
    holder[0].leave(reset=False)
    await run.reached(puppet, calls=1, texts=min(size, 2))
    stay = run.dice.sample(range(size), size // 4) if run.dice.random() < 0.5 else []
    gone = [index for index in range(size) if index not in stay]
    await run.leave([wires[index] for index in gone], [tags[index] for index in gone])
    if not stay:
        await run.seen(puppet, [])
        return

    async def released() -> bool:
        await puppet.tell("release")
        return (await puppet.look()).active == 0

    answers = asyncio.gather(*(wires[index].answer() for index in stay))
    await until(released)
    for index, answer in zip(stay, await answers, strict=True):
        _check_vector(run, texts[index], answer)
        wires[index].leave(reset=False)


def _check_vector(run: _Run, text: str, answer: Answer) -> None:
    if answer.status != 200 or answer.json["data"][0]["embedding"] != vector(text):
        run.wrong.append(f"one who stayed in a batch got {answer.status} {answer.body[:200]!r}")


async def _at_any_moment(run: _Run, size: int) -> None:
    """Each some milliseconds after it has sent its request, whatever that is then."""
    stream = run.dice.random() < 0.5
    _, bodies = run.chats(Act(words=20, gap_ms=1.0), size, stream=stream)
    bodies = [body if run.dice.random() < 0.7 else (EMBEDDINGS, embedding([run.tag()])) for body in bodies]

    async def one(body: tuple[str, bytes], seconds: float) -> None:
        (wire,) = await run.open([body])
        await asyncio.sleep(seconds)
        wire.leave(reset=run.dice.random() < 0.5)

    await asyncio.gather(*(one(body, run.dice.uniform(0.0, 0.03)) for body in bodies))


Window = Callable[[_Run, int], Awaitable[None]]

_WINDOWS: Final[dict[str, Window]] = {
    "half a head": _half_a_head,
    "half a body": _half_a_body,
    "queued": _queued,
    "connecting": _connecting,
    "before the first token": _before_the_first_token,
    "mid-stream": _mid_stream,
    "awaiting a whole answer": _while_a_whole_answer_is_awaited,
    "in a shared batch": _in_a_shared_batch,
    "at any moment": _at_any_moment,
}


async def _run(options: Options) -> list[Check]:
    puppets = [
        Puppet("llm"),
        Puppet(NARROW, model=NARROW, max_running=1),
        Puppet(DOOR, model=DOOR),
        Puppet("vectors", task="embed", model="vectors", max_running=1),
    ]
    async with staged(puppets, concurrent=PLACES) as stage:
        run = _Run(stage, options.dice("disconnects"))
        await stage.ask(CHAT, chat())
        await stage.rest()
        began = time.monotonic()
        done = await _waves(run, options.count)
        seconds = time.monotonic() - began
        left = await stage.clean()
        places = await _places(run)
        late = percentile(run.late or [0.0], 0.99)
        return [
            Check("disconnects", f"{done} in {seconds:.0f} s", "", True, done),
            at_most(f"engine sees the close, p99 of {late.n}", late.value * 1000, SEEN_S * 1000, "ms"),
            equal("closes that no engine saw", run.unseen, 0),
            Check("what went wrong", "; ".join(run.wrong[:3]) or "nothing", "nothing", not run.wrong),
            *nothing_left(left),
            equal(f"places of the key ({PLACES} at once) that are free again", places, PLACES),
        ]


async def _waves(run: _Run, count: int) -> int:
    """Wave after wave, window after window."""
    done = 0
    for _, window in zip(range(count), cycle(_WINDOWS.values()), strict=False):
        size = min(WAVE, count - done)
        await window(run, size)
        done += size
        if done >= count:
            break
    return done


async def _places(run: _Run) -> int:
    """How many requests the key may have at once, after many of its requests were left by their clients."""
    _, bodies = run.chats(Act(hold=-1), PLACES)
    wires = await run.open(bodies)

    refused = 0.0

    async def told() -> bool:
        nonlocal refused
        total = await run.stage.totals()
        refused = total("sage_key_refusals_total")
        return total("sage_key_running_requests") + refused >= PLACES

    await until(told, timeout=PATIENCE_S)
    beyond = await run.stage.ask(CHAT, chat())
    await run.leave(wires)
    return round(PLACES - refused) if beyond.status == 429 else 0


DISCONNECTS: Final = Experiment("disconnects", "clients go away in every window of a request", 10_000, _run)
