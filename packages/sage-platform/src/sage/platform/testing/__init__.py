"""Real child processes with scripted behaviour, for tests of this layer and of those above."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["scripted_service"]

_SCRIPT = Path(__file__).with_name("scripted.py")


def scripted_service(
    port: int,
    *,
    exit_code: int | None = None,
    ready: bool = True,
    ignore_term: bool = False,
    family: bool = False,
) -> tuple[str, ...]:
    """The command line of a small HTTP server on 127.0.0.1 (`GET /health` is its probe).

    `exit_code`: it prints a line and exits at once. `ready=False`: its health is 503 until `GET /heal`.
    `ignore_term`: only SIGKILL ends it. `family`: it has a child and a grandchild in a session of its own,
    both ignore SIGTERM. `GET /about` answers JSON: `pids`, `cores`, `nice`, `env`. `GET /hurt`
    makes it unhealthy, `GET /exit/3` ends it with code 3, `GET /say/3` prints `line 0` to `line 2`.
    `GET /hog/memory` and `/hog/files` take what there is, print the error and end it with code 1.
    """
    options: list[str] = []
    if exit_code is not None:
        options += ["--exit", str(exit_code)]
    options += ["--unready"] * (not ready) + ["--ignore-term"] * ignore_term + ["--family"] * family
    return (sys.executable, "-I", "-S", str(_SCRIPT), str(port), *options)
