"""Jobs: flows that run in the background, each in a process of its own, and survive what happens to it.

Everything is imported when it is first asked for: the process of a job needs nothing of the manager.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sage.kernel.jobs.manager import JobManager
    from sage.kernel.jobs.options import JobOptions
    from sage.kernel.jobs.restart import Restart

__all__ = ["JobManager", "JobOptions", "Restart"]

_MODULES = {"JobManager": "manager", "JobOptions": "options", "Restart": "restart"}


if not TYPE_CHECKING:  # else a type checker would accept any name

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(f"sage.kernel.jobs.{_MODULES[name]}"), name)
        return value
