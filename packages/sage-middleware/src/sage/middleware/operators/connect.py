"""How an operator comes to its model client: given in Python, or that of the running stack."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Final

from sage.common.errors import UsageError
from sage.common.paths import SagePaths
from sage.middleware.client import ModelClient

__all__ = ["Connected", "connect", "serving", "stack_paths"]

_HERE: Final[ContextVar[ModelClient | None]] = ContextVar("sage_model_client", default=None)


@contextmanager
def serving(client: ModelClient) -> Iterator[None]:
    """Operators that are set up in here call models by `client`, unless they were given another."""
    token = _HERE.set(client)
    try:
        yield
    finally:
        _HERE.reset(token)


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
    """The base of operators that call models. A client that was given is the giver's to close.

    Without one it is that of the process which serves them, see `serving`, else that of the running stack.
    """

    def __init__(self, client: ModelClient | None) -> None:
        self._given = client
        self._used = client
        self._own: ModelClient | None = None

    @property
    def client(self) -> ModelClient:
        """The client, from `setup` to `close`."""
        if self._used is None:
            raise UsageError(f"{type(self).__name__} is used outside of a flow: call setup() first.")
        return self._used

    async def setup(self) -> None:
        """Connect, unless there is a client."""
        self._used = self._given or _HERE.get()
        if self._used is None:
            self._used = self._own = connect()

    async def close(self) -> None:
        """Close what `setup` opened."""
        own, self._own, self._used = self._own, None, self._given
        if own is not None:
            await own.close()
