"""Engines that come and go: when one more is started, which is drained, and what may wait meanwhile. Pure.

How the core feeds it:
1. It makes `Autoscaler(templates, cores)` once: one `Template` for each configured engine that is ours.
2. About once a second, and at once when a request comes for a template without a live replica, it calls
   `decide(demands, now)` with one `Demand` for each template, made from its engine table and its lanes.
3. A `StartEngine` goes out as it is. The pool answers with EngineAdded, then EngineUp or EngineDown.
4. For a `DrainEngine` it sets that engine to `draining`, sends it no more work, and puts out `StopEngine`
   when nothing runs there any more.
5. When no replica can serve a newcomer it asks `retry_after(template, deadline, now)`: None = let it wait,
   else refuse it with that Retry-After, and count it in `Demand.shed`, so that the template is woken all
   the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from sage.common.errors import NotFoundError
from sage.middleware.control_plane.fleet import AutoscaleOptions, Demand, Fleet, Replica, Template
from sage.middleware.control_plane.types import StartEngine

__all__ = ["AutoscaleOptions", "Autoscaler", "Demand", "DrainEngine", "Replica", "Template"]


class DrainEngine(msgspec.Struct, frozen=True, tag=True):
    """Send this engine no more work, and stop it when it has none left."""

    name: str
    reason: str


class Autoscaler:
    """Starts on pressure that lasts, drains on a surplus that lasts longer, moves cores between templates.

    `cores`: how many each device has; engines of a device that is not named are bounded by `max_replicas`
    alone. At most one start of a template is under way at a time. A template's drains are at least
    `cool_down_s` apart, and farther, up to 16 times, after each drain that was followed by a start soon.
    """

    def __init__(
        self,
        templates: Iterable[Template],
        cores: Mapping[str, int],
        options: AutoscaleOptions | None = None,
    ) -> None:
        self._options = options or AutoscaleOptions()
        self._cores = dict(cores)
        self._fleets = {one.name: Fleet(one, self._options) for one in templates}
        self._last: float | None = None

    def decide(self, demands: Iterable[Demand], now: float) -> list[StartEngine | DrainEngine]:
        """What to start and to drain now. Raises NotFoundError for a demand of an unknown template."""
        passed = 0.0 if self._last is None else now - self._last
        for demand in demands:
            self._fleet(demand.template).look(demand, now, passed, first=self._last is None)
        self._last = now
        return [*self._starts(self._free(), now), *self._surplus(now)]

    def wake_s(self, template: str, now: float) -> float:
        """Seconds until a replica of it can serve, as learned; 0 when one can."""
        return self._fleet(template).wake_s(now)

    def retry_after(self, template: str, deadline: float | None, now: float) -> float | None:
        """None when a request may wait for a replica that starts, else the seconds after which to come again.

        `deadline` is absolute; None = it has none.
        """
        seconds = self.wake_s(template, now)
        return None if deadline is None or now + seconds <= deadline else seconds

    def _fleet(self, template: str) -> Fleet:
        if template not in self._fleets:
            known = ", ".join(self._fleets) or "none"
            raise NotFoundError(f"There is no template {template!r} to scale; there are: {known}.")
        return self._fleets[template]

    def _free(self) -> Counter[str]:
        """Cores of each device that no process has; below 0 where they share some."""
        free = Counter(self._cores)
        for fleet in self._fleets.values():
            free[fleet.template.group] -= fleet.template.cores * len(fleet.processes)
        return free

    def _starts(self, free: Counter[str], now: float) -> list[StartEngine | DrainEngine]:
        """Those that have none first, then the others by how long they have been pressed."""
        intents: list[StartEngine | DrainEngine] = []
        for fleet in sorted(self._fleets.values(), key=lambda one: (bool(one.serving), -one.pressure)):
            reason, urgent = self._reason(fleet)
            if not reason or not fleet.may_start(now):
                continue
            template = fleet.template
            short = template.group in self._cores and template.cores > free[template.group]
            if short:
                intents += self._make_room(fleet, now)
            # Without any replica it starts beside the others all the same: late is better than never.
            if urgent or not short:
                free[template.group] -= template.cores
                intents.append(StartEngine(template.name, fleet.started(now), reason))
        return intents

    def _reason(self, fleet: Fleet) -> tuple[str, bool]:
        """Why it needs one more, empty = it does not; and whether it cannot do without."""
        if fleet.starting:
            return "", False
        if len(fleet.serving) < fleet.template.min_replicas:
            return f"{len(fleet.serving)} of at least {fleet.template.min_replicas} run", not fleet.serving
        if not fleet.serving:
            return "it is asked for and sleeps" if fleet.asked_for else "", True
        lasting = fleet.pressed and fleet.pressure >= self._options.start_after_s
        return (fleet.pressed if lasting else ""), False

    def _make_room(self, pressed: Fleet, now: float) -> list[StartEngine | DrainEngine]:
        """Drain an idle replica of another template on the same device, an embedding engine if there is one.

        One at a time: those cores come free when it has ended. Embedding engines go first as they are back in
        seconds.
        """
        group = [one for one in self._fleets.values() if one.template.group == pressed.template.group]
        if any(one.draining for one in group):
            return []
        wait = self._options.move_after_s
        donors = [one for one in group if one is not pressed and one.may_drain(now, wait)]
        if not donors:
            return []
        donor = min(donors, key=lambda one: (one.template.task == "generate", one.low_since or 0.0))
        return [
            DrainEngine(donor.drained(now), f"its cores go to {pressed.template.name}: {pressed.pressed}")
        ]

    def _surplus(self, now: float) -> list[StartEngine | DrainEngine]:
        intents: list[StartEngine | DrainEngine] = []
        for fleet in self._fleets.values():
            last = len(fleet.ready) == 1
            low_s = self._options.sleep_after_s if last else self._options.cool_down_s
            if fleet.may_drain(now, low_s):
                reason = f"idle for {low_s:g} s" if last else f"the others had room for {low_s:g} s"
                intents.append(DrainEngine(fleet.drained(now), reason))
        return intents
