"""What the serving process sets up, and what it tells callers without a key."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from sage.common import errors
from sage.common.api import EngineStatus
from sage.common.errors import ConfigError, SageError
from sage.gateway import edge, limits
from sage.gateway.keys import new_default_key
from sage.gateway.main import configure_logs, not_ready

API_PAGE = Path(__file__).parents[4] / "docs" / "api.md"
# Faults of commands and of the configuration; no answer of a listener carries them.
NEVER_SENT = {errors.UsageError, errors.ConfigError}


@pytest.fixture
def own_logging() -> Iterator[None]:
    root, uvicorn = logging.getLogger(), logging.getLogger("uvicorn")
    before = root.handlers[:], root.level, uvicorn.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    uvicorn.setLevel(before[2])
    structlog.reset_defaults()


@pytest.mark.usefixtures("own_logging")
@pytest.mark.parametrize("style", ["auto", "json", "console"])
def test_a_key_in_a_log_record_is_redacted(style: str, capsys: pytest.CaptureFixture[str]) -> None:
    key = new_default_key()
    configure_logs({"SAGE_LOG_STYLE": style})
    logging.getLogger("sage.gateway").info("asked with %s", key)
    try:
        raise ValueError(f"refused: Bearer {key}")
    except ValueError:
        logging.getLogger("elsewhere").exception("failed")
    said = capsys.readouterr().err
    assert "[redacted]" in said
    assert key.partition(".")[2] not in said
    if style != "console":
        assert json.loads(said.splitlines()[0])["level"] == "info"


@pytest.mark.usefixtures("own_logging")
def test_the_level_comes_from_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs({"SAGE_LOG_LEVEL": "WARNING"})
    logging.getLogger("sage.gateway").info("quiet")
    assert not capsys.readouterr().err


@pytest.mark.parametrize("name", ["SAGE_LOG_LEVEL", "SAGE_LOG_STYLE"])
def test_an_unknown_choice_names_the_valid_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=f"env {name}: found 'loud', valid is one of .*, "):
        configure_logs({name: "loud"})


def engine(**fields: Any) -> EngineStatus:
    usual = {"name": "llm-0", "kind": "vllm", "model": "m", "url": "", "running": 0, "max_running": 1}
    counts = {"task": "generate", "served": 0, "failed": 0, "random_weights": False}
    return EngineStatus(**{**usual, **counts, **fields})


def test_what_is_missing_names_the_state_and_no_detail() -> None:
    secret = "exited with code 1; last log line: the folder of models is gone"
    engines = [
        engine(name=state, state=state, detail=secret)
        for state in ("ready", "stopped", "degraded", "failed", "starting")
    ]
    assert not_ready(engines) == (
        "engine degraded is degraded",
        "engine failed is failed",
        "engine starting is starting",
    )


def test_the_api_page_has_every_error_that_is_sent() -> None:
    kinds = [
        kind
        for module in (errors, edge, limits)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, SageError) and kind not in NEVER_SENT
    ]
    sent = {(kind.status, kind.code) for kind in kinds}
    documented = set()
    table = API_PAGE.read_text().partition("## Errors")[2].partition("\n## ")[0]
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 5 and cells[1].isdigit():
            documented |= {(int(cells[1]), code.strip(" `")) for code in cells[2].split(",")}
    assert documented == sent
