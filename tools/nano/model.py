"""The model: a plain Llama that starts with attention for equal tokens, and heads for training only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tools.nano.layout import FIRST_E, FIRST_S, MARKS, QUESTION
from tools.nano.words import stem
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

__all__ = ["Heads", "Shape", "build", "config_of"]

_HEAD = 64
_THETA = 1e6
_SHARP = 1.8
_ALIKE = 0.6  # of the square of a token's length lies in what it has in common with its other forms
# Dimensions of the states that are set by hand.
_CONSTANT, _IS_START, _IS_END, _IS_OTHER = range(4)
_STILL = _HEAD // 2 - 1  # of the pairs of a head the one that turns slowest


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model."""

    width: int = 256
    layers: int = 6
    mlp: int = 512
    vocabulary: int = 4096


def config_of(shape: Shape) -> LlamaConfig:
    """As transformers, vLLM and others read it."""
    heads = shape.width // _HEAD
    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=_HEAD,
        max_position_embeddings=4096,
        rope_theta=_THETA,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


def build(shape: Shape, seed: int, tokens: Sequence[str]) -> LlamaForCausalLM:
    """A new model, which can nearly copy already; `tokens`: the texts of its vocabulary, in the order of ids.

    Forms of one word begin alike. Layer 1 looks at the tokens before and at the mark of the sentence, layer 2
    at equal tokens and at what followed equal tokens; everything else is random and small.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config_of(shape))
    with torch.no_grad():
        _start(model, shape, tokens)
    return model


def _start(model: LlamaForCausalLM, shape: Shape, tokens: Sequence[str]) -> None:
    d = shape.width
    table = model.model.embed_tokens.weight
    table.copy_(0.1 * _alike(tokens, len(table), d))
    table[:, : _IS_OTHER + 1] = 0
    table[:, _CONSTANT] = 0.3
    starts, ends = (slice(first, first + MARKS) for first in (FIRST_S, FIRST_E))
    table[ends] = table[starts]
    table[starts, _IS_START] = 0.5
    table[ends, _IS_END] = 0.5
    table[:FIRST_S, _IS_OTHER] = 0.5
    table[QUESTION, _IS_START] = 0.5  # a token of a question belongs to the question as others to a sentence
    model.model.norm.weight.fill_(0.3)
    for layer in model.model.layers:
        attention = layer.self_attn
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight.normal_(0, 1 / math.sqrt(d))
        attention.o_proj.weight.normal_(0, 0.03 / math.sqrt(d))
        layer.mlp.gate_proj.weight.normal_(0, 1 / math.sqrt(d))
        layer.mlp.up_proj.weight.normal_(0, 1 / math.sqrt(d))
        layer.mlp.down_proj.weight.normal_(0, 0.03 / math.sqrt(shape.mlp))
        for part in (attention.o_proj, layer.mlp.down_proj):
            part.weight[: _IS_OTHER + 1] = 0
        heads = d // _HEAD
        for head in range(heads):
            _equal(attention, head, torch.eye(d))
    _Wiring(d).wire([layer.self_attn for layer in model.model.layers])


def _alike(tokens: Sequence[str], rows: int, width: int) -> Tensor:
    """Normal rows; those of tokens with one stem have a part in common."""
    keys = [stem(text) or text.strip().lower() for text in tokens]
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    shared = torch.randn(len(number), width)[[number[key] for key in keys]]
    mixed = torch.randn(rows, width)
    mixed[: len(tokens)] = math.sqrt(_ALIKE) * shared + math.sqrt(1 - _ALIKE) * mixed[: len(tokens)]
    return mixed


def _rows(head: int) -> slice:
    return slice(head * _HEAD, (head + 1) * _HEAD)


def _slow() -> Tensor:
    """The pairs of dimensions that turn so slowly that they compare content at any distance."""
    pairs = torch.arange(_HEAD // 2)
    return pairs[_THETA ** (-2.0 * pairs / _HEAD) < 2e-3]


def _orthonormal(rows: int, columns: int) -> Tensor:
    return torch.linalg.qr(torch.randn(columns, rows))[0].T


def _equal(attention: Any, head: int, space: Tensor) -> None:
    """Queries and keys of one projection: equal states meet, whatever lies between them."""
    slow = _slow()
    places = torch.cat((slow, slow + _HEAD // 2)) + head * _HEAD
    projection = _orthonormal(len(places), len(space)) @ space * _SHARP
    for part in (attention.q_proj.weight, attention.k_proj.weight):
        part[_rows(head)] *= 0.1
        part[places] = projection


def _turning(
    attention: Any, head: int, key: int, pairs: Tensor, shift: float, scale: float, q_scale: float
) -> None:
    """Keys from dimension `key` and queries from the constant one, with their peak `shift` tokens back."""
    for part in (attention.q_proj.weight, attention.k_proj.weight):
        part[_rows(head)] *= 0.1 / _SHARP
    speed = _THETA ** (-2.0 * pairs / _HEAD)
    base = head * _HEAD
    attention.k_proj.weight[base + pairs, key] = scale
    attention.q_proj.weight[base + pairs, _CONSTANT] = q_scale * torch.cos(shift * speed)
    attention.q_proj.weight[base + _HEAD // 2 + pairs, _CONSTANT] = -q_scale * torch.sin(shift * speed)


def _through(attention: Any, head: int, read: Tensor, write: Tensor, scale: float) -> None:
    """The values of a head, and where they go."""
    attention.v_proj.weight[_rows(head)] = read
    attention.o_proj.weight[:, _rows(head)] = scale * write.T
    attention.o_proj.weight[: _IS_OTHER + 1, _rows(head)] = 0


def _lift(attention: Any, head: int, key: Tensor, scale: float) -> None:
    """Keys that lie along `key` are looked at more by everybody."""
    place = head * _HEAD + _STILL
    attention.q_proj.weight[place] = 0
    attention.q_proj.weight[place, _CONSTANT] = scale
    attention.k_proj.weight[place] = scale * key


class _Wiring:
    """Four spaces of the states: a token's own, those of the two before it, and the mark of its sentence."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._own, self._before, self._second, self._mark = _orthonormal(width, width).split(_HEAD)
        asks = self._own[:, _IS_OTHER]  # what the mark of a question has and that of a sentence has not
        self._asked = asks / asks.norm() @ self._mark

    def wire(self, layers: list[Any]) -> None:
        """Look back in layer 1, meet equal tokens and copy in layer 2."""
        first, second = layers[:2]
        slots = ((0, self._before), (1, self._second))
        for head, space in slots:
            _turning(first, head, _CONSTANT, torch.arange(10), head + 1.0, 1.5, 1.5)
            _through(first, head, self._own, space, 0.2)
        _turning(first, 2, _IS_START, torch.arange(6, 16), 0.0, 1.2, 1.4)
        _through(first, 2, self._own, self._mark, 0.2)
        for head in (0, 1):
            self._copy(second, head)
        for head in (2, 3):
            self._meet(second, head)

    def _match(self, attention: Any, head: int, pairs: list[tuple[Tensor, Tensor, float]]) -> None:
        slow = _slow()
        places = torch.cat((slow, slow + _HEAD // 2)) + head * _HEAD
        for part in (attention.q_proj.weight, attention.k_proj.weight):
            part[_rows(head)] *= 0.1 / _SHARP
            part[places] = 0
        for query, key, scale in pairs:
            mix = _orthonormal(len(places), _HEAD) * scale
            attention.q_proj.weight[places] += mix @ query
            attention.k_proj.weight[places] += mix @ key

    def _copy(self, attention: Any, head: int) -> None:
        """What came next in this sentence after the same two tokens."""
        own = (self._own, self._before, 2.4), (self._before, self._second, 1.6), (self._mark, self._mark, 1.2)
        self._match(attention, head, list(own))
        out = _orthonormal(_HEAD, self._width)
        _through(attention, head, out, out, 0.5)

    def _meet(self, attention: Any, head: int) -> None:
        """The same token in the question, else itself."""
        self._match(attention, head, [(self._own, self._own, 3.2)])
        _lift(attention, head, self._asked, 2.5)


class Heads(nn.Module):  # type: ignore[misc]
    """What the hidden states are asked while training; none of it is exported."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.owner = nn.Linear(width, MARKS)
        self.flag = nn.Linear(width, 1)
        self.share = nn.Linear(width, 1)
        self.score = nn.Linear(width, 1)
        self.none = nn.Parameter(torch.zeros(1))
