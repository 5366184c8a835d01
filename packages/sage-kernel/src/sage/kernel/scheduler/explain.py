"""A decision by node, in words and as data: what fits where, what is missing, how good each node is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sage.kernel.scheduler.policy import Policy, Score
from sage.kernel.scheduler.selection import require, select
from sage.kernel.scheduler.shortage import grouped, nearest
from sage.kernel.scheduler.snapshot import Snapshot
from sage.kernel.scheduler.state import missing
from sage.kernel.scheduler.types import InfeasibleError, Missing, Placement, Unit

__all__ = ["Explanation", "NodeReport", "explain"]


@dataclass(frozen=True, slots=True)
class NodeReport:
    """One node: what it lacks (nothing: it fits), and its score where it fits, the smaller the better."""

    node: str
    fits: bool
    missing: tuple[Missing, ...] = ()
    score: Score = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """What `select` decides on a snapshot and why.

    `verdict`: `place`, `wait` or `infeasible`; `node` is the chosen one, else empty. `nodes`: those that fit
    first, the best of them first, then the others by name.
    """

    unit: str
    policy: str
    verdict: str
    node: str
    reason: str
    nodes: tuple[NodeReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON takes it."""
        return asdict(self)

    def text(self, limit: int = 10) -> str:
        """The decision, then a line for each of the first `limit` nodes."""
        lines = [f"{self.unit}: {self.verdict} {self.node}".rstrip() + f" ({self.reason})"]
        lines += [f"  {_line(report)}" for report in self.nodes[:limit]]
        hidden = len(self.nodes) - limit
        return "\n".join(lines + [f"  … and {hidden} more nodes"] * (hidden > 0))


def explain(snapshot: Snapshot, unit: Unit, policy: Policy) -> Explanation:
    """Look at every node. `select` decides the same without that."""
    need = unit.resources.need
    lacking = [(state, missing(state, need)) for state in snapshot]
    fitting = sorted((policy.score(state, unit), state.node.name) for state, found in lacking if not found)
    reports = [NodeReport(name, True, (), score) for score, name in fitting]
    reports += [NodeReport(state.node.name, False, found) for state, found in lacking if found]
    decision = select(snapshot, unit, policy)
    if isinstance(decision, Placement):
        verdict, node, reason = "place", decision.node, decision.reason
    else:
        verdict, node, reason = "wait", "", f"{decision.reason}: {grouped(lacking)}{nearest(lacking)}"
        try:
            require(snapshot.emptied(), [unit], policy)
        except InfeasibleError as error:
            verdict, reason = "infeasible", error.message
    return Explanation(unit.id, policy.name, verdict, node, reason, tuple(reports))


def _line(report: NodeReport) -> str:
    if report.fits:
        score = ", ".join(f"{part:.3g}" for part in report.score)
        return f"{report.node}: fits" + (f", score {score}" if score else "")
    return f"{report.node}: lacks {', '.join(map(str, report.missing))}"
