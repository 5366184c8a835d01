"""Sub-commands from entry points."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import typer

from sage.cli.output import columns
from sage.cli.plugins import GROUP, PluginGroup, load
from sage.common.errors import SageError


@pytest.fixture
def module() -> Iterator[types.ModuleType]:
    """A module that entry points can name."""
    made = types.ModuleType("plugin_of_the_test")
    app = typer.Typer(help="A group.")

    @app.command()
    def one(times: int = 1) -> None:
        print("one " * times)

    @app.command()
    def two() -> None:
        print("two")

    def alone(name: str) -> None:
        """Greet."""
        print(f"hello {name}")

    made.__dict__.update(app=app, alone=alone, number=3)
    sys.modules[made.__name__] = made
    yield made
    del sys.modules[made.__name__]


def point(name: str, attribute: str, module: str = "plugin_of_the_test") -> EntryPoint:
    return EntryPoint(name=name, value=f"{module}:{attribute}", group=GROUP)


def group(*plugins: EntryPoint) -> PluginGroup:
    own = typer.main.get_command(_own())
    return PluginGroup(name="sage", commands={"up": own}, plugins=plugins, rich_markup_mode=None)


def _own() -> typer.Typer:
    app = typer.Typer(add_completion=False)
    app.command()(lambda: print("own up"))
    return app


def run(command: PluginGroup, *arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        command.main(list(arguments), prog_name="sage")
    return int(caught.value.code or 0)


@pytest.mark.usefixtures("module")
def test_an_app_becomes_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(group(point("things", "app")), "things", "one", "--times", "2") == 0
    assert capsys.readouterr().out.split() == ["one", "one"]


@pytest.mark.usefixtures("module")
def test_a_function_becomes_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(group(point("greet", "alone")), "greet", "you") == 0
    assert capsys.readouterr().out == "hello you\n"


def test_help_lists_a_plugin_without_importing_it(capsys: pytest.CaptureFixture[str]) -> None:
    broken = point("broken", "app", module="module_that_is_not_there")
    assert run(group(broken), "--help") == 0
    out = capsys.readouterr().out
    assert out.index("\n  up") < out.index("\n  broken")
    assert "Not importable: module_that_is_not_there:app." in out


def test_help_shows_the_first_line_of_a_plugins_docstring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "talking_plugin.py").write_text('"""Says what it does."""\nraise RuntimeError("imported")\n')
    (tmp_path / "silent_plugin.py").write_text("app = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    plugins = [point("a", "app", module="talking_plugin"), point("b", "app", module="silent_plugin")]
    assert run(group(*plugins), "--help") == 0
    out = capsys.readouterr().out
    assert "Says what it does." in out
    assert "Brought by silent_plugin." in out


@pytest.mark.usefixtures("module")
def test_a_plugin_cannot_take_one_of_our_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(group(point("up", "alone")), "up") == 0
    assert capsys.readouterr().out == "own up\n"


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (point("x", "app", module="module_that_is_not_there"), "cannot be loaded"),
        (point("x", "missing"), "cannot be loaded"),
        (point("x", "number"), "is a int"),
    ],
)
def test_a_broken_plugin_is_named(broken: EntryPoint, words: str) -> None:
    with pytest.raises(SageError, match=words) as caught:
        load(broken)
    assert broken.value in caught.value.message


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert columns(("A", "LONG"), [("aaaa", 1), ("b", "")]) == "A     LONG\naaaa  1\nb"
