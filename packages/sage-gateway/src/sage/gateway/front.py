"""The guards and the handler of both listeners, and what of them can change while they serve."""

from __future__ import annotations

from collections.abc import Callable

from sage.common.config import GatewayConfig, SageConfig
from sage.gateway.connections import Connections
from sage.gateway.conversations import Conversations
from sage.gateway.dataplane import DataPlane
from sage.gateway.edge import Edge
from sage.gateway.requests import Settings
from sage.gateway.services import Services
from sage.gateway.tokens import TokenDecoder
from sage.middleware.control_plane.classify import ParseLimits
from sage.middleware.engines.port import MEDIA, Route

__all__ = ["Front"]


class Front:
    """What stands before the control plane: `data` and `admin` are the settings of the two listeners.

    `handler` serves lines of batches, and `bodies` are the most bytes of one, by route.
    """

    def __init__(self, config: SageConfig, services: Services, now: Callable[[], float]) -> None:
        gateway, core, access = config.gateway, services.control_plane.core, services.access
        watch = services.telemetry.watch()
        self.bodies = _bodies(gateway)
        self._conversations = Conversations(services.responses, gateway.max_body_bytes)
        self._plane = DataPlane(
            services.router,
            ParseLimits.of(gateway, config.control_plane),
            TokenDecoder(),
            lambda: core.policy.traits.prefixes,
            access.accounts,
            watch,
            self._conversations,
        )
        handler = services.telemetry.around(self._plane)
        self.handler = services.telemetry.logged(handler, now)
        self._edge = Edge(
            access.ring, hosts=gateway.allowed_hosts, bodies=self.bodies, max_file=gateway.max_file_bytes
        )
        self._admin_edge = Edge(access.ring, hosts=gateway.allowed_hosts, bodies={}, admin_only=True, hot={})
        self._connections = Connections(gateway.max_connections, gateway.max_connections_per_address)
        self.data = Settings(
            self._edge,
            handler,
            watch=watch,
            connections=self._connections,
            standing=access.standing,
        )
        self.admin = Settings(self._admin_edge, watch=services.telemetry.watch())

    def apply(self, config: SageConfig) -> None:
        """Judge what comes from now on by another configuration."""
        gateway = config.gateway
        self.bodies.update(_bodies(gateway))
        self._plane.limit(ParseLimits.of(gateway, config.control_plane))
        self._conversations.most = gateway.max_body_bytes
        self._edge.change(gateway.allowed_hosts, self.bodies)
        self._admin_edge.change(gateway.allowed_hosts, {})
        self._connections.change(gateway.max_connections, gateway.max_connections_per_address)


def _bodies(gateway: GatewayConfig) -> dict[Route, int]:
    """The largest body of each route."""
    vectors = dict.fromkeys((Route.EMBEDDINGS, Route.RERANK, Route.SCORE), gateway.max_embedding_body_bytes)
    media = dict.fromkeys(MEDIA, gateway.max_media_body_bytes)
    return {**dict.fromkeys(Route, gateway.max_body_bytes), **vectors, **media}
