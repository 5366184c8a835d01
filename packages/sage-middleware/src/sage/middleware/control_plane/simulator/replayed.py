"""The load of a recording for another run: the same requests, with what their engines told of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from statistics import median
from typing import Final

from msgspec.structs import replace

from sage.middleware.control_plane.goals import DEFAULT_SLOS
from sage.middleware.control_plane.options import CoreOptions
from sage.middleware.control_plane.simulator.clients import clients
from sage.middleware.control_plane.simulator.recorded import Recording, SeenRequest
from sage.middleware.control_plane.simulator.types import Client, SimRequest
from sage.middleware.control_plane.types import Slice

__all__ = ["options", "requests"]

_UNKNOWN_OUTPUT: Final = 128  # tokens of an answer, where no answer of the whole recording was complete


def options(recording: Recording) -> CoreOptions:
    """Options of a core with the goals of the recorded one; those of a default server where it names none."""
    return CoreOptions(slos={**DEFAULT_SLOS, **recording.slos}, details_per_s=0.0)


def requests(recording: Recording) -> Iterator[SimRequest]:
    """The same load for another run, counted from the first arrival.

    What came by itself comes at its time. What a client sent because it had been answered (see `clients`) it
    sends when it is answered in the other run, and goes on for as long as it did in this one: it sends its
    requests once more, under other ids, when that is quicker.

    What only the answer would have told, its tokens, is the median of the class where no answer was complete.
    """
    start = next(iter(recording.requests.values())).arrived
    typical = _typical(recording)
    loops = clients(recording.requests.values())
    then = {loop.requests[0].job.id: loop for loop in loops}
    asked = {seen.job.id for loop in loops for seen in loop.requests[1:]}
    for seen in recording.requests.values():
        if seen.job.id in asked:
            continue
        request = _request(seen, recording, typical, seen.arrived - start)
        loop = then.get(seen.job.id)
        if loop is not None:
            turns = [
                _request(one, recording, typical, pause)
                for one, pause in zip(loop.requests, loop.pauses, strict=True)
            ]
            request = replace(request, client=Client(loop.until - start, _turns(turns)))
        yield request


def _request(seen: SeenRequest, recording: Recording, typical: dict[str, int], at: float) -> SimRequest:
    prompt, output = _tokens(seen, recording)
    if output is None:
        output = min(typical.get(seen.job.request_class, _UNKNOWN_OUTPUT), seen.job.max_tokens or 1 << 30)
    return SimRequest(
        at,
        seen.job,
        0 if seen.job.texts else max(1, output),
        max(1, prompt),
        None if seen.deadline is None else max(0.0, seen.deadline - seen.arrived),
        (),
        None if seen.cancelled is None else max(0.0, seen.cancelled - seen.arrived),
    )


def _turns(requests: Sequence[SimRequest]) -> Iterator[SimRequest]:
    """What a client sends after its first request: the others, then all of them again and again."""
    yield from requests[1:]
    for turn in count(2):
        for request in requests:
            yield replace(request, job=replace(request.job, id=f"{request.job.id}~{turn}"))


def _tokens(seen: SeenRequest, recording: Recording) -> tuple[int, int | None]:
    """Prompt and output tokens as its engines counted them; the estimate, and None, where none did.

    A call that carried texts of several requests is shared out by their estimates.
    """
    prompt, covered = 0.0, 0
    for call in seen.calls:
        if call.usage is None:
            continue
        if not seen.job.texts:
            return call.usage.prompt_tokens or seen.job.prompt_tokens, call.usage.completion_tokens or None
        weights = {piece: _weight(piece, recording) for piece in call.slices}
        for piece, weight in weights.items():
            if piece.id == seen.job.id:
                prompt += call.usage.prompt_tokens * weight / (sum(weights.values()) or 1.0)
                covered += piece.stop - piece.start
    if not covered or not prompt:
        return seen.job.prompt_tokens, None
    return round(prompt * seen.job.texts / covered), None


def _weight(piece: Slice, recording: Recording) -> float:
    """The estimated tokens of a slice."""
    owner = recording.requests.get(piece.id)
    if owner is None:
        return 0.0
    return owner.job.prompt_tokens * (piece.stop - piece.start) / max(1, owner.job.texts)


def _typical(recording: Recording) -> dict[str, int]:
    by_class: dict[str, list[int]] = {}
    for seen in recording.requests.values():
        output = _tokens(seen, recording)[1]
        if output:
            by_class.setdefault(seen.job.request_class, []).append(output)
    return {name: round(median(lengths)) for name, lengths in by_class.items()}
