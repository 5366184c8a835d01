"""The GPUs of this machine, as NVML tells of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from sage.common.errors import UnavailableError

__all__ = ["Gpu", "GpuUse", "Nvml", "find_gpus", "real_nvml", "use_of_gpus"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as NVML sees it; memory in bytes."""

    index: int
    name: str
    memory_total: int
    memory_free: int


@dataclass(frozen=True, slots=True)
class GpuUse:
    """What a GPU does: percent of the last moments in which it ran a kernel (None: not told), bytes used."""

    index: int
    percent: float | None
    memory_used: int
    memory_total: int


class Nvml(Protocol):
    """What is asked of NVML between `start` and `stop`. Each raises UnavailableError that says why not."""

    def start(self) -> None:
        """Load the library and find the driver."""
        ...

    def stop(self) -> None:
        """Let go of it."""
        ...

    def count(self) -> int:
        """How many devices there are."""
        ...

    def name(self, index: int) -> str:
        """What the device is called."""
        ...

    def memory(self, index: int) -> tuple[int, int]:
        """Bytes in all, and bytes that are free."""
        ...

    def percent(self, index: int) -> float | None:
        """How busy it is; None where the device does not tell, as a part of a GPU (MIG) does not."""
        ...


def find_gpus(nvml: Nvml | None = None) -> tuple[tuple[Gpu, ...], str]:
    """The GPUs; or none, and `none: …` with the reason."""

    def look(found: Nvml) -> list[Gpu]:
        return [Gpu(index, found.name(index), *found.memory(index)) for index in range(found.count())]

    gpus, note = _with(nvml, look)
    return tuple(gpus), note


def use_of_gpus(nvml: Nvml | None = None) -> tuple[tuple[GpuUse, ...], str]:
    """What each GPU does now; or none, and `none: …` with the reason."""

    def look(found: Nvml) -> list[GpuUse]:
        uses = []
        for index in range(found.count()):
            total, free = found.memory(index)
            uses.append(GpuUse(index, found.percent(index), total - free, total))
        return uses

    uses, note = _with(nvml, look)
    return tuple(uses), note


def _with(nvml: Nvml | None, look: Callable[[Nvml], list[_T]]) -> tuple[list[_T], str]:
    """What `look` finds between start and stop. A device that fails in between is a reason too."""
    try:
        found = nvml or real_nvml()
        found.start()
        try:
            devices = look(found)
        finally:
            found.stop()
    except UnavailableError as error:
        return [], f"none: {error.message}"
    return devices, "" if devices else "none: NVML reports no device"


def real_nvml() -> Nvml:
    """NVML by the package nvidia-ml-py. Raises UnavailableError where that is not installed."""
    try:
        import pynvml
    except ImportError as error:
        raise UnavailableError("the package nvidia-ml-py is not installed") from error
    return _Pynvml(pynvml)


class _Pynvml:
    def __init__(self, library: Any) -> None:
        self._nvml = library

    def start(self) -> None:
        self._ask(self._nvml.nvmlInit)

    def stop(self) -> None:
        self._ask(self._nvml.nvmlShutdown)

    def count(self) -> int:
        return int(self._ask(self._nvml.nvmlDeviceGetCount))

    def name(self, index: int) -> str:
        return str(self._ask(self._nvml.nvmlDeviceGetName, self._handle(index)))

    def memory(self, index: int) -> tuple[int, int]:
        memory = self._ask(self._nvml.nvmlDeviceGetMemoryInfo, self._handle(index))
        return int(memory.total), int(memory.free)

    def percent(self, index: int) -> float | None:
        handle = self._handle(index)
        try:
            return float(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        except self._nvml.NVMLError:
            return None

    def _handle(self, index: int) -> Any:
        return self._ask(self._nvml.nvmlDeviceGetHandleByIndex, index)

    def _ask(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except self._nvml.NVMLError as error:
            missing = isinstance(error, self._nvml.NVMLError_LibraryNotFound)
            raise UnavailableError("NVML not found" if missing else str(error)) from error
