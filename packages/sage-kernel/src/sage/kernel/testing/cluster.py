"""A synthetic cluster and the work for it: the same for the same seed."""

from __future__ import annotations

from random import Random

from sage.kernel.scheduler import Node, Resources, Unit

__all__ = ["synthetic_nodes", "synthetic_units"]

_GIB = 1 << 30
_KINDS = (  # share of the nodes, cores, GiB, devices, GiB of each
    (0.55, 32, 128, 0, 0),
    (0.20, 64, 512, 0, 0),
    (0.20, 64, 512, 8, 80),
    (0.05, 32, 128, 4, 24),
)
_ZONES = "abc"


def synthetic_nodes(count: int, *, seed: int = 0) -> list[Node]:
    """Three quarters without a GPU, the others with 8 large or 4 small ones; three zones, in turn."""
    random = Random(seed)  # noqa: S311  (not a secret)
    nodes = []
    for number in range(count):
        _, cpus, memory, gpus, each = random.choices(_KINDS, [kind[0] for kind in _KINDS])[0]
        labels = {"zone": _ZONES[number % len(_ZONES)], "disk": random.choice(("nvme", "ssd"))}
        nodes.append(Node(f"n{number:05}", cpus, memory * _GIB, (each * _GIB,) * gpus, labels))
    return nodes


def synthetic_units(count: int, *, seed: int = 0, gpus: float = 0.1, zoned: float = 0.1) -> list[Unit]:
    """Units that come one a second; `gpus` of them want devices or a part of one, `zoned` of them a zone."""
    random = Random(seed)  # noqa: S311  (not a secret)
    units = []
    for number in range(count):
        cpu, memory, gpu = random.choice((0.25, 0.5, 1, 2, 4)), random.choice((1, 2, 4, 8)), 0.0
        if random.random() < gpus:
            cpu, memory = random.choice((1, 2, 4)), random.choice((8, 16))
            gpu = random.choices((0.1, 0.25, 0.5, 1, 2, 4, 8), (10, 15, 20, 35, 10, 6, 4))[0]
        labels = {"zone": random.choice(_ZONES)} if random.random() < zoned else {}
        demand = Resources(cpu, gpu, memory * _GIB, labels=labels)
        units.append(Unit(f"u{number:06}", demand, random.randrange(3), float(number)))
    return units
