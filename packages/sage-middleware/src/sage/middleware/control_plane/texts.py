"""Calls for vectors or scores: what to ask an engine for, and what each request gets of the answer."""

from __future__ import annotations

from collections.abc import Sequence

from sage.middleware.control_plane.calls import EmbeddingRequest, Vector, assemble
from sage.middleware.control_plane.pairs import PairRequest
from sage.middleware.control_plane.pairs import assemble as assemble_pairs
from sage.middleware.control_plane.tickets import Part, Ticket
from sage.middleware.engines.port import EMBEDDINGS, Route

__all__ = ["Landed", "body_of", "key_of"]


class Landed:
    """What came of the texts of some parts. `tokens`: as the engine counted them, for what it computed.

    `untouched`: the engine's own answer, where it is just that of the one request.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self.vectors: dict[bytes, Vector] = {}
        self.untouched: bytes | None = None
        self.tokens = 0

    def deliver(self) -> None:
        """Give each request its part."""
        for part in self.parts:
            ticket = part.ticket
            if ticket.over:
                continue
            if self.untouched is not None:
                ticket.answer = self.untouched
            else:
                ticket.accept(part.start, [self.vectors[text] for text in part.texts])


def key_of(ticket: Ticket) -> str:
    """What texts that are the same have in common; a request without a batch key shares with itself alone."""
    return ticket.job.batch_key or f"\0{ticket.job.id}"


def body_of(parts: Sequence[Part], texts: list[bytes]) -> tuple[Route, bytes]:
    """What to ask for, and by which route; all parts are of one kind, as they share a batch key."""
    requests = {part.ticket.job.id: part.ticket.request for part in parts}.values()
    pairs = [one for one in requests if isinstance(one, PairRequest)]
    if pairs:
        return assemble_pairs(pairs[0].route, pairs[0].model, texts)
    return EMBEDDINGS, assemble([one for one in requests if isinstance(one, EmbeddingRequest)], texts)
