"""`sage doctor`: is everything here that a stack needs, and if not, what to do."""

from __future__ import annotations

import typer

from sage.cli.commands.stack import Config, Json, paths
from sage.cli.output import columns, emit

__all__ = ["doctor"]


def doctor(config: Config = None, as_json: Json = False) -> None:
    """Is everything here that a stack needs?"""
    from sage.cli.checks import run_checks

    checks = run_checks(paths(config))
    failed = any(check.state == "fail" for check in checks)
    if as_json:
        emit({"ok": not failed, "checks": [check.to_dict() for check in checks]})
    else:
        print(columns(("STATE", "CHECK", "FOUND"), [(c.state, c.name, c.found) for c in checks]))
        for check in checks:
            if check.hint:
                print(f"{check.name}: {check.hint}")
    raise typer.Exit(1 if failed else 0)
