"""Show the running stack in a browser."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["studio"]


def studio(
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 = any free one; else ports.studio.")
    ] = None,
) -> None:
    """Serve the status page of the running stack until Ctrl-C; prints a login link that works once."""
    from dataclasses import replace

    from sage.common.paths import SagePaths
    from sage.common.settings import load
    from sage.studio.feed import stack_source
    from sage.studio.server import serve

    config, paths = load().config, SagePaths.default()
    if config.state_dir:
        paths = replace(paths, state=config.state_dir)
    serve(stack_source(paths), config.ports.studio if port is None else port, on_ready=_announce)


def _announce(url: str) -> None:
    print(url, flush=True)
