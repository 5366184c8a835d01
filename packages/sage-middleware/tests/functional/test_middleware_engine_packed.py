"""Texts computed without padding have the vectors that sentence-transformers gives them itself."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling

from sage.middleware.engines.encoders import Model, load_model
from sage.middleware.engines.packed import PackedTransformer, can_pack, lay_out
from sage.middleware.engines.threads import Cores
from sage.middleware.models import minilm_folder

WORDS = ["engines", "of", "one", "device", "share", "a", "budget,", "need", "naïve", "北京", "x1", "!?"]


def texts(count: int, longest: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)  # noqa: S311 - texts, nothing secret
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, longest))) for _ in range(count)]


def minilm() -> SentenceTransformer:
    return SentenceTransformer(str(minilm_folder()), device="cpu").eval()


def alone(model: SentenceTransformer, given: list[str]) -> np.ndarray[Any, Any]:
    """The library's own vectors, each text by itself: no padding on that side either."""
    return np.stack([model.encode(text) for text in given])


def packed(model: SentenceTransformer, given: list[str]) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        found: np.ndarray[Any, Any] = PackedTransformer(model).forward(model.preprocess(given)).numpy()
    return found


def cosine(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """The least over all rows."""
    a, b = a.astype(float), b.astype(float)
    each = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return float(each.min())


@pytest.fixture(scope="module")
def reference() -> SentenceTransformer:
    return minilm()


@pytest.fixture(scope="module")
def served() -> Model:
    return load_model(str(minilm_folder()), Cores())


@pytest.mark.parametrize(("count", "longest"), [(1, 20), (3, 30), (64, 30), (5, 400)])
def test_vectors_and_tokens_are_the_library_s(
    reference: SentenceTransformer, served: Model, count: int, longest: int
) -> None:
    given = texts(count, longest, seed=count)
    vectors, tokens = served.encode(given, 1)
    assert not served.pads
    assert vectors.dtype == np.float32
    expected = alone(reference, given)
    assert cosine(vectors, expected) > 1 - 1e-6
    assert np.abs(vectors - expected).max() < 1e-5
    assert tokens == [int(reference.preprocess([text])["attention_mask"].sum()) for text in given]


def test_a_text_is_not_changed_by_what_it_is_computed_with(served: Model) -> None:
    one, _ = served.encode(["the text in question"], 1)
    among, _ = served.encode([*texts(9, 200), "the text in question", *texts(9, 10)], 1)
    assert cosine(one, among[9:10]) > 1 - 1e-6


@pytest.mark.parametrize("mode", ["cls", "max", "lasttoken", "weightedmean"])
def test_every_pooling_is_honoured(reference: SentenceTransformer, mode: str) -> None:
    model, expected = minilm(), minilm()
    for one in (model, expected):
        one[1] = Pooling(384, pooling_mode=mode)
    assert can_pack(model)
    given = texts(6, 40)
    vectors = packed(model, given)
    assert cosine(vectors, alone(expected, given)) > 1 - 1e-6
    assert cosine(vectors, alone(reference, given)) < 0.999  # it is another vector than that of the mean


def test_without_normalising_the_length_is_the_library_s() -> None:
    model, expected = minilm(), minilm()
    del model[2], expected[2]
    given = texts(6, 40)
    lengths = np.linalg.norm(packed(model, given), axis=1)
    assert lengths == pytest.approx(np.linalg.norm(alone(expected, given), axis=1), rel=1e-5)
    assert np.abs(lengths - 1.0).min() > 0.01


def test_texts_padded_on_the_left() -> None:
    model, expected = minilm(), minilm()
    model.tokenizer.padding_side = "left"
    given = texts(6, 40)
    assert cosine(packed(model, given), alone(expected, given)) > 1 - 1e-6


def test_the_layout_of_weights_changes_no_value(reference: SentenceTransformer) -> None:
    model = minilm()
    lay_out(model)
    weights = dict(reference.named_parameters())
    assert {name: tuple(w.shape) for name, w in model.named_parameters()} == {
        name: tuple(w.shape) for name, w in weights.items()
    }
    assert all(torch.equal(w, weights[name]) for name, w in model.named_parameters())
    dense = model[0].auto_model.encoder.layer[0].intermediate.dense.weight
    assert dense.stride() == (1, dense.shape[0])


def test_other_architectures_are_padded_and_right(tmp_path: Path) -> None:
    """The same tokenizer in front of a DistilBERT of random weights, which is not among those that pack."""
    from sentence_transformers.sentence_transformer.modules import Transformer
    from transformers import DistilBertConfig, DistilBertModel

    source = minilm()
    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=len(source.tokenizer), dim=32, n_layers=1, n_heads=2, hidden_dim=32)
    DistilBertModel(config).save_pretrained(tmp_path / "raw")
    source.tokenizer.save_pretrained(tmp_path / "raw")
    model = SentenceTransformer(
        modules=[Transformer(str(tmp_path / "raw")), Pooling(32, pooling_mode="mean")], device="cpu"
    )
    assert not can_pack(model)
    model.save(str(tmp_path / "whole"))
    served = load_model(str(tmp_path / "whole"), Cores())
    assert served.pads
    given = texts(5, 20)
    assert cosine(served.encode(given, 1)[0], alone(model.eval(), given)) > 1 - 1e-6


def test_a_decoder_is_not_packed() -> None:
    model = minilm()
    assert can_pack(model)
    model[0].auto_model.config.is_decoder = True
    assert not can_pack(model)
