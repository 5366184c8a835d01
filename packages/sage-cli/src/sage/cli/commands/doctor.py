"""`sage doctor`: is everything here that a stack needs, and if not, what to do."""

from __future__ import annotations

from typing import Annotated

import typer

from sage.cli.commands.stack import Config, Json, paths
from sage.cli.output import columns, emit

__all__ = ["doctor"]

Fix = Annotated[bool, typer.Option("--fix", help="End processes of a dead stack and forget its record.")]


def doctor(config: Config = None, as_json: Json = False, fix: Fix = False) -> None:
    """Is everything here that a stack needs?"""
    from sage.cli.checks import run_checks
    from sage.platform.diagnosis import repair

    where = paths(config)
    repairs = repair(where) if fix else []
    checks = run_checks(where)
    failed = any(check.state == "fail" for check in checks)
    if as_json:
        emit({"ok": not failed, "repairs": repairs, "checks": [check.to_dict() for check in checks]})
    else:
        for line in repairs:
            print(f"repair: {line}")
        print(columns(("STATE", "CHECK", "FOUND"), [(c.state, c.name, c.found) for c in checks]))
        for check in checks:
            if check.hint:
                print(f"{check.name}: {check.hint}")
    raise typer.Exit(1 if failed else 0)
