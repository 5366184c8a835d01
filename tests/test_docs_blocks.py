"""Every fenced block of the documentation is true: executed, or validated by the loader a user would meet.

The info string says how. `bash` and `python` run in order, page by page, in one folder and one shell
environment; `yaml` is loaded as a pipeline, a workload or a configuration and kept under its `title`; `json`
is parsed. `no-run reason="…"` excuses a block, `exit="0|1"` allows other exit codes. Pages meet a stack that
already runs, but for README.md, which starts and stops its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from sage.common.config import SageConfig

ROOT = Path(__file__).resolve().parents[1]
OWN_STACK = ROOT / "README.md"
PAGES = [OWN_STACK, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = ("bash", "python")
CHECKED = ("yaml", "json")
FENCE = re.compile(r"^```(?P<lang>\w*)[ \t]*(?P<info>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    lang: str
    info: str
    body: str

    def option(self, name: str) -> str:
        found = re.search(rf'\b{name}="([^"]*)"', self.info)
        return found[1] if found else ""

    @property
    def runs(self) -> bool:
        return self.lang in RUN and "no-run" not in self.info

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def read(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, m.start()) + 1, m["lang"], m["info"], m["body"])
        for m in FENCE.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in read(page)]
RUNNABLE = [page for page in PAGES if any(block.runs for block in read(page))]


def name(value: object) -> str:
    return value.where if isinstance(value, Block) else str(Path(str(value)).relative_to(ROOT))


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.lang in CHECKED], ids=name)
def test_yaml_and_json_are_what_the_loaders_take(block: Block, tmp_path: Path) -> None:
    if block.lang == "json":
        json.loads(block.body)
        return
    from sage.common.settings import load
    from sage.kernel import parse_yaml

    if re.search(r"^steps:", block.body, re.MULTILINE):
        parse_yaml(block.body, where=block.where).check()
        return
    if re.search(r"^streams:", block.body, re.MULTILINE):
        from sage.middleware.control_plane.simulator.workloads import read_workload

        (tmp_path / "load.yaml").write_text(block.body)
        read_workload(tmp_path / "load.yaml")
        return
    file = tmp_path / "sage.yaml"
    file.write_text(block.body)
    load(file=file, cwd=tmp_path, env={})


@pytest.mark.parametrize("block", BLOCKS, ids=name)
def test_a_block_says_what_it_is_and_why_it_is_not_run(block: Block) -> None:
    assert block.lang in (*RUN, *CHECKED, "text", "mermaid"), f"{block.where}: say what this is"
    assert "no-run" not in block.info or len(block.option("reason")) > 10, f"{block.where}: say why"


def test_few_blocks_are_excused() -> None:
    excused = [block.where for block in BLOCKS if "no-run" in block.info]
    assert len(excused) <= 8, excused


def environment(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SAGE_", "OPENAI_"))}
    scripts = str(Path(sys.executable).parent)
    return {**kept, "SAGE_HOME": str(home), "PATH": f"{scripts}:{kept['PATH']}", "HF_HUB_OFFLINE": "1"}


def sage(*args: str, env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("sage")), *args]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a shell in which `export $(sage up)` was typed."""
    home = tmp_path_factory.mktemp("home")
    env = environment(home)
    up = sage("up", env=env, cwd=home)
    try:
        assert up.returncode == 0, up.stderr
        yield env | dict(line.split("=", 1) for line in up.stdout.split())
    finally:
        sage("down", env=env, cwd=home)


def run(block: Block, env: dict[str, str], cwd: Path) -> dict[str, str]:
    """Run one block; the environment that a shell has afterwards goes on to the next one."""
    if block.lang == "python":
        command = [sys.executable, "-c", block.body]
    else:
        command = ["bash", "-euo", "pipefail", "-c", f"{block.body}\nenv -0 > .environment"]
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    allowed = [int(code) for code in (block.option("exit") or "0").split("|")]
    assert done.returncode in allowed, f"{block.where}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    after = cwd / ".environment"
    if block.lang == "python" or done.returncode or not after.exists():
        return env
    return dict(pair.split("=", 1) for pair in after.read_text().split("\0") if pair)


def run_page(page: Path, env: dict[str, str], cwd: Path) -> None:
    (cwd / "docs").symlink_to(ROOT / "docs")
    (cwd / ".venv" / "bin").mkdir(parents=True)
    (cwd / ".venv" / "bin" / "activate").touch()  # the interpreter of this test is the environment already
    for block in read(page):
        if title := block.option("title"):
            (cwd / title).write_text(block.body)
        elif block.runs:
            env = run(block, env, cwd)


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", [page for page in RUNNABLE if page != OWN_STACK], ids=name)
def test_a_page_does_what_it_says(page: Path, stack: dict[str, str], tmp_path: Path) -> None:
    run_page(page, stack, tmp_path)


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_readme_works_from_its_first_line_to_its_last(tmp_path: Path) -> None:
    env = environment(tmp_path / "home")
    work = tmp_path / "work"
    work.mkdir()
    try:
        run_page(OWN_STACK, env, work)
    finally:
        sage("down", env=env, cwd=work)


# ---- what the pages claim ----------------------------------------------------------------------


def settings() -> Iterator[tuple[str, str]]:
    """Every key of the schema with its default as JSON."""

    def walk(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
        for key, field in model.model_fields.items():
            inner = field.annotation
            item = next(iter(get_args(inner)), None)
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from walk(inner, f"{prefix}{key}.")
            elif isinstance(item, type) and issubclass(item, BaseModel):
                yield from walk(item, f"{prefix}{key}[].")
            elif field.is_required():
                yield prefix + key, "required"
            else:
                yield prefix + key, f"`{json.dumps(field.get_default(), default=list)}`"

    yield from walk(SageConfig, "")


def test_the_configuration_page_has_every_key_and_its_default() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    documented = re.findall(r"^\| `([a-z_.\[\]]+)` \| (.+?) \| .", text, re.MULTILINE)
    assert documented == list(settings())


def test_the_api_page_has_every_route() -> None:
    from sage.gateway.routes import ROUTES

    text = (ROOT / "docs" / "api.md").read_text()
    for entry in ROUTES:
        shown = f"{entry.method} {entry.path.replace(':path', '')}"
        assert f"`{shown}" in text, f"docs/api.md does not name {shown}"


def test_the_commands_page_has_every_command() -> None:
    help_text = sage("--help", env=environment(ROOT), cwd=ROOT).stdout
    commands = re.findall(r"^  (\w+) {2,}\S", help_text.partition("Commands:")[2], re.MULTILINE)
    text = (ROOT / "docs" / "cli.md").read_text()
    assert len(commands) > 10
    assert [c for c in commands if f"`sage {c}" not in text] == []


def test_every_package_has_a_page_and_every_page_is_in_the_navigation() -> None:
    from ruamel.yaml import YAML

    nav = json.dumps(YAML(typ="safe").load(ROOT / "mkdocs.yml")["nav"])
    packages = {folder.name for folder in (ROOT / "packages").iterdir() if folder.is_dir()}
    pages = {file.stem for file in (ROOT / "docs" / "packages").glob("*.md")}
    assert pages == packages
    for file in (ROOT / "docs").rglob("*.md"):
        assert f'"{file.relative_to(ROOT / "docs").as_posix()}"' in nav


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_is_short() -> None:
    assert len(OWN_STACK.read_text().splitlines()) <= 150


def test_the_control_plane_page_has_every_metric_class_header_and_refusal() -> None:
    from sage.common import telemetry
    from sage.common.api import Decision
    from sage.middleware.control_plane.wishes import WISHES

    text = (ROOT / "docs" / "control-plane.md").read_text()
    documented = re.findall(
        r"^\| `((?:sage|gen_ai)_\w+)` \| (\w+) \| (\S+) \| (.+?) \| (.+) \|$", text, re.MULTILINE
    )
    assert documented == [
        (m.name, m.kind, m.unit or "-", ", ".join(f"`{label}`" for label in m.labels) or "-", m.help)
        for m in telemetry.METRICS
    ]
    first_cells = set(re.findall(r"^\| (`[^|]+`) \|", text, re.MULTILINE))
    named = {name for cell in first_cells for name in re.findall(r"`([^`]+)`", cell)}
    wanted = {*telemetry.RequestClass, *telemetry.ShedReason, *WISHES, *Decision.model_fields}
    assert wanted - named == {"request_id", "at"}
