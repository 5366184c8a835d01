"""The policy port: in what order requests wait, which engine serves one, which are refused.

A policy sees what the core knows and nothing else. It reads no clock, does no I/O and has no randomness but
from a seed given at construction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import msgspec

from sage.common.errors import ConfigError
from sage.common.telemetry import Bound, RequestClass
from sage.middleware.control_plane.goals import DEFAULT_SLOS
from sage.middleware.control_plane.types import Slo

if TYPE_CHECKING:
    from sage.middleware.control_plane.cost import EmbedCost, LlmCost
    from sage.middleware.control_plane.records import Record
    from sage.middleware.engines.port import EngineSpec

__all__ = [
    "BatchLimits",
    "Choice",
    "Discipline",
    "EngineView",
    "Policy",
    "PolicyOptions",
    "Shed",
    "Traits",
    "Wait",
    "available_policies",
    "load_policy",
    "policy_summaries",
]

GROUP: Final = "sage.policies"
_POLICIES: Final = "sage.middleware.control_plane.policies"

_BUILT_IN: Final = {
    "adaptive": "adaptive:Adaptive",
    "cost": "cost:Cost",
    "edf": "edf:Edf",
    "fair": "fair:Fair",
    "fifo": "fifo:Fifo",
    "hybrid": "hybrid:Hybrid",
    "least_load": "least_load:LeastLoad",
    "power_of_two": "power_of_two:PowerOfTwo",
    "prefix_affinity": "prefix_affinity:PrefixAffinity",
    "priority": "priority:Priority",
    "round_robin": "round_robin:RoundRobin",
    "siloed": "siloed:Siloed",
    "sjf": "sjf:Sjf",
    "slo": "slo:Slo",
}


class PolicyOptions(msgspec.Struct, frozen=True):
    """What a policy is made with. `weights`: tenant to share, 1 where it is not named."""

    weights: dict[str, float] = {}  # msgspec copies defaults
    best_effort: frozenset[str] = frozenset()  # tenants that would rather be late than refused
    slos: dict[RequestClass, Slo] = msgspec.field(default_factory=lambda: dict(DEFAULT_SLOS))
    exploration: float = 0.01  # share of placements that try an engine within 2x of the best
    seed: int = 0


class Traits(msgspec.Struct, frozen=True):
    """Which of the core's machinery a policy uses.

    `batches`: embedding requests are coalesced and cut by `Policy.batch`; else each is one call.
    `prefixes`: the prefix index is kept, and `Record.cached` is filled before `choose`.
    `hedges`: late short calls are sent a second time. `unbounded`: an engine's slots do not limit it, because
    it queues by itself; `EngineView.free` is then meaningless. `predicts`: the cost models learn.
    """

    batches: bool = False
    prefixes: bool = False
    hedges: bool = False
    unbounded: bool = False
    predicts: bool = False


class EngineView(Protocol):
    """One engine as a policy sees it: read it, never change it."""

    name: str
    spec: EngineSpec
    generates: bool  # it writes text; else it computes vectors or scores
    max_running: int  # attempts that it takes at once
    running: int  # attempts there now
    free: int  # attempts it would take now; 0 = busy
    outstanding_tokens: int  # estimated tokens of what runs there: prompts, and the answers they may ask for
    prefill_tokens: int  # uncached prompt tokens sent there that have not shown a first byte
    last_dispatch: int  # number of the newest attempt sent there, counted over all engines; 0 = none yet
    llm: LlmCost  # what it learned of its times; `llm` speaks for generation, `embed` for the rest
    embed: EmbedCost
    busy_until: float  # predicted end of what runs there (embedding engines)

    @property
    def device(self) -> Sequence[EngineView]:
        """All engines of its group, itself among them."""
        ...

    @property
    def beside(self) -> float:
        """1 while an engine of the other kind computes on its device, else 0."""
        ...


class Choice(msgspec.Struct, frozen=True, gc=False):
    """Send it to `engine`; `reason` says why in words.

    `predicted`: seconds until the first token (generation) or the answer (the rest), 0 = not predicted.
    `threads`: see `Dispatch`.
    """

    engine: str
    reason: str
    predicted: float = 0.0
    threads: int = 0


class Wait(msgspec.Struct, frozen=True, gc=False):
    """Leave it in the queue: ask again when something changes, and at time `until` at the latest."""

    until: float | None = None


class Shed(msgspec.Struct, frozen=True, gc=False):
    """Refuse it with 429; `retry_after` in seconds, which the core spreads, each client's its own.

    `bound`: the bound of a queue that was met, where that is why.
    """

    reason: str
    retry_after: float
    bound: Bound | None = None


class BatchLimits(msgspec.Struct, frozen=True, gc=False):
    """How much one embedding call may carry.

    `tokens` bounds what is coalesced and where a bulk request is cut; a single text is never cut.
    `hold_until`: a call waits for company until then, unless the lane holds `enough` tokens (0 = `tokens`);
    0 = it goes at once.
    """

    texts: int
    tokens: int
    hold_until: float = 0.0
    enough: int = 0


class Discipline(Protocol):
    """How the requests of one lane wait. A lane's requests can be served by the same engines.

    Keys of one policy's disciplines compare across lanes: the smaller goes first.
    """

    def push(self, record: Record, now: float) -> None:
        """Let it wait. One that comes back after a fault keeps its `sequence`."""
        ...

    def remove(self, record: Record) -> None:
        """Take it out, wherever it stands; its last unit has been taken, or it has ended."""
        ...

    def head(self, now: float) -> Record | None:
        """The one whose turn it is; None when nothing waits."""
        ...

    def key(self, record: Record, now: float) -> Any:
        """How urgent a head is."""
        ...

    def __len__(self) -> int:
        """How many wait."""
        ...


class Policy(Protocol):
    """Orders, places, refuses. Made as `factory(PolicyOptions)`."""

    @property
    def name(self) -> str:
        """The name by which it is configured and reported."""
        ...

    @property
    def traits(self) -> Traits:
        """What of the core it uses. Read once, when it comes into force."""
        ...

    def discipline(self) -> Discipline:
        """A new empty queue for one lane."""
        ...

    def admit(self, record: Record, engines: Sequence[EngineView], ahead: float, now: float) -> Shed | None:
        """Refuse a newcomer before it waits, or let it in.

        `ahead`: predicted engine-seconds that wait in its lane, but for those of more patient classes.
        `engines` as in `choose`.
        """
        ...

    def choose(self, record: Record, engines: Sequence[EngineView], now: float) -> Choice | Wait | Shed:
        """Where the head of a lane goes now.

        `engines` are all that could serve it, up and capable, in the order in which they became known, at
        least one. The chosen one must have a free slot unless the policy is `unbounded`. Each choice is
        carried out before the next question.
        """
        ...

    def batch(self, record: Record, engine: EngineView, now: float) -> BatchLimits:
        """How much the call that carries `record` may carry. Asked only where `traits.batches`."""
        ...

    def charge(self, record: Record, seconds: float) -> None:
        """Units of a request were sent that are predicted to take `seconds` of an engine."""
        ...

    def settle(self, record: Record, seconds: float) -> None:
        """A request that was charged `record.charged` engine-seconds in all took `seconds` of them."""
        ...


def available_policies() -> list[str]:
    """Names of all policies that `load_policy` knows, sorted."""
    return sorted({*_BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


def policy_summaries() -> dict[str, str]:
    """What each policy does: the first sentence of its documentation. Imports all of them."""
    summaries = {}
    for name in available_policies():
        try:
            lines = (getattr(_factory(name), "__doc__", None) or "").strip().splitlines()
        except (ImportError, AttributeError) as exc:  # a damaged package of somebody else
            lines = [f"Cannot be loaded: {exc}."]
        summaries[name] = lines[0] if lines else "Says nothing of itself."
    return summaries


def load_policy(name: str, options: PolicyOptions | None = None) -> Policy:
    """Make the policy called `name`: a shipped one, else one from the entry points `sage.policies`.

    Raises ConfigError with the names that exist.
    """
    return _factory(name)(options or PolicyOptions())


def _factory(name: str) -> Callable[[PolicyOptions], Policy]:
    target = _BUILT_IN.get(name)
    if target is not None:
        module, _, attribute = target.partition(":")
        return cast(
            "Callable[[PolicyOptions], Policy]",
            getattr(import_module(f"{_POLICIES}.{module}"), attribute),
        )
    for point in entry_points(group=GROUP, name=name):
        return cast("Callable[[PolicyOptions], Policy]", point.load())
    raise ConfigError(
        f"There is no policy named {name!r}; there are {', '.join(available_policies())}.",
        hint="Set `control_plane.policy` to one of them.",
    )
