"""All checks of our own, by name; `sage-dev lint` runs them in one process."""

from __future__ import annotations

from collections.abc import Callable

from sage.tools import packaging, safety, sizes, words
from sage.tools.tree import Finding, Tree

__all__ = ["CHECKS", "run"]

CHECKS: dict[str, Callable[[Tree], list[Finding]]] = {
    "namespace": packaging.check_namespace,
    "pins": packaging.check_pins,
    "lock": packaging.check_lock,
    "sizes": sizes.check,
    "calls": safety.check,
    "words": words.check_words,
    "test-names": words.check_test_names,
    "all": words.check_all,
}


def run(tree: Tree) -> dict[str, list[Finding]]:
    """What each check found, sorted."""
    return {name: sorted(check(tree)) for name, check in CHECKS.items()}
