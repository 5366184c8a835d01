"""What the tests of the small model share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads of torch that wait for each other at every product take minutes beside other tests.

    Of the whole module: what its other fixtures compute runs so too, as `usefixtures` comes before them.
    """
    import torch  # only where it is asked for: it takes seconds

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer of few facts."""
    from tools.nano.tokenizer import train

    return train(tmp_path_factory.mktemp("docs"), facts=300)
