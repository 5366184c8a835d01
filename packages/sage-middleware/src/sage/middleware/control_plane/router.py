"""The names that clients ask for, before the control plane: aliases, splits, fallbacks."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator
from functools import partial
from typing import Any, Final, Literal

from sage.common.api import Decision
from sage.common.clock import Clock
from sage.common.config import ControlPlaneConfig, ModelConfig
from sage.common.errors import SageError
from sage.common.telemetry import FALLBACKS
from sage.middleware.control_plane.admission import RetryBudget
from sage.middleware.control_plane.asides import ASIDES
from sage.middleware.control_plane.driver import ControlPlane
from sage.middleware.control_plane.metrics import Sample
from sage.middleware.control_plane.options import CoreOptions
from sage.middleware.control_plane.records import Record
from sage.middleware.control_plane.routing import elsewhere, models_of, resolve, retarget
from sage.middleware.control_plane.types import Job
from sage.middleware.engines.port import CHAT, COMPLETIONS, EMBEDDINGS, Call, Sink, Usage

__all__ = ["ModelRouter", "Outcome"]

log: Final = logging.getLogger("sage.middleware.control_plane")

Outcome = Literal["done", "failed"]
_PLAIN: Final = frozenset((CHAT, COMPLETIONS, EMBEDDINGS))


class ModelRouter:
    """Submits requests to a control plane under the models that their names stand for.

    A request for a name of its table goes to the first of its models, and on to the next where that one
    cannot serve it and nothing has reached the client. What it ends with then is the first one's error.
    Fallbacks after an engine's fault are bounded like retries, as both add to what engines are asked.
    """

    def __init__(self, control_plane: ControlPlane, clock: Clock) -> None:
        self._control_plane = control_plane
        self.begin, self.cancel = control_plane.begin, control_plane.cancel  # of what is plain: as they are
        self._clock = clock
        self._table: dict[str, ModelConfig] = {}
        self._budget = RetryBudget(CoreOptions().limits)
        self._fallbacks: Counter[tuple[str, str, str]] = Counter()  # name, model, kind of reason

    def configure(self, models: Iterable[ModelConfig], config: ControlPlaneConfig) -> None:
        """From now on these names are served; what is under way goes on as it began."""
        self._table = {one.name: one for one in models}
        self._budget.change(CoreOptions.of(config).limits)
        self._control_plane.know_names(self._table)

    # ---- requests ------------------------------------------------------------------------------------

    def submit(
        self,
        job: Job,
        call: Call,
        sink: Sink,
        *,
        deadline: float | None = None,
        used: Callable[[Usage], None] | None = None,
        task: asyncio.Task[Any] | None = None,
        ended: Callable[[Record], None] | None = None,
    ) -> Coroutine[Any, Any, Outcome]:
        """As `ControlPlane.submit`, which serves a model by its own id without a detour."""
        if job.model not in self._table:
            return self._control_plane.submit(
                job, call, sink, deadline=deadline, used=used, task=task, ended=ended
            )
        return self._routed(
            job, call, sink, deadline, partial(self._control_plane.submit, used=used, task=task, ended=ended)
        )

    def is_plain(self, job: Job, call: Call) -> bool:
        """Whether `begin` may be asked: a whole text or vectors by a model's own id, for nobody's chain."""
        return not call.stream and call.route in _PLAIN and not job.parent and job.model not in self._table

    async def _routed(
        self,
        job: Job,
        call: Call,
        sink: Sink,
        deadline: float | None,
        submit: Callable[..., Coroutine[Any, Any, Outcome]],
    ) -> Outcome:
        began = self._clock.now()
        self._budget.earn()
        models = resolve(self._table, job.model, job.parent or job.id)
        if call.route in ASIDES:  # tokens of another model are no answer
            models = models[:1]
        first: SageError | None = None
        why: list[str] = []
        for at, model in enumerate(models):
            left = None if deadline is None else deadline - (self._clock.now() - began)
            if first is not None and left is not None and left <= 0.0:
                break
            aimed, sent = retarget(job, call, model, "; ".join(why))
            try:
                return await submit(aimed, sent, sink, deadline=left)
            except SageError as error:
                first = first or error
                if at + 1 == len(models) or not self._may_go_on(error):
                    break
                why.append(f"{model}: {error.message}")
                self._fall_back(job, model, models[at + 1], error)
        assert first is not None  # a name has at least one model
        raise first

    def _may_go_on(self, error: SageError) -> bool:
        """An engine that failed was asked in vain: only a share of the traffic may be asked for twice."""
        return elsewhere(error) and (error.status != 502 or self._budget.spend())

    def _fall_back(self, job: Job, model: str, following: str, error: SageError) -> None:
        self._fallbacks[job.model, following, error.code] += 1
        log.info("%s for %s: %s falls back to %s: %s", job.id, job.model, model, following, error.message)

    # ---- what it tells -------------------------------------------------------------------------------

    def models(self) -> list[str]:
        """What can be asked for now: models, and names of which at least one model is served."""
        ready = set(self._control_plane.models())
        return sorted(ready | {name for name in self._table if models_of(self._table, name) & ready})

    def known(self) -> set[str]:
        """What can be asked for at all, also where no engine is ready."""
        return {*self._table, *(load.spec.model for load in self._control_plane.core.engines)}

    def is_known(self, model: str) -> bool:
        """Whether there is such a name or model."""
        return model in self._table or any(
            load.spec.model == model for load in self._control_plane.core.engines
        )

    def decision(self, ident: str) -> Decision | None:
        """The decision about one request: of the last model that it was sent to."""
        return self._control_plane.decision(ident)

    def samples(self) -> Iterator[Sample]:
        """The metrics of fallbacks, since this process began."""
        for (name, model, reason), count in sorted(self._fallbacks.items()):
            yield FALLBACKS, count, {"name": name, "model": model, "reason": reason}
