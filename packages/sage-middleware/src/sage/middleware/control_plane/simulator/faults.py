"""What goes wrong in a simulated run, and when. Times are virtual seconds.

A fault names an engine of the fleet. One that strikes an engine that is not up changes nothing, but that a
window (`for_s`) is kept for what is started within it.
"""

from __future__ import annotations

import msgspec

__all__ = ["Brownout", "Fault", "Hang", "Kill", "Mute", "Refuse", "Reload", "Slow"]


class Fault(msgspec.Struct, frozen=True, tag=True):
    """Something goes wrong at time `at`."""

    at: float
    engine: str


class Kill(Fault, frozen=True, tag=True):
    """Its process dies and all that runs there fails.

    The control plane hears of it `noticed_after` seconds later; until then its connects are refused. It is up
    again after `restart_after` seconds, or never (None).
    """

    restart_after: float | None = None
    noticed_after: float = 0.0


class Reload(Fault, frozen=True, tag=True):
    """It is stopped, which breaks what runs there, and loads for `for_s` seconds: a cold start."""

    for_s: float


class Slow(Fault, frozen=True, tag=True):
    """Each of its steps takes `factor` times as long."""

    for_s: float
    factor: float


class Brownout(Fault, frozen=True, tag=True):
    """It answers a `share` of new calls with an error of its own, `after` seconds after they came."""

    for_s: float
    share: float
    after: float = 0.05


class Refuse(Fault, frozen=True, tag=True):
    """Nothing listens: new connects are refused, what runs goes on."""

    for_s: float


class Hang(Fault, frozen=True, tag=True):
    """It accepts calls and computes nothing, then goes on where it stood."""

    for_s: float


class Mute(Fault, frozen=True, tag=True):
    """Stale metrics: no report of its progress comes through, though it works."""

    for_s: float
