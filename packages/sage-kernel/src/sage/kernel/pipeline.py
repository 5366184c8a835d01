"""Flows from YAML; the form is that of `serial`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sage.common.errors import BadRequestError, NotFoundError
from sage.kernel.flow import Flow

__all__ = ["load_yaml", "parse_yaml", "read_yaml"]


def load_yaml(path: Path | str, *, allow: tuple[str, ...] = ()) -> Flow:
    """The flow that a YAML file declares; relative paths in it start at the working directory."""
    return Flow.from_dict(read_yaml(path), allow=allow, where=str(path))


def read_yaml(path: Path | str) -> Any:
    """What a YAML file says, as `Flow.from_dict` takes it. Raises NotFoundError and BadRequestError."""
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"pipeline file {str(path)!r} does not exist.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadRequestError(f"pipeline file {str(path)!r} is not UTF-8 text.") from error
    return _parsed(text, str(path))


def parse_yaml(text: str, *, allow: tuple[str, ...] = (), where: str = "pipeline") -> Flow:
    """The flow that a YAML text declares; `where` names it in errors."""
    return Flow.from_dict(_parsed(text, where), allow=allow, where=where)


def _parsed(text: str, where: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        return YAML(typ="safe").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        at = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise BadRequestError(f"{where}{at}: not YAML: {error.problem}.") from error
    except YAMLError as error:
        raise BadRequestError(f"{where}: not YAML: {error}.") from error
