"""Sub-commands of other packages: listed by name, imported only when one is called."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from sage.common.errors import SageError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["GROUP", "PluginGroup", "load"]

GROUP = "sage.commands"


class PluginGroup(TyperGroup):
    """A group whose own commands come first, then one for each entry point; ours win over a plugin's."""

    def __init__(self, *args: Any, plugins: Iterable[EntryPoint] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        found = entry_points(group=GROUP) if plugins is None else plugins
        self._plugins = {point.name: point for point in found if point.name not in self.commands}

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the base class passes it
        """Ours in the order of a first day's work, then the plugins by name."""
        return [*self.commands, *sorted(self._plugins)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Ours, or a plugin by what is known without importing it."""
        point = self._plugins.get(cmd_name)
        if point is None:
            return super().get_command(ctx, cmd_name)
        return TyperCommand(name=cmd_name, callback=None, help=_summary(point))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command to run; here a plugin is imported."""
        point = self._plugins.get(args[0])
        if point is None:
            return super().resolve_command(ctx, args)
        return point.name, load(point), args[1:]


def _summary(point: EntryPoint) -> str:
    """First line of the docstring of a plugin's module, read from its source, not imported."""
    spec = find_spec(point.module)
    if spec is None or spec.origin is None:
        return f"Not importable: {point.value}."
    with open(spec.origin, encoding="utf-8") as source:
        found = re.match(r'"""(.+?)(?:\n|""")', source.read(400))
    return found[1] if found else f"Brought by {point.module}."


def load(point: EntryPoint) -> Any:
    """The command behind an entry point: a `typer.Typer` app or a function. Raises SageError otherwise."""
    try:
        target = point.load()
    except (ImportError, AttributeError) as exc:
        raise SageError(
            f"The command {point.name} ({point.value}) cannot be loaded: {exc}.",
            hint="Its package is damaged or of another version: install it again.",
        ) from exc
    if callable(target) and not isinstance(target, typer.Typer):
        single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        single.command(name=point.name)(target)
        target = single
    if not isinstance(target, typer.Typer):
        raise SageError(
            f"The command {point.name} ({point.value}) is a {type(target).__name__};"
            " a typer.Typer or a function is needed."
        )
    command = typer.main.get_command(target)
    command.name = point.name
    return command
