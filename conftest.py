"""What holds for every test: no network beyond loopback, no download, a home of its own."""

from __future__ import annotations

import ipaddress
import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}

# What a caller of the tests may choose.
_KEPT = ("SAGE_DATA_DIR", "SAGE_KAFKA", "SAGE_NATIVE", "SAGE_VLLM_PYTHON")


class NetworkUseError(RuntimeError):
    """A test tried to leave this machine."""


def _is_local(host: str) -> bool:
    if host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False


def _fuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook: sees every connection and look-up of this process, whatever library makes it."""
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else ""  # a str or bytes is a Unix socket
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    name = host.decode() if isinstance(host, bytes) else str(host or "")
    if not _is_local(name):
        raise NetworkUseError(f"A test tried to reach {name}; tests may use loopback only.")


def _tiktoken_encodings() -> Path | None:
    """LangChain's client wants tiktoken's encoding file; litellm carries it."""
    found = find_spec("litellm")
    for root in (found.submodule_search_locations or ()) if found else ():
        for folder in ("litellm_core_utils/tokenizers", "llms/tokenizers"):
            if (Path(root) / folder).is_dir():
                return Path(root) / folder
    return None


def pytest_configure() -> None:
    """Before any test module is imported: libraries read these variables at import."""
    os.environ.update(_OFFLINE)
    encodings = _tiktoken_encodings()
    if encodings is not None:
        os.environ["TIKTOKEN_CACHE_DIR"] = str(encodings)
    for name in [name for name in os.environ if name.startswith("SAGE_") and name not in _KEPT]:
        del os.environ[name]
    sys.addaudithook(_fuse)
    # A deadline of a generated case would be a timed assertion: on a busy machine it fails at random.
    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def sage_home() -> Any:
    """Every process that a test starts keeps its state below this folder."""
    with tempfile.TemporaryDirectory(prefix="sage-tests-") as home:
        os.environ["SAGE_HOME"] = home
        yield Path(home)
        del os.environ["SAGE_HOME"]
