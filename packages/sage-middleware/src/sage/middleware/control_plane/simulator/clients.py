"""Which requests of a recording were sent because another one had been answered: closed loops, inferred.

A trace does not name connections. But whoever asks again when it was answered shows: in one stream (tenant,
model and class) nearly every arrival lies moments after an end, one arrival to an end. Requests that come by
themselves do so by chance only, and the window is kept so short that at most every fourth does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise
from statistics import fmean
from typing import Final

from sage.middleware.control_plane.simulator.recorded import SeenRequest

__all__ = ["Loop", "clients"]

_THINK_S: Final = 0.05  # the longest pause between an answer and the next request of the same client
_CHANCE: Final = 0.25  # arrivals expected within the window after an end, if they came by themselves
_ENOUGH: Final = 0.75  # share of a stream's arrivals that must follow an end
_FEWEST: Final = 8  # requests of a stream: fewer show nothing


@dataclass(frozen=True, slots=True)
class Loop:
    """What one client sent in turn. `pauses[i]`: seconds before `requests[i]`, of the first their mean.

    `until`: the end of its last one, when it could have sent another and did not.
    """

    requests: list[SeenRequest]
    pauses: list[float]
    until: float


def clients(seen: Iterable[SeenRequest]) -> list[Loop]:
    """The clients of all streams that are closed loops; every request of such a stream belongs to one."""
    streams: dict[tuple[str, str, str], list[SeenRequest]] = {}
    for one in seen:
        streams.setdefault((one.job.tenant, one.job.model, one.job.request_class), []).append(one)
    found: list[Loop] = []
    for stream in streams.values():
        if len(stream) < _FEWEST:
            continue
        chains = _chains(stream)
        if len(stream) - len(chains) >= _ENOUGH * len(stream):
            found += [_loop(chain) for chain in chains]
    return found


def _chains(stream: Sequence[SeenRequest]) -> list[list[SeenRequest]]:
    """Each request behind the one whose end it came after, the earliest end that is near enough first."""
    ordered = sorted(stream, key=lambda one: one.arrived)
    length = ordered[-1].arrived - ordered[0].arrived
    window = min(_THINK_S, _CHANCE * length / len(ordered))
    chains: list[list[SeenRequest]] = []
    ends: list[tuple[float, int]] = []  # heap of what nobody has followed yet, with the number of its chain
    for one in ordered:
        while ends and ends[0][0] + window < one.arrived:
            heappop(ends)
        if ends and ends[0][0] <= one.arrived:
            number = heappop(ends)[1]
            chains[number].append(one)
        else:
            number = len(chains)
            chains.append([one])
        if one.ended is not None:
            heappush(ends, (one.ended, number))
    return chains


def _loop(chain: list[SeenRequest]) -> Loop:
    pauses = [later.arrived - (before.ended or later.arrived) for before, later in pairwise(chain)]
    mean = fmean(pauses) if pauses else 0.0
    last = chain[-1]
    return Loop(chain, [mean, *pauses], last.arrived if last.ended is None else last.ended)
