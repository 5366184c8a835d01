"""Finding models, and making the random-weight one."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sage.common.errors import ConfigError, NotFoundError, UnavailableError
from sage.middleware.models import (
    MINILM,
    NANO,
    RANDOM,
    RANDOM_RERANKER,
    architecture,
    minilm_folder,
    nano_folder,
    resolve,
    served_name,
)
from sage.middleware.random_models import random_model, random_reranker


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def digest(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_random_model_is_made_once(cache: Path) -> None:
    folder = random_model(cache)
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert random_model(cache) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    assert 4_000_000 < (folder / "model.safetensors").stat().st_size < 20_000_000
    assert [each.name for each in folder.parent.iterdir()] == [folder.name]  # no draft is left


def test_random_model_is_the_same_everywhere(cache: Path, tmp_path: Path) -> None:
    assert digest(random_model(cache)) == digest(random_model(tmp_path))


def test_two_processes_may_race(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from sage.middleware.random_models import random_model;"
        f"print(random_model(Path({str(tmp_path)!r})))"
    )
    with ThreadPoolExecutor() as pool:
        done = list(
            pool.map(lambda _: subprocess.run([sys.executable, "-c", code], capture_output=True), range(3))
        )
    assert {each.returncode for each in done} == {0}
    assert len({each.stdout for each in done}) == 1
    assert len(list((tmp_path / "models").iterdir())) == 1


def test_making_it_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from sage.middleware.random_models import random_model;"
        f"random_model(Path({str(tmp_path)!r}));"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_random_reranker_is_made_once_the_same_everywhere_and_is_labelled(
    cache: Path, tmp_path: Path
) -> None:
    folder = random_reranker(cache)
    assert random_reranker(cache) == folder
    assert digest(folder) == digest(random_reranker(tmp_path))
    assert architecture(folder) == "BertForSequenceClassification"
    assert (folder / "model.safetensors").stat().st_size < 2_000_000
    by_name = resolve(RANDOM_RERANKER, cache)
    assert (by_name.served_as, by_name.random_weights) == ("sage-random-reranker", True)
    assert served_name(RANDOM_RERANKER) == by_name.served_as
    assert resolve(str(folder), cache).random_weights  # a folder is known by its mark


def test_a_folder_that_names_no_architecture(tmp_path: Path) -> None:
    for config in ("{}", '{"architectures": null}', '{"architectures": []}', '{"architectures": "Bert"}'):
        (tmp_path / "config.json").write_text(config)
        assert architecture(tmp_path) == ""


def test_its_tokenizer_keeps_text(cache: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(random_model(cache) / "tokenizer.json"))
    text = "Größe 42, naïve\n\tand 日本語 🙂"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert len(tokenizer.encode("The engine serves the next token").ids) < 12


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(UnavailableError, match="Cannot write the random-weight model"):
        random_model(tmp_path)


FULL = """
import resource, signal, sys
from pathlib import Path
from sage.common.errors import SageError
from sage.middleware.random_models import random_model

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
try:
    random_model(Path(sys.argv[1]))
except SageError as error:
    print(error.code, error)
"""


@pytest.mark.parametrize(("bytes_left", "file"), [(100, "tokenizer.json"), (100_000, "model.safetensors")])
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, bytes_left: int, file: str) -> None:
    """The writers are Rust: their errors are not OSError."""
    argv = [sys.executable, "-c", FULL, str(tmp_path), str(bytes_left)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.startswith(f"engine_unavailable Cannot write the random-weight model to {tmp_path}/")
    assert f"{file}: " in done.stdout
    assert "File too large" in done.stdout
    assert list((tmp_path / "models").iterdir()) == []


def test_without_the_libraries_that_write_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tokenizers", "safetensors"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"safetensors, tokenizers is not installed.*sage-stack\[cpu\]"):
        random_model(tmp_path)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("raw", "says"),
    [(b"{", "is not JSON"), (b"\xff", "is not JSON"), (b"[]", "holds a list"), (b"", "is not JSON")],
)
def test_a_broken_config_names_its_file(tmp_path: Path, raw: bytes, says: str) -> None:
    (tmp_path / "config.json").write_bytes(raw)
    with pytest.raises(ConfigError, match=f"config.json {says}"):
        resolve(str(tmp_path), tmp_path)


def test_resolve_random(cache: Path) -> None:
    source = resolve(RANDOM, cache)
    assert source.random_weights
    assert source.served_as == served_name(RANDOM) == "sage-random-llama"
    again = resolve(source.path_or_id, cache)  # the folder itself is known for what it is
    assert again.random_weights


def test_resolve_nano(tmp_path: Path) -> None:
    source = resolve(NANO, tmp_path)
    assert Path(source.path_or_id) == nano_folder()
    assert source.served_as == served_name(NANO) == "sage-nano"
    assert not source.random_weights
    assert architecture(nano_folder()) == "LlamaForCausalLM"
    assert not list(tmp_path.iterdir()), "nothing is made"


def test_nano_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotFoundError, match="The model sage-nano is not installed") as caught:
        resolve(NANO, tmp_path)
    assert "pip install sage-nano" in str(caught.value.hint)


@pytest.mark.parametrize("name", [MINILM, f"sentence-transformers/{MINILM}"])
def test_resolve_minilm(name: str, tmp_path: Path) -> None:
    source = resolve(name, tmp_path)
    assert Path(source.path_or_id) == minilm_folder()
    assert source.served_as == MINILM
    assert source.is_folder
    assert not source.random_weights


def test_resolve_hub_name(tmp_path: Path) -> None:
    source = resolve("owner/some-model", tmp_path)
    assert (source.path_or_id, source.served_as, source.is_folder) == (
        "owner/some-model",
        "some-model",
        False,
    )


def test_resolve_folder(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    source = resolve(f"{folder}/", tmp_path)
    assert (source.path_or_id, source.served_as, source.random_weights) == (str(folder), "mine", False)


def test_resolve_says_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        resolve(str(tmp_path / "nowhere"), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotFoundError, match="is a file"):
        resolve(str(tmp_path / "file"), tmp_path)
    folder = tmp_path / "owner" / "model"
    folder.mkdir(parents=True)
    with pytest.raises(NotFoundError, match="it holds nothing"):
        resolve(str(folder), tmp_path)
    (folder / "weights.bin").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFoundError, match=r"it holds weights\.bin.*hides the hub's model"):
        resolve("owner/model", tmp_path)
