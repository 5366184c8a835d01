"""Two models of random weights, made here once: a tiny Llama, and a tiny BERT that scores pairs.

They are for tests and demonstrations. What they say means nothing, and is labelled RANDOM-WEIGHTS.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from sage.middleware.random_weights import (
    MARK,
    VOCABULARY,
    made_once,
    save_weights,
    train_tokenizer,
    write_json,
)

__all__ = ["random_model", "random_reranker"]

_FOLDER = "sage-random-llama-v1"  # a new version for every change of what is written
_RERANKER_FOLDER = "sage-random-reranker-v2"
_SEED = 20260

_SPECIAL = ("<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
_HIDDEN, _LAYERS, _HEADS, _KV_HEADS, _MLP, _CONTEXT = 256, 4, 4, 2, 512, 4096
_SEED = 20260
_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def random_model(cache: Path) -> Path:
    """A folder with a tiny Llama of random weights, made once under `cache`; errors as of `made_once`.

    About 3 M parameters, byte-level BPE of 1,024 tokens, context 4,096, the same bytes on every machine. It
    never emits its end token, so an answer is always `max_tokens` long.
    """
    return made_once(cache / "models" / _FOLDER, _write_model)


def random_reranker(cache: Path) -> Path:
    """A folder with a tiny BERT of random weights and one label, made once under `cache`, likewise.

    About 0.3 M parameters, the same tokens, a window of 512 of them. A pair always has the same score.
    """
    return made_once(cache / "models" / _RERANKER_FOLDER, _write_reranker)


def _write_model(folder: Path) -> None:
    readable = _write_tokenizer(folder)
    _write_weights(folder, readable)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
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
        MARK: True,
        **ids,
    }
    write_json(folder / "generation_config.json", {"do_sample": False, **ids})
    write_json(folder / "config.json", config)


def _write_tokenizer(folder: Path) -> list[int]:
    """Train the tokenizer, write its files and return the ids of the tokens that are whole printable text."""
    tokenizer = train_tokenizer(folder, _SPECIAL, lambda _tokenizer: None)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "model_max_length": _CONTEXT,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(_TEMPLATE, encoding="utf-8")
    texts = ((index, tokenizer.decode([index])) for index in range(len(_SPECIAL), tokenizer.get_vocab_size()))
    return [index for index, text in texts if text.isprintable() and "\ufffd" not in text]


def _write_weights(folder: Path, readable: list[int]) -> None:
    import numpy as np

    normal = partial(_normal, np.random.default_rng(_SEED))
    kv = _HIDDEN // _HEADS * _KV_HEADS
    ones = np.ones(_HIDDEN, dtype=np.float32)
    weights: dict[str, Any] = {"model.embed_tokens.weight": normal(VOCABULARY, _HIDDEN, scale=1.0)}
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
    head = np.zeros((VOCABULARY, _HIDDEN), dtype=np.float32)
    head[readable] = normal(len(readable), _HIDDEN)
    weights["lm_head.weight"] = head
    save_weights(folder, weights)


def _normal(rng: Any, *shape: int, scale: float = 0.08) -> Any:
    return (rng.standard_normal(shape) * scale).astype("float32")


# ---- the reranker ------------------------------------------------------------------------------------------

_PAIR_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_WIDTH, _DEPTH, _PAIR_HEADS, _WIDE, _WINDOW = 64, 2, 2, 128, 512  # heads of 32: vLLM has none narrower


def _write_reranker(folder: Path) -> None:
    train_tokenizer(folder, _PAIR_SPECIAL, _add_pairs)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "model_max_length": _WINDOW,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", settings)
    save_weights(folder, _reranker_weights())
    config = {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "vocab_size": VOCABULARY,
        "hidden_size": _WIDTH,
        "num_hidden_layers": _DEPTH,
        "num_attention_heads": _PAIR_HEADS,
        "intermediate_size": _WIDE,
        "max_position_embeddings": _WINDOW,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "torch_dtype": "float32",
        MARK: True,
    }
    write_json(folder / "config.json", config)


def _add_pairs(tokenizer: Any) -> None:
    """`[CLS] query [SEP] document [SEP]`, the document of type 1."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, _PAIR_SPECIAL.index(name)) for name in ("[CLS]", "[SEP]")],
    )


def _reranker_weights() -> dict[str, Any]:
    import numpy as np

    normal = partial(_normal, np.random.default_rng(_SEED))
    weights: dict[str, Any] = {}

    def dense(name: str, rows: int, columns: int, scale: float = 0.2) -> None:
        weights[f"{name}.weight"] = normal(rows, columns, scale=scale)
        weights[f"{name}.bias"] = np.zeros(rows, dtype=np.float32)

    def norm(name: str) -> None:
        weights[f"{name}.LayerNorm.weight"] = np.ones(_WIDTH, dtype=np.float32)
        weights[f"{name}.LayerNorm.bias"] = np.zeros(_WIDTH, dtype=np.float32)

    for name, rows in (("word", VOCABULARY), ("position", _WINDOW), ("token_type", 2)):
        weights[f"bert.embeddings.{name}_embeddings.weight"] = normal(rows, _WIDTH, scale=1.0)
    norm("bert.embeddings")
    for layer in range(_DEPTH):
        prefix = f"bert.encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            dense(f"{prefix}.attention.self.{part}", _WIDTH, _WIDTH)
        dense(f"{prefix}.attention.output.dense", _WIDTH, _WIDTH)
        norm(f"{prefix}.attention.output")
        dense(f"{prefix}.intermediate.dense", _WIDE, _WIDTH)
        dense(f"{prefix}.output.dense", _WIDTH, _WIDE)
        norm(f"{prefix}.output")
    dense("bert.pooler.dense", _WIDTH, _WIDTH)
    dense("classifier", 1, _WIDTH, scale=0.5)
    return weights
