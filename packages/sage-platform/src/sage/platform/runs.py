"""What runs for a state directory: `run.json`, which the serving process writes when it is ready."""

from __future__ import annotations

from pydantic import ValidationError

from sage.common.api import RunInfo
from sage.common.errors import ForbiddenError, SageError, UnreachableError
from sage.common.paths import SagePaths
from sage.platform.daemon import alive

__all__ = ["forget_stale", "read_run", "recorded_run"]


def recorded_run(paths: SagePaths) -> RunInfo | None:
    """What the file says, true or not any more; None without a file. Raises SageError if unreadable."""
    try:
        return RunInfo.model_validate_json(paths.run_file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise ForbiddenError(f"Cannot read {paths.run_file}: {exc.strerror}.") from exc
    except ValidationError as exc:
        raise SageError(
            f"{paths.run_file} is not what a stack of this version writes ({exc.error_count()} problems).",
            hint="If no stack runs, delete the file; else stop it with the version that started it.",
        ) from exc


def read_run(paths: SagePaths) -> RunInfo:
    """Where the running stack listens. Raises UnreachableError when none runs or it died."""
    run = recorded_run(paths)
    if run is None:
        raise UnreachableError(f"No stack is running for {paths.state}.", hint="Start one with `sage up`.")
    if not alive(run.pid, run.started_at):
        raise UnreachableError(
            f"The stack that ran for {paths.state} (pid {run.pid}) ended without a word.",
            hint=f"Its last words are in {paths.logs / 'gateway.log'}; start a new one with `sage up`.",
        )
    return run


def forget_stale(paths: SagePaths) -> bool:
    """Remove the record of a stack that does not run any more; whether there was one."""
    run = recorded_run(paths)
    if run is None or alive(run.pid, run.started_at):
        return False
    paths.run_file.unlink(missing_ok=True)
    return True
