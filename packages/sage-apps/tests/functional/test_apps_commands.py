import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

RUN = (
    "import sys; from importlib.metadata import entry_points as e; import typer;"
    "from sage.common.errors import SageError;"
    "point = next(p for p in e(group='sage.commands') if p.name == sys.argv[1]).load();"
    "app = point if isinstance(point, typer.Typer) else typer.Typer();"
    "point is app or app.command()(point);\n"
    "try: app(sys.argv[2:])\n"
    "except SageError as x: print(f'error: {x}', file=sys.stderr); sys.exit(x.exit_code)"
)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SAGE_")}
    return clean | {"SAGE_HOME": str(tmp_path / "home")}


def sage(env: dict[str, str], *args: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", RUN, *args]
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def test_apps_are_listed(env: dict[str, str]) -> None:
    assert "docs-qa" in sage(env, "app", "ls").stdout
    assert json.loads(sage(env, "app", "ls", "--json").stdout)[0]["name"] == "docs-qa"


def test_a_missing_docs_folder_is_code_5_and_starts_nothing(env: dict[str, str], tmp_path: Path) -> None:
    done = sage(env, "quickstart", "--docs", str(tmp_path / "absent"))
    assert done.returncode == 5
    assert done.stderr.startswith("error: The documents folder")
    assert not (tmp_path / "home").exists()


def test_a_missing_model_folder_is_code_5(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("text")
    done = sage(env, "quickstart", "--docs", str(tmp_path), "--model", str(tmp_path / "no-model"))
    assert done.returncode == 5
    assert "no-model" in done.stderr


def test_an_interpreter_that_is_not_there_is_code_5(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("text")
    given = ("--docs", str(tmp_path), "--engine", "vllm", "--engine-python", str(tmp_path / "python"))
    done = sage(env, "quickstart", *given)
    assert done.returncode == 5
    assert "no Python interpreter at" in done.stderr


def test_an_unknown_app_and_no_stack_have_their_codes(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("text")
    ask = ["--docs", str(tmp_path), "--question", "x"]
    unknown = sage(env, "app", "run", "nothing", *ask)
    assert (unknown.returncode, "there are: docs-qa" in unknown.stderr) == (5, True)
    assert sage(env, "app", "run", "docs-qa", *ask).returncode == 3
    needs = sage(env | {"SAGE_BASE_URL": "http://127.0.0.1:1/v1"}, "app", "run", "docs-qa", *ask)
    assert (needs.returncode, "--embed-model" in needs.stderr) == (2, True)


@pytest.mark.parametrize("module", ["sage.apps.cli", "sage.apps.quickstart"])
def test_help_loads_nothing_heavy(module: str) -> None:
    heavy = "{'aiohttp', 'openai', 'pydantic', 'numpy', 'rich.progress', 'torch'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_quickstart_really_works_and_leaves_nothing(env: dict[str, str], tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "ports.md").write_text("# Ports\n\nThe gateway listens on port 8888 of this machine.\n")
    (docs / "layers.md").write_text("# Layers\n\nThere are six layers, and no layer imports upward.\n")
    ask = ["--question", "Where does the gateway listen?", "--question", "How many layers are there?"]
    done = sage(env, "quickstart", "--docs", str(docs), "--json", *ask, timeout=280)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert [a["extract"]["source"] for a in outcome["answers"]] == ["ports.md", "layers.md"]
    assert [(a["model"], a["random_weights"]) for a in outcome["answers"]] == [("sage-nano", False)] * 2
    first, second = (a["answer"] for a in outcome["answers"])
    assert first
    assert second.startswith("There are six layers")
    assert second.endswith(("[1]", "[2]"))
    assert "I am SAGE Nano" in outcome["openai"]["chat"]
    assert outcome["openai"]["embedding_dimensions"] == 384
    classes = {row["request_class"] for row in outcome["served"]}
    assert "chat" in classes
    assert classes & {"embed_interactive", "embed_bulk"}
    assert not list((tmp_path / "home" / "state").glob("quickstart-*"))
    home = str(tmp_path / "home")
    left = [p.pid for p in psutil.process_iter(["cmdline"]) if home in " ".join(p.info["cmdline"] or ())]
    assert left == []
