"""How an operator comes to its model client: given in Python, or that of the running stack."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sage.common.errors import UsageError
from sage.common.paths import SagePaths
from sage.middleware.client import ModelClient

__all__ = ["Connected", "connect", "stack_paths"]


def connect(environ: Mapping[str, str] | None = None, paths: SagePaths | None = None) -> ModelClient:
    """A client of the stack at `SAGE_BASE_URL` with `SAGE_API_KEY`, else of the one running on this machine.

    Raises UnreachableError when neither is there, UsageError when the URL comes without its key.
    """
    from sage.middleware.client import HttpClient
    from sage.middleware.stack import client_key, read_run

    env = os.environ if environ is None else environ
    url, key = env.get("SAGE_BASE_URL"), env.get("SAGE_API_KEY")
    if url and not key:
        raise UsageError("SAGE_BASE_URL is set and SAGE_API_KEY is not; a stack answers only with its key.")
    if url and key:
        return HttpClient(url, key)
    paths = paths or stack_paths()
    return HttpClient(read_run(paths).base_url, client_key(paths))


def stack_paths(config: Path | None = None) -> SagePaths:
    """Where this user's stack lives: the configuration's `state_dir`, else the platform's place.

    `config` is a file to read beside those that are always read.
    """
    from sage.common.settings import load

    here = SagePaths.default()
    state = load(file=config).config.state_dir
    return replace(here, state=state) if state else here


class Connected:
    """The base of operators that call models. A client that was given is the giver's to close."""

    def __init__(self, client: ModelClient | None) -> None:
        self._given = client
        self._own: ModelClient | None = None

    @property
    def client(self) -> ModelClient:
        """The client, from `setup` to `close`."""
        client = self._own if self._given is None else self._given
        if client is None:
            raise UsageError(f"{type(self).__name__} is used outside of a flow: call setup() first.")
        return client

    async def setup(self) -> None:
        """Connect, unless a client was given."""
        if self._given is None:
            self._own = connect()

    async def close(self) -> None:
        """Close what `setup` opened."""
        own, self._own = self._own, None
        if own is not None:
            await own.close()
