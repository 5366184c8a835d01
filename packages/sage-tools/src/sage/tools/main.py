"""`sage-dev`: the checks and chores of the repository, called by manage.sh, pre-commit and CI alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sage.common.errors import SageError
from sage.tools.lint import run
from sage.tools.scaffold import new_package
from sage.tools.sizes import BASELINE, lowered
from sage.tools.tree import Tree, find_root

__all__ = ["app", "main"]

app = typer.Typer(
    help="Checks and chores of the SAGE repository.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
_new = typer.Typer(help="Start something from a template.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(_new, name="new")

Root = Annotated[Path | None, typer.Option(help="The repository; by default the one around this folder.")]


@app.command()
def lint(
    root: Root = None,
    lower: Annotated[bool, typer.Option("--lower", help="Lower the size baseline to what is there.")] = False,
) -> None:
    """Our own checks: namespace, pins, lock, sizes, dangerous calls, words, test names, __all__."""
    tree = Tree.of(_root(root))
    if lower:
        (tree.root / BASELINE).write_text(json.dumps(lowered(tree), indent=2) + "\n", encoding="utf-8")
    results = run(tree)
    for name, findings in results.items():
        for finding in findings:
            print(f"{finding} [{name}]")
    total = sum(map(len, results.values()))
    print(
        f"{len(results)} checks over {len(tree.files)} files: {total or 'nothing'} to mend", file=sys.stderr
    )
    raise typer.Exit(1 if total else 0)


@app.command()
def layers(root: Root = None) -> None:
    """The import contracts of pyproject.toml: layers, forbidden libraries, no cycles."""
    tool = Path(sys.executable).with_name("lint-imports")
    raise typer.Exit(subprocess.run([tool, "--no-logo"], cwd=_root(root), check=False).returncode)


@app.command()
def build(
    root: Root = None, out: Annotated[Path, typer.Option(help="Where the wheels go.")] = Path("dist")
) -> None:
    """A wheel of every package, built with the locked build requirements."""
    home = _root(root)
    lock = str(home / "requirements" / "cpu.txt")
    members = sorted(str(home / "packages" / name) for name in Tree.of(home).members())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(out),
        *members,
    ]
    # Builds are isolated; only the environment reaches into them.
    env = {**os.environ, "PIP_CONSTRAINT": lock, "PIP_BUILD_CONSTRAINT": lock}
    code = subprocess.run(command, env=env, check=False).returncode
    if not code:
        print("\n".join(sorted(str(path) for path in out.glob("sage_*.whl"))))
    raise typer.Exit(code)


@_new.command("package")
def package(
    name: Annotated[str, typer.Argument(help="One word: `search` makes sage-search with sage.search.")],
    description: Annotated[str, typer.Option(help="One sentence.")],
    root: Root = None,
) -> None:
    """A new distribution under packages/."""
    home = _root(root)
    version = Tree.of(home).members()["sage-common"]["project"]["version"]
    for file in new_package(home, name, version, description):
        print(file.relative_to(home))
    print(f"Give sage.{name} its layer in pyproject.toml, then: ./manage.sh setup layers", file=sys.stderr)


def _root(given: Path | None) -> Path:
    return find_root((given or Path.cwd()).resolve())


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit; an error is one sentence on stderr."""
    try:
        app(argv, prog_name="sage-dev")
    except SageError as exc:
        print(f"error: {exc}", file=sys.stderr)
        sys.exit(exc.exit_code)
