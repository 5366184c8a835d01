"""`sage config`: what is set, where it was set, whether it is right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sage.cli.commands.stack import Json
from sage.cli.output import columns, emit

if TYPE_CHECKING:
    from sage.common.settings import Loaded

__all__ = ["app"]

app = typer.Typer(help="The configuration.", no_args_is_help=True, rich_markup_mode=None)

File = Annotated[Path | None, typer.Option("--config", help="A configuration file.")]

_TEMPLATE = """\
# SAGE's configuration. `sage config schema` prints every key, `sage config show --origin` what is in force.
ports:
  gateway: 8888
  health: 8887
  admin: 8886
control_plane:
  policy: hybrid # `sage policy list` prints all
engines:
  - name: llm-0
    kind: transformers # or vllm, openai
    model: nano # a hub name or a folder; `nano` is a very small model that answers from passages only
  - name: embed-0
    kind: embedding
    model: all-MiniLM-L6-v2
    task: embed
"""


@app.command()
def show(
    config: File = None,
    origin: Annotated[bool, typer.Option("--origin", help="Also where each value came from.")] = False,
    as_json: Json = False,
) -> None:
    """The configuration in force."""
    from sage.common.settings import load

    loaded = load(file=config)
    if as_json:
        values = loaded.config.model_dump(mode="json")
        emit({"config": values, "origin": loaded.origin} if origin else values)
        return
    rows = _rows(loaded)
    print(
        columns(("KEY", "VALUE", "ORIGIN"), rows)
        if origin
        else columns(("KEY", "VALUE"), [r[:2] for r in rows])
    )


def _rows(loaded: Loaded) -> list[tuple[str, str, str]]:
    values = loaded.config.model_dump(mode="json")
    return [(key, str(_at(values, key)), origin) for key, origin in loaded.origin.items()]


def _at(values: object, key: str) -> object:
    for part in key.replace("[", ".").replace("]", "").split("."):
        values = values[int(part)] if isinstance(values, list) else values[part]  # type: ignore[index]
    return values


@app.command()
def validate(ctx: typer.Context, config: File = None) -> None:
    """Check the configuration; every problem is named with its file, line, key and what is valid."""
    from sage.common.settings import load

    engines = len(load(file=config).config.engines)
    ctx.obj.say(f"the configuration is valid ({engines} engines)")


@app.command()
def schema() -> None:
    """The JSON Schema of sage.yaml, for an editor."""
    from sage.common.settings import json_schema

    emit(json_schema())


@app.command()
def init(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="The file to write.")] = Path("sage.yaml"),
) -> None:
    """Write a first sage.yaml; a file that is there is never touched."""
    from sage.common.errors import ConflictError
    from sage.platform.state import explain

    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(_TEMPLATE)
    except FileExistsError as exc:
        raise ConflictError(f"{file} is there already.", hint="Name another file, or remove it.") from exc
    except OSError as exc:
        raise explain(exc, file) from exc
    ctx.obj.say(f"wrote {file}; start it with `sage up`")
