"""What models of random weights are made of: folders that appear whole, a tokenizer, a file of weights.

Nothing here loads torch or transformers: such a model is written file by file.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sage.common.errors import ConfigError, UnavailableError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["MARK", "VOCABULARY", "made_once", "save_weights", "train_tokenizer", "write_json"]

MARK: Final = "sage_random_weights"  # in config.json
VOCABULARY: Final = 1024

_SUBJECTS = (
    "The engine",
    "A request",
    "Each tenant",
    "This queue",
    "One gateway",
    "The scheduler",
    "The index",
)
_VERBS = ("serves", "measures", "answers", "places", "streams", "embeds", "retrieves", "reads", "explains")
_OBJECTS = (
    *(
        "the next token",
        "a batch of texts",
        "every answer",
        "its deadline",
        "the shortest prompt",
        "a vector",
    ),
    *(
        "the pipeline",
        "its own memory",
        "a list of numbers 0123456789",
        '"a quoted word"',
        "{'key': [1, 2.5]}",
    ),
)
_ENDINGS = ("before the others.", "when it is free!", "on this machine;", "again, and again?", "in order:\n")


def made_once(target: Path, write: Callable[[Path], object]) -> Path:
    """The folder `target`, made by `write` if it is not there; safe when two processes race.

    Raises UnavailableError when it cannot be written (nothing is left then) and ConfigError when the
    libraries for it are not installed.
    """
    if (target / "config.json").is_file():
        return target
    _require_writers()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=target.parent))
    except OSError as error:
        raise UnavailableError(
            f"Cannot write the random-weight model under {target.parent.parent}: {error}."
        ) from error
    try:
        write(draft)
        draft.rename(target)
    except OSError as error:
        # The other process was first: rename refuses to replace a folder that is not empty.
        if not (target / "config.json").is_file():
            raise UnavailableError(f"Cannot write the random-weight model to {target}: {error}.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _require_writers() -> None:
    missing = [
        name for name in ("numpy", "safetensors", "tokenizers") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ConfigError(
            f"The random-weight model cannot be made: {', '.join(missing)} is not installed.",
            hint="Install sage-stack[cpu], or name a model folder.",
        )


@contextmanager
def _writing(file: Path) -> Iterator[None]:
    """Errors of a library that writes `file` as what they are: the Rust ones know no OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{file.name}: {error}") from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a settings file."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def train_tokenizer(
    folder: Path, special: tuple[str, ...], finish: Callable[[Tokenizer], object]
) -> Tokenizer:
    """Byte-level BPE of `VOCABULARY` tokens, the same on every machine, saved to `folder`.

    The ids of `special` are their places. `finish` may add to it before it is saved.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences(), trainer)
    finish(tokenizer)
    with _writing(folder / "tokenizer.json"):
        tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def save_weights(folder: Path, weights: dict[str, Any]) -> None:
    """Write the arrays by their names."""
    from safetensors.numpy import save_file

    with _writing(folder / "model.safetensors"):
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _sentences() -> list[str]:
    """Text to learn merges from; written here so that every machine gets the same tokenizer."""
    return [f"{s} {v} {o} {e}" for s in _SUBJECTS for v in _VERBS for o in _OBJECTS for e in _ENDINGS]
