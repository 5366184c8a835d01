"""What is short, in words: for a unit that waits by what is free, for one that never runs by node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from sage.kernel.scheduler.snapshot import Snapshot
from sage.kernel.scheduler.state import State, missing
from sage.kernel.scheduler.types import WHOLE, InfeasibleError, Missing, Unit, amounts

__all__ = ["grouped", "infeasible", "nearest", "shortage"]

_GROUPS = 5
_HINT = "Ask for less, run fewer replicas, or add nodes."


def shortage(snapshot: Snapshot, unit: Unit) -> str:
    """Why it has no room now; found without a look at each node."""
    need = unit.resources.need
    where = f" with {' and '.join(f'{key}={value}' for key, value in need.labels)}" if need.labels else ""
    most = snapshot.most_free(need.labels)
    if most is None:
        return f"no node{where} is open"
    cpu, memory, whole, partial = most
    demands = [
        ("cpu", need.cpu, cpu),
        ("memory", need.memory, memory),
        ("gpu", need.gpus * WHOLE or need.share, whole * WHOLE or (partial if need.share else 0)),
    ]
    short = [
        "{} {} (most: {})".format(what, *amounts(what, wanted, found))
        for what, wanted, found in demands
        if found < wanted
    ]
    if short:
        return f"no node{where} has free {' and '.join(short)}"
    demands.append(("gpu_memory", need.gpu_memory, 0))
    asked = [f"{what} {amounts(what, wanted, 0)[0]}" for what, wanted, _ in demands if wanted]
    return f"no node{where} has free at once {' and '.join(asked)}"


def infeasible(empty: Snapshot, units: Sequence[Unit]) -> InfeasibleError:
    """The error for units that cannot run together on these nodes, on which nothing is placed."""
    if len(units) == 1:
        unit = units[0]
        lacking = [(state, missing(state, unit.resources.need)) for state in empty]
        found = f"{grouped(lacking)}{nearest(lacking)}" if lacking else "there are no nodes"
        return InfeasibleError(f"Unit {unit.id!r} fits no node, even an empty one: {found}.", hint=_HINT)
    name = units[0].group
    totals = _totals(empty, units)
    if not totals:
        totals = f"each fits a node, but no way was found to place all on the {len(empty)} nodes"
    return InfeasibleError(f"The {len(units)} units of {name!r} cannot run together: {totals}.", hint=_HINT)


def grouped(lacking: Iterable[tuple[State, Sequence[Missing]]]) -> str:
    """`2 nodes lack gpu; 3 nodes lack memory and label zone=a`; nodes that lack nothing are left out."""
    kinds = Counter(_kind(found) for _, found in lacking if found)
    texts = [_counted(count, kind) for kind, count in kinds.most_common(_GROUPS)]
    others = sum(kinds.values()) - sum(count for _, count in kinds.most_common(_GROUPS))
    return "; ".join(texts + [_counted(others, "lack other things")] * bool(others))


def nearest(lacking: Iterable[tuple[State, Sequence[Missing]]]) -> str:
    """`; nearest is 'n7': memory 16GiB (has 8GiB)`: it lacks the fewest things, and the least of them."""
    name, found = min(
        ((state.node.name, found) for state, found in lacking if found),
        key=lambda one: (len(one[1]), -sum(each.part for each in one[1]), one[0]),
    )
    return f"; nearest is {name!r}: {', '.join(map(str, found))}"


def _counted(count: int, kind: str) -> str:
    """`kind` begins with `lack` or, of closed nodes, with `is`."""
    verb, _, rest = kind.partition(" ")
    if count == 1:
        return f"1 node {'lacks' if verb == 'lack' else verb} {rest}"
    return f"{count} nodes {'are' if verb == 'is' else verb} {rest}"


def _kind(found: Sequence[Missing]) -> str:
    """What a node lacks, without the amounts, or why it is closed."""
    closed = [one.found for one in found if one.what == "open"]
    if closed:
        return closed[0]
    names = [f"{one.what}={one.wanted}" if one.what.startswith("label ") else one.what for one in found]
    return f"lack {' and '.join(names)}"


def _totals(empty: Snapshot, units: Sequence[Unit]) -> str:
    """What the units want more of than all nodes together have; empty where there is no such thing."""
    states = [state for state in empty if not state.closed]
    needs = [unit.resources.need for unit in units]
    sums = {
        "cpu": (sum(need.cpu for need in needs), sum(state.cpu for state in states)),
        "memory": (sum(need.memory for need in needs), sum(state.memory for state in states)),
        "gpu": (
            sum(need.gpus * WHOLE + need.share for need in needs),
            sum(state.whole * WHOLE for state in states),
        ),
    }
    have = "1 node has" if len(states) == 1 else f"{len(states)} nodes have"
    short = []
    for what, (wanted, found) in sums.items():
        if wanted > found:
            asked, there = amounts(what, wanted, found)
            short.append(f"they want {what} {asked}; {have} {there}")
    return "; ".join(short)
