"""What a service and all it starts carry in their environment, to be known when all else is gone."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

__all__ = ["MARK", "Mark"]

MARK = "SAGE_SERVICE"


@dataclass(frozen=True, slots=True)
class Mark:
    """Name and log of the service, and its supervisor: the pid, and a Unix time at which that ran."""

    name: str
    supervisor: int
    at: float
    log: str

    def to_text(self) -> str:
        """For the environment."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Mark | None:
        """What `to_text` made; None for anything else."""
        try:
            mark = cls(**json.loads(text))
        except (TypeError, ValueError):
            return None
        kinds = (isinstance(mark.name, str), isinstance(mark.supervisor, int), isinstance(mark.log, str))
        return mark if all(kinds) and isinstance(mark.at, int | float) else None
