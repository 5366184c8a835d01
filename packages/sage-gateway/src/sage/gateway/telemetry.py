"""What is switched on of the access log and of traces, wrapped around the handler of the hot routes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from sage.common.config import TelemetryConfig
from sage.common.errors import ConfigError
from sage.gateway.requests import Handler, Server
from sage.gateway.watch import AccessLog, Logged, Watch
from sage.middleware.engines.port import EngineKind
from sage.middleware.engines.registry import engine_kind

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from sage.gateway.tracing import Traces

__all__ = ["Telemetry"]


class Telemetry:
    """One for a serving process. Make it after the logs are configured.

    Raises ConfigError where traces are asked for and the extra `otel` is not installed.
    """

    def __init__(self, config: TelemetryConfig, env: Mapping[str, str]) -> None:
        level = config.access_log
        self._log = None if level == "off" else AccessLog(every=level == "all")
        self._traces = _traces(config.otlp_endpoint, env)

    def watch(self) -> Watch:
        """For one listener."""
        return Watch(self._log)

    def around(self, handler: Handler) -> Handler:
        """The handler with traces, where they are switched on."""
        return handler if self._traces is None else self._traces.around(handler)

    def logged(self, handler: Server, now: Callable[[], float]) -> Server:
        """The handler for requests that come through no connection, in the access log too."""
        return handler if self._log is None else Logged(handler, self._log, now)

    def kind(self, name: str) -> EngineKind:
        """A kind of engine by its name; where traces are on, its engines have a span for each call."""
        kind = engine_kind(name)
        return kind if self._traces is None else self._traces.kind(kind)

    @property
    def tracer(self) -> Tracer | None:
        """For the pipelines that are served, where traces are on."""
        return None if self._traces is None else self._traces.tracer

    async def close(self) -> None:
        """Send what is left of the traces."""
        if self._traces is not None:
            await self._traces.close()


def _traces(endpoint: str, env: Mapping[str, str]) -> Traces | None:
    """The exporter that the configuration or OpenTelemetry's own variables ask for."""
    if env.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    named = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if not endpoint and not any(env.get(name) for name in named):
        return None
    try:
        from sage.gateway.tracing import Traces  # only where it is on: it is large, and an extra
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"Traces are asked for, and what they need is not installed ({error.name}).",
            hint="Install sage-gateway[otel], or name no receiver of traces.",
        ) from error
    return Traces(endpoint)
