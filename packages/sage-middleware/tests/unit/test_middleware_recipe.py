"""What `sage up` was told, and the configuration that it comes to: at the start, and again."""

from __future__ import annotations

from pathlib import Path

import pytest

from sage.common.config import SageConfig
from sage.common.errors import ConfigError, UsageError
from sage.middleware.recipe import Recipe

ENGINE = "engines: [{name: e, kind: openai, model: m, url: 'http://127.0.0.1:1'}]\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAGE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def quick() -> Recipe:
    return Recipe(model="owner/name", engine="vllm")


def test_it_survives_a_command_line(here: Path) -> None:
    recipe = Recipe(Path("sage.yaml"), "owner/name", "vllm", Path("bin/python"))
    again = Recipe.parse(recipe.text())
    assert again == Recipe(here / "sage.yaml", "owner/name", "vllm", here / "bin" / "python")
    assert Recipe.parse(Recipe().text()) == Recipe()


def test_a_configuration_with_engines_is_taken_as_it_is(here: Path) -> None:
    (here / "sage.yaml").write_text(ENGINE + f"state_dir: {here}/state\n")
    settings, where = Recipe().settings()
    assert [one.name for one in settings.engines] == ["e"]
    assert where.state == here / "state"
    with pytest.raises(UsageError, match="--engine and --engine-python say nothing about them"):
        Recipe(engine="vllm").settings()


def test_without_engines_it_makes_its_own() -> None:
    settings, _ = quick().settings()
    assert [(one.name, one.kind) for one in settings.engines] == [("llm-0", "vllm"), ("embed-0", "embedding")]


def test_again_it_keeps_the_ports_that_it_chose_and_reads_the_rest_anew(here: Path) -> None:
    running, _ = quick().settings()
    running = running.model_copy(update={"ports": running.ports.model_copy(update={"gateway": 0})})
    (here / "sage.yaml").write_text("control_plane: {policy: fifo}\nports: {admin: 1234}\n")
    loaded = quick().again(running)
    assert loaded.config.control_plane.policy == "fifo"
    assert (loaded.config.ports.gateway, loaded.config.ports.admin) == (0, 1234)
    assert loaded.config.ports.health == running.ports.health
    assert loaded.config.engines == running.engines
    assert loaded.origin["control_plane.policy"] == f"{here}/sage.yaml:1"


def test_the_state_directory_that_it_found_by_itself_is_no_change(here: Path) -> None:
    (here / "sage.yaml").write_text(ENGINE)
    running = SageConfig(state_dir=here / "home" / "state")
    assert Recipe().again(running).config.state_dir == running.state_dir
    (here / "sage.yaml").write_text(ENGINE + f"state_dir: {here}/other\n")
    assert Recipe().again(running).config.state_dir == here / "other"


def test_a_mistake_is_told(here: Path) -> None:
    (here / "sage.yaml").write_text("gatewai: {}\n")
    with pytest.raises(ConfigError, match="unknown key"):
        Recipe().again(SageConfig())
