"""`python -m sage.benchmark.resilience chaos|soak|fuzz`: run, print one table, say by the exit code."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from sage.benchmark.resilience import chaos, fuzz
from sage.benchmark.resilience.options import Experiment, Options
from sage.benchmark.resilience.report import Check, record, table
from sage.benchmark.resilience.soak import SOAK

__all__ = ["main"]

_KINDS: Final[dict[str, tuple[Experiment, ...]]] = {
    "chaos": chaos.EXPERIMENTS,
    "soak": (SOAK,),
    "fuzz": fuzz.EXPERIMENTS,
}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="resilience", description="Long tests of the serving process.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, experiments in _KINDS.items():
        sub = kinds.add_parser(kind)
        names = [one.name for one in experiments]
        sub.add_argument(
            "--only", action="append", choices=names, help="this experiment, and others so named"
        )
        sub.add_argument("--count", type=int, help="how often, instead of each experiment's own number")
        if kind == "soak":
            sub.add_argument("--minutes", type=float, help="how long; 60 if nothing is said")
        sub.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
        sub.add_argument("--json", type=Path, metavar="FILE", help="write a record of it")
    options = parser.parse_args(argv)
    if getattr(options, "minutes", None) is not None:
        options.count = round(60 * options.minutes)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for; 0 when every target was met."""
    options = _arguments(argv)
    chosen = [one for one in _KINDS[options.kind] if options.only is None or one.name in options.only]
    checks: list[Check] = []
    for experiment in chosen:
        count = experiment.count if options.count is None else options.count
        print(f"\n{experiment.name}: {experiment.about} (--count {count} --seed {options.seed})", flush=True)
        began = time.monotonic()
        found = asyncio.run(experiment.run(Options(count, options.seed)))
        print(table(found), f"({time.monotonic() - began:.0f} s)", sep="\n", flush=True)
        checks += found
    if options.json is not None:
        parameters: dict[str, Any] = {"only": options.only, "count": options.count, "seed": options.seed}
        record(options.json, options.kind, checks, parameters)
    failed = [one.what for one in checks if not one.ok]
    print(
        f"\n{len(checks) - len(failed)} ok, {len(failed)} FAILED{': ' if failed else ''}{', '.join(failed)}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
