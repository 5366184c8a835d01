"""A stack for one command: its own state directory, and gone when the command ends, however it ends."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sage.common.api import Decision, RunInfo
from sage.common.config import SageConfig
from sage.common.errors import ConflictError, SageError, UnreachableError
from sage.common.paths import SagePaths
from sage.middleware import stack
from sage.middleware.operators.connect import stack_paths
from sage.platform.daemon import alive

__all__ = ["OwnStack", "own_stack"]

_PREFIX = "quickstart-"


@dataclass(slots=True)
class OwnStack:
    """A stack that this process started; fits `sage.apps.first_run.Stack`."""

    config: SageConfig
    paths: SagePaths
    started: bool = False

    def start(self, on_progress: Callable[[str], None]) -> RunInfo:
        """Bring it up; nothing of it is left running when that fails."""
        self.started = True  # before: an interrupt may come at any moment
        return stack.start(self.config, self.paths, on_progress=on_progress)

    def key(self) -> str:
        """The default key of its state directory."""
        return stack.client_key(self.paths)

    def decisions(self, limit: int) -> list[Decision]:
        """The newest decision records."""
        return stack.admin_client(self.paths).decisions(limit).decisions


@contextmanager
def own_stack(
    model: str | None,
    engine: str,
    *,
    keep: bool,
    on_progress: Callable[[str], None],
    engine_python: Path | None = None,
) -> Iterator[OwnStack]:
    """Make a stack for this command and stop it at the end; SIGTERM and SIGHUP end it like Ctrl-C.

    With `keep` it is the default stack of this user, and stays when all went well. Otherwise it lives in a
    state directory of its own, beside one that may be running; on failure that stays, for its logs.
    Raises ConflictError when it is to be kept and one runs already.
    """
    default = stack_paths()
    _sweep(default.state)
    if keep:
        _refuse_running(default)
    paths = default if keep else replace(default, state=default.state / f"{_PREFIX}{os.getpid()}")
    made = OwnStack(stack.quick_config(model, engine, paths, engine_python=engine_python), paths)
    done = False
    with stack.interruptible():
        try:
            yield made
            done = True
        finally:
            if made.started and not (keep and done):
                on_progress("stack: stopping")
                stack.stop(paths)
            if done and not keep:
                shutil.rmtree(paths.state, ignore_errors=True)


def _refuse_running(paths: SagePaths) -> None:
    try:
        run = stack.read_run(paths)
    except UnreachableError:
        return
    raise ConflictError(
        f"A stack already runs (pid {run.pid}, {run.base_url}), so --keep cannot leave another one.",
        hint="Stop it with `sage down`, or run without --keep.",
    )


def _sweep(state: Path) -> None:
    """Stop and remove what earlier commands left that were killed before they could."""
    for folder in state.glob(f"{_PREFIX}*"):
        pid = folder.name.removeprefix(_PREFIX)
        if not pid.isdecimal() or (alive(int(pid)) and int(pid) != os.getpid()):
            continue
        try:
            stack.stop(SagePaths(state=folder, cache=folder, config=folder))
        except SageError:
            continue  # not what a stack of this version wrote: leave it to its owner
        shutil.rmtree(folder, ignore_errors=True)
