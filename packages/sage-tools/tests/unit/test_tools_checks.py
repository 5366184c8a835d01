"""Each check finds what it is for, and leaves alone what is right."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from sage.common.errors import ConflictError, NotFoundError, UsageError
from sage.tools import packaging, safety, sizes, words
from sage.tools.lint import CHECKS, run
from sage.tools.scaffold import new_package
from sage.tools.tree import Finding, Tree, find_root


def tree(root: Path, files: dict[str, str]) -> Tree:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return Tree.of(root)


def member(name: str, version: str = "1.2.3", requires: str = "") -> dict[str, str]:
    text = (
        f'[build-system]\nrequires = ["hatchling>=1.27"]\n'
        f'[project]\nname = "{name}"\nversion = "{version}"\ndependencies = [{requires}]\n'
    )
    return {f"packages/{name}/pyproject.toml": text}


def messages(findings: list[Finding]) -> list[str]:
    return [finding.message for finding in findings]


# ---- namespace, pins, lock -------------------------------------------------------------------------------


def test_a_shared_namespace_has_no_init(tmp_path: Path) -> None:
    files = {
        f"packages/sage-a/src/sage/{name}": "" for name in ("__init__.py", "a/__init__.py", "a/py.typed")
    }
    found = packaging.check_namespace(tree(tmp_path, files))
    assert [str(f.path) for f in found] == ["packages/sage-a/src/sage/__init__.py"]


def test_a_portion_is_typed_and_has_one_owner(tmp_path: Path) -> None:
    files = {"packages/sage-a/src/sage/x/__init__.py": "", "packages/sage-b/src/sage/x/__init__.py": ""}
    found = messages(packaging.check_namespace(tree(tmp_path, files)))
    assert found.count("has no py.typed") == 2
    assert found.count("two packages own this portion") == 2


@pytest.mark.parametrize("pin", ["~=1.2.0", "~=1.2.3", "[cpu]~=1.2.0", "~=1.2.0; python_version > '3'"])
def test_a_sibling_at_the_same_minor_is_right(tmp_path: Path, pin: str) -> None:
    files = member("sage-a") | member("sage-b", requires=f'"sage-a{pin}", "numpy>=2"')
    assert packaging.check_pins(tree(tmp_path, files)) == []


@pytest.mark.parametrize("pin", ["", ">=1.2", "==1.2.3", "~=1.2", "~=1.1.0", "~=1.2.0,!=1.2.1"])
def test_any_other_pin_of_a_sibling_is_wrong(tmp_path: Path, pin: str) -> None:
    files = member("sage-a") | member("sage-b", requires=f'"sage-a{pin}"')
    assert "~=1.2.0" in messages(packaging.check_pins(tree(tmp_path, files)))[0]


def test_one_release_has_one_minor_and_folders_their_names(tmp_path: Path) -> None:
    files = member("sage-a") | member("sage-b") | member("sage-c", version="1.3.0")
    files["packages/sage-d/pyproject.toml"] = files["packages/sage-a/pyproject.toml"]
    found = messages(packaging.check_pins(tree(tmp_path, files)))
    assert "is of 1.3, the others of 1.2" in found
    assert "is named sage-a, its folder sage-d" in found


def test_a_complete_lock_is_right(tmp_path: Path) -> None:
    files = member("sage-a", requires='"ruamel.yaml>=0.18"') | {
        "requirements/cpu.txt": "# made\nhatchling==1.27.0\nnvidia-ml-py==13.0\nruamel-yaml==0.18.1\n"
    }
    assert packaging.check_lock(tree(tmp_path, files)) == []


def test_a_lock_is_exact_complete_and_free_of_cuda(tmp_path: Path) -> None:
    lock = "hatchling>=1.27\nnvidia-cublas-cu12==12.4\ntriton==3.0\ncuda-bindings==12.9\n"
    files = member("sage-a", requires='"numpy>=2"') | {"requirements/cpu.txt": lock}
    found = messages(packaging.check_lock(tree(tmp_path, files)))
    assert "`hatchling>=1.27` is not NAME==VERSION" in found
    assert [m for m in found if m.endswith("is of CUDA")] == [
        "cuda-bindings is of CUDA", "nvidia-cublas-cu12 is of CUDA", "triton is of CUDA",
    ]  # fmt: skip
    assert any(m.startswith("lacks numpy of sage-a") for m in found)


def test_a_missing_lock_is_found(tmp_path: Path) -> None:
    assert "is missing" in messages(packaging.check_lock(tree(tmp_path, member("sage-a"))))[0]


# ---- sizes -----------------------------------------------------------------------------------------------


def source(lines: int, name: str = "f") -> str:
    return f'def {name}():\n    """Doc\n    string."""\n' + "    x = 1\n" * lines


def test_files_over_the_aim_need_an_entry_and_over_the_bound_nothing_helps(tmp_path: Path) -> None:
    big, huge = "x = 1\n" * 401, "x = 1\n" * 601
    baseline = json.dumps({"files": {"b.py": 410, "c.py": 700}, "long_share": 0.02})
    files = {"a.py": big, "b.py": big, "c.py": huge, "tools/sizes.json": baseline}
    found = sizes.check(tree(tmp_path, files))
    assert [(f.path.name, f.message.split(";")[1][:12]) for f in found] == [
        ("a.py", " at most 400"), ("c.py", " at most 600"),
    ]  # fmt: skip


def test_a_docstring_does_not_count_and_the_61st_line_does(tmp_path: Path) -> None:
    found = sizes.check(tree(tmp_path, {"a.py": source(60) + source(1) * 60}))
    assert found == []
    found = sizes.check(tree(tmp_path, {"a.py": source(61) + source(1) * 60}))
    assert [f.message for f in found] == ["f has a body of 61 lines; at most 60"]


def test_the_share_of_long_functions_is_bound(tmp_path: Path) -> None:
    assert sizes.check(tree(tmp_path, {"a.py": source(51) + source(1) * 49})) == []
    found = sizes.check(tree(tmp_path, {"a.py": source(51) + source(1) * 48}))
    assert messages(found) == ["2.04% of functions are over 50 lines; at most 2.00%"]


def test_the_baseline_only_goes_down(tmp_path: Path) -> None:
    baseline = {"files": {"a.py": 450, "b.py": 410, "c.py": 500, "gone.py": 500}, "long_share": 0.015}
    files = {
        "a.py": "x = 1\n" * 500,
        "b.py": "x = 1\n" * 300,
        "c.py": "x = 1\n" * 420,
        "d.py": "x = 1\n" * 550,
        "tools/sizes.json": json.dumps(baseline),
    }
    lowered = sizes.lowered(tree(tmp_path, files))
    assert lowered["files"] == {"a.py": 450, "c.py": 420}
    assert lowered["long_share"] < 0.015


# ---- dangerous calls -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "eval('1')",
        "import builtins\nbuiltins.exec('1')",
        "import os\nos.system('ls')",
        "import pickle\npickle.loads(b'')",
        "from pickle import loads as read\nread(b'')",
        "import cloudpickle as cp\ncp.loads(b'')",
        "def f():\n    import marshal\n    return marshal.loads(b'')",
        "import yaml\nyaml.load(b'', Loader=yaml.SafeLoader)",
        "from ruamel.yaml import YAML\nYAML(typ='unsafe')",
        "import subprocess as sp\nsp.run('ls', shell=True)",
        "import subprocess\nflag = True\nsubprocess.Popen('ls', shell=flag)",
        "import torch\ntorch.load('f')",
        "import torch\ntorch.load('f', weights_only=False)",
        "import numpy as np\nnp.load('f', allow_pickle=True)",
    ],
)
def test_a_dangerous_call_is_found(code: str) -> None:
    assert len(list(safety.dangerous_calls(ast.parse(code)))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "import re\nre.compile('eval(')",
        "model.eval()",
        "import json\njson.loads('1')",
        "from ruamel.yaml import YAML\nYAML(typ='safe').load('a: 1')\nYAML().load('')",
        "import subprocess\nsubprocess.run(['ls'], shell=False)",
        "import torch\ntorch.load('f', weights_only=True)",
        "import numpy as np\nnp.load('f')\nnp.load('f', allow_pickle=False)",
        "text = 'eval(1)'",
        "(lambda: 1)()",
    ],
)
def test_a_harmless_call_is_left_alone(code: str) -> None:
    assert list(safety.dangerous_calls(ast.parse(code))) == []


def test_a_dangerous_call_in_a_test_counts_too(tmp_path: Path) -> None:
    found = safety.check(tree(tmp_path, {"packages/sage-a/tests/unit/test_a.py": "x = 1\neval('1')\n"}))
    assert [(f.path.name, f.line) for f in found] == [("test_a.py", 2)]


def test_the_state_of_checkpoints_is_read_in_one_place(tmp_path: Path) -> None:
    code = "import pickle\npickle.loads(b'')\n"
    folder = "packages/sage-kernel/src/sage/kernel/runtime"
    found = safety.check(
        tree(tmp_path, {f"{folder}/state.py": code + "eval('1')\n", f"{folder}/other.py": code})
    )
    assert [(f.path.name, f.line) for f in found] == [("other.py", 2), ("state.py", 3)]


# ---- words, names, __all__ -------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["home", "root", "work", "Users"])
def test_a_path_of_one_machine_is_found(tmp_path: Path, folder: str) -> None:
    found = words.check_words(tree(tmp_path, {"README.md": f"fine\nlook in /{folder}/me\n"}))
    assert [(f.line, f.message) for f in found] == [(2, "holds a path of one machine")]


@pytest.mark.parametrize(
    "text", ["https://a.org/home/x", "~/work/x", "./root/x", "$HOME/work/x", "a/home/b", "/tmp/x"]
)
def test_other_paths_are_left_alone(tmp_path: Path, text: str) -> None:
    assert words.check_words(tree(tmp_path, {"README.md": text})) == []


def test_a_package_index_is_the_users_to_name(tmp_path: Path) -> None:
    option = "--extra-" + "index-url"
    found = words.check_words(tree(tmp_path, {"a.sh": f"pip install {option} https://x\n"}))
    assert "package index" in found[0].message


def test_test_modules_have_one_name_in_the_repository(tmp_path: Path) -> None:
    files = {"packages/sage-a/tests/unit/test_x.py": "", "packages/sage-b/tests/unit/test_x.py": ""}
    found = words.check_test_names(tree(tmp_path, files | {"tests/test_y.py": ""}))
    assert messages(found) == ["shares its name with packages/sage-a/tests/unit/test_x.py"]


def test_public_modules_say_what_is_public(tmp_path: Path) -> None:
    home = "packages/sage-a/src/sage/a"
    files = {
        f"{home}/right.py": (
            "from b import c\n__all__ = ['c', 'D', 'f', 'g']\nD = 1\ndef f(): ...\nclass g: ...\n"
        ),
        f"{home}/typed.py": "__all__: list[str] = []\n",
        f"{home}/_private.py": "",
        f"{home}/none.py": "x = 1\n",
        f"{home}/wrong.py": "__all__ = ['x', 'y']\nx = 1\n",
        f"{home}/__main__.py": "",
    }
    found = {f.path.name: f.message for f in words.check_all(tree(tmp_path, files))}
    assert found == {"none.py": "has no __all__", "wrong.py": "__all__ names what is not there: y"}


# ---- the tree, and a new package -------------------------------------------------------------------------


def test_the_root_is_found_from_below(tmp_path: Path) -> None:
    below = tree(tmp_path, member("sage-a") | {"pyproject.toml": ""}).root / "packages" / "sage-a"
    assert find_root(below) == tmp_path
    with pytest.raises(NotFoundError, match="not inside a clone"):
        find_root(Path("/"))


def test_a_finding_shows_its_place() -> None:
    assert str(Finding(Path("a.py"), 3, "is wrong")) == "a.py:3: is wrong"
    assert str(Finding(Path("a.py"), 0, "is wrong")) == "a.py: is wrong"


def test_a_new_package_passes_every_check(tmp_path: Path) -> None:
    tree(tmp_path, member("sage-common", version="1.2.3") | {"pyproject.toml": ""})
    files = new_package(tmp_path, "search", "1.2.3", "Finds things.")
    assert all(file.is_file() for file in files)
    results = run(Tree.of(tmp_path))
    assert results.keys() == CHECKS.keys()
    assert {name for name, found in results.items() if found} == {"lock"}


@pytest.mark.parametrize("name", ["Search", "two-words", "2nd", "../up", ""])
def test_a_package_has_a_plain_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a package"):
        new_package(tmp_path, name, "1.2.3", "Finds things.")
    assert list(tmp_path.iterdir()) == []


def test_a_package_is_never_overwritten(tmp_path: Path) -> None:
    tree(tmp_path, member("sage-search"))
    with pytest.raises(ConflictError, match="is there already"):
        new_package(tmp_path, "search", "1.2.3", "Finds things.")
