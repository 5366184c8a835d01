"""The guards and the handler of both listeners, and what of them can change while they serve."""

from __future__ import annotations

from sage.common.config import GatewayConfig, SageConfig
from sage.gateway.access import Access
from sage.gateway.connections import Connections
from sage.gateway.dataplane import DataPlane
from sage.gateway.edge import Edge
from sage.gateway.requests import Settings
from sage.gateway.tokens import TokenDecoder
from sage.middleware.control_plane.classify import ParseLimits
from sage.middleware.control_plane.driver import ControlPlane
from sage.middleware.control_plane.router import ModelRouter
from sage.middleware.engines.port import Route

__all__ = ["Front"]


class Front:
    """What stands before the control plane: `data` and `admin` are the settings of the two listeners."""

    def __init__(
        self, config: SageConfig, control_plane: ControlPlane, router: ModelRouter, access: Access
    ) -> None:
        gateway, core = config.gateway, control_plane.core
        self._handler = DataPlane(
            router,
            ParseLimits.of(gateway, config.control_plane),
            TokenDecoder(),
            lambda: core.policy.traits.prefixes,
            access.accounts,
        )
        self._edge = Edge(access.ring, hosts=gateway.allowed_hosts, bodies=_bodies(gateway))
        self._admin_edge = Edge(access.ring, hosts=gateway.allowed_hosts, bodies={}, admin_only=True, hot={})
        self._connections = Connections(gateway.max_connections, gateway.max_connections_per_address)
        self.data = Settings(
            self._edge, self._handler, connections=self._connections, standing=access.standing
        )
        self.admin = Settings(self._admin_edge)

    def apply(self, config: SageConfig) -> None:
        """Judge what comes from now on by another configuration."""
        gateway = config.gateway
        self._handler.limit(ParseLimits.of(gateway, config.control_plane))
        self._edge.change(gateway.allowed_hosts, _bodies(gateway))
        self._admin_edge.change(gateway.allowed_hosts, {})
        self._connections.change(gateway.max_connections, gateway.max_connections_per_address)


def _bodies(gateway: GatewayConfig) -> dict[Route, int]:
    """The largest body of each route."""
    vectors = dict.fromkeys((Route.EMBEDDINGS, Route.RERANK, Route.SCORE), gateway.max_embedding_body_bytes)
    return {**dict.fromkeys(Route, gateway.max_body_bytes), **vectors}
