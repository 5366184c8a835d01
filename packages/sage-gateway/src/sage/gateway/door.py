"""What the door tells a scraper: connections, streams, bounds that were met, the lag of the loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from sage.common.telemetry import CONNECTIONS, LIMIT_HITS, LOOP_LAG, STREAMS, Bound
from sage.gateway.serve import Listener
from sage.middleware.control_plane.core import Core
from sage.middleware.control_plane.metrics import Sample

__all__ = ["samples"]


def samples(listeners: Mapping[str, Listener], core: Core) -> Iterator[Sample]:
    """As of now. Each bound is there from the beginning: a rate must see its first hit."""
    met = Counter(core.books.bounds)
    for name, listener in listeners.items():
        yield CONNECTIONS, listener.settings.connections.open, {"listener": name}
        met.update(listener.settings.watch.bounds)
    yield STREAMS, core.streams, {}
    yield LOOP_LAG, listeners["data"].lag, {}
    for bound in Bound:
        yield LIMIT_HITS, met[bound], {"limit": bound.value}
