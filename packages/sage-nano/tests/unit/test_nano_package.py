"""What the package holds: one model folder, of the size that it may have, that programs load as a Llama."""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path

import sage.nano

MODEL = Path(sage.nano.__path__[0]) / "model"


def test_it_is_small() -> None:
    with (MODEL / "model.safetensors").open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    assert sum(prod(one["shape"]) for one in header.values()) < 5_000_000
    assert {one["dtype"] for one in header.values()} == {"BF16"}
    assert sum(file.stat().st_size for file in MODEL.iterdir()) < 12_000_000


def test_it_says_that_it_is_a_llama() -> None:
    config = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"]
    assert not (MODEL / "generation_config.json").read_text(encoding="utf-8").count("temperature")
