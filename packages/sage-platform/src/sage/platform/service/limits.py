"""What a service may use, and whether it died of that."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sage.common.errors import UsageError

__all__ = ["ResourceLimits", "limit_hit"]

_SAID = {
    "memory_bytes": ("MemoryError", "Cannot allocate memory", "std::bad_alloc", "out of memory"),
    "open_files": ("Too many open files",),
    "processes": ("Resource temporarily unavailable", "can't start new thread"),
}


@dataclass(frozen=True, slots=True)
class ResourceLimits:
    """Limits of the system on each process of a service; None = as it is.

    `memory_bytes` bounds heap and other private memory (RLIMIT_DATA): files that are mapped, as weights are,
    and address space that is only reserved, as CUDA does, do not count. `processes` counts processes and
    threads of the whole user (RLIMIT_NPROC); the kernel does not apply it to root. `nice` is -20 (first) to
    19 (last). Raises UsageError for a value that is none.
    """

    memory_bytes: int | None = None
    open_files: int | None = None
    processes: int | None = None
    nice: int | None = None

    def __post_init__(self) -> None:
        for name in _SAID:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"The limit {name} is {value}; valid is 1 or more.")
        if self.nice is not None and not -20 <= self.nice <= 19:
            raise UsageError(f"The limit nice is {self.nice}; valid is -20 to 19.")

    def given(self) -> dict[str, int]:
        """Those that are set, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def limit_hit(limits: ResourceLimits, said: str) -> str:
    """Which limit a service that `said` this ran into, in words; empty if none.

    The system tells only the process that asked for more, so what it wrote of that is the one witness.
    """
    for name, signs in _SAID.items():
        value = limits.given().get(name)
        if value is not None and any(sign in said for sign in signs):
            return f"it ran into its limit {name}={value}"
    return ""
