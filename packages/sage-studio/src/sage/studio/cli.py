"""`sage studio`."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["studio"]


def studio(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 = any free one.")] = 8889,
) -> None:
    """Serve the status page of the running stack until Ctrl-C; prints a login link that works once."""
    from sage.common.paths import SagePaths
    from sage.studio.feed import stack_source
    from sage.studio.server import serve

    serve(stack_source(SagePaths.default()), port, on_ready=_announce)


def _announce(url: str) -> None:
    print(url, flush=True)
