"""Node selection: which unit of work goes to which node, and when; pure, without a clock or a process.

`select` decides for one unit on an immutable `Snapshot`; a `Queue` keeps whole jobs over nodes that come and
go.
"""

from __future__ import annotations

from sage.kernel.scheduler.catalogue import available_policies, load_policy
from sage.kernel.scheduler.explain import Explanation, NodeReport, explain
from sage.kernel.scheduler.inventory import node_of
from sage.kernel.scheduler.policy import Policy
from sage.kernel.scheduler.queue import Change, Queue
from sage.kernel.scheduler.selection import require, select, select_group
from sage.kernel.scheduler.snapshot import Snapshot
from sage.kernel.scheduler.types import (
    InfeasibleError,
    Missing,
    Node,
    Placement,
    Resources,
    Unit,
    Wait,
    Withdrawal,
)

__all__ = [
    "Change",
    "Explanation",
    "InfeasibleError",
    "Missing",
    "Node",
    "NodeReport",
    "Placement",
    "Policy",
    "Queue",
    "Resources",
    "Snapshot",
    "Unit",
    "Wait",
    "Withdrawal",
    "available_policies",
    "explain",
    "load_policy",
    "node_of",
    "require",
    "select",
    "select_group",
]
