"""Loading the configuration once more while requests run: all of it is applied, or nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from sage.common.api import ReloadReport
from sage.common.config import SageConfig
from sage.common.errors import BadRequestError, ConflictError, SageError
from sage.common.settings import Loaded
from sage.gateway.checks import check_models
from sage.gateway.front import Front
from sage.gateway.reconfigure import Plan, plan
from sage.middleware.control_plane.classify import ParseLimits
from sage.middleware.control_plane.driver import ControlPlane
from sage.middleware.control_plane.inprocess import InProcessClient
from sage.middleware.control_plane.options import CoreOptions, policy_options
from sage.middleware.control_plane.policy import load_policy
from sage.middleware.control_plane.router import ModelRouter
from sage.middleware.live_pool import LivePool
from sage.middleware.members import core_options
from sage.middleware.pipelines.pool import Pipelines

__all__ = ["Parts", "Reloader"]

log = logging.getLogger("sage.gateway")


class Reloader:
    """Keeps the configuration in force. `source` loads it again, given the one in force.

    `applied` is told of each one that has been put in force.
    """

    def __init__(
        self,
        loaded: Loaded,
        source: Callable[[SageConfig], Loaded],
        parts: Parts,
        applied: Callable[[SageConfig], None],
    ) -> None:
        self.loaded = loaded
        self._source = source
        self._parts = parts
        self._applied = applied
        self._lock = asyncio.Lock()

    async def reload(self) -> ReloadReport:
        """Load, compare, apply; one after the other if several ask.

        Raises BadRequestError with every problem of a configuration that cannot be used, and ConflictError
        while the first one is still being put in force. The one in force stays then.
        """
        async with self._lock:
            try:
                loaded = await asyncio.to_thread(self._source, self.loaded.config)
                todo = plan(self.loaded.config, loaded.config)
                self._parts.pool.check(todo.config)
                options = await asyncio.to_thread(_checked, todo.config)
            except ConflictError:
                raise
            except SageError as error:
                log.error("the configuration cannot be used, and the one in force stays: %s", error)
                raise BadRequestError(error.message, hint=error.hint) from error
            self._parts.apply(todo, options)
            self.loaded = Loaded(todo.config, self._origin(loaded, todo))
            self._applied(todo.config)
            _tell(todo.report)
            return todo.report

    def _origin(self, loaded: Loaded, todo: Plan) -> dict[str, str]:
        """Of what was not applied, the place of the value in force."""
        kept = {change.key: self.loaded.origin.get(change.key, "") for change in todo.report.needs_restart}
        return {**loaded.origin, **kept}


class Parts:
    """What of the serving process follows the configuration."""

    def __init__(
        self,
        control_plane: ControlPlane,
        router: ModelRouter,
        front: Front,
        pool: LivePool,
        pipelines: Pipelines,
        client: InProcessClient,
    ) -> None:
        self.pool = pool
        self._client = client
        self._pipelines = pipelines
        self._control_plane = control_plane
        self._router = router
        self._front = front

    def apply(self, todo: Plan, options: CoreOptions) -> None:
        """Put a checked configuration in force. Nothing here awaits, so no request sees half of it."""
        config, running = todo.config, self._control_plane.policy
        # One that was put in force by hand stays, unless the configuration has another one now.
        policy = config.control_plane.policy if "control_plane.policy" in todo.keys else running
        self._control_plane.reconfigure(config.control_plane, options, policy)
        self._router.configure(config.models, config.control_plane)
        self._front.apply(config)
        self._client.limit(ParseLimits.of(config.gateway, config.control_plane))
        self.pool.apply(config)
        self._pipelines.apply(config.pipelines)


def _checked(config: SageConfig) -> CoreOptions:
    """Raise what would only show while it is applied. Looks for folders: not for the loop."""
    check_models(config)
    load_policy(config.control_plane.policy, policy_options(config.control_plane))
    return core_options(config)


def _tell(report: ReloadReport) -> None:
    engines = report.engines.model_dump()
    words = [f"{what} {', '.join(names)}" for what, names in engines.items() if names]
    words += [change.key for change in report.applied]
    log.info("the configuration was loaded again: %s", "; ".join(words) or "nothing has changed")
    if report.needs_restart:
        keys = ", ".join(change.key for change in report.needs_restart)
        log.warning("these need a restart and stay as they were: %s", keys)
