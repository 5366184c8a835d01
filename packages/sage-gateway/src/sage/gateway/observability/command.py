"""Write dashboards for Grafana and alert rules for Prometheus."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from sage.common.errors import UsageError
from sage.gateway.observability.dashboards import DASHBOARDS, dashboard

__all__ = ["observe"]


def observe(
    folder: Annotated[Path, typer.Argument(help="where to; made if it is not there")],
) -> None:
    """Write six dashboards for Grafana (JSON) and alert rules for Prometheus (YAML) into a folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, board in DASHBOARDS.items():
            _write(folder / f"sage-{name}.json", json.dumps(dashboard(name, board), indent=2) + "\n")
        _write(
            folder / "sage-alerts.yaml",
            files("sage.gateway.observability").joinpath("alerts.yaml").read_text(),
        )
    except OSError as error:
        raise UsageError(f"Cannot write to {folder} ({error.strerror or error}).") from error


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    typer.echo(file)
