"""The same computation as the Llama of transformers, in fewer passes over memory: for training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["DEVICE", "FAST", "Forward"]

_SHORT = 448  # tokens, up to which a matrix of attention costs less than the flash kernel


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where a model is trained."""

FAST = (
    torch.bfloat16 if DEVICE.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
)
"""Of products of matrices; without bfloat16 in hardware (AVX2) a product took up to 47 times as long."""


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight).to(FAST)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.float().chunk(2, -1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1).to(FAST)


def _gate(x: Tensor) -> Tensor:
    gate, up = x.float().chunk(2, -1)
    return (functional.silu(gate) * up).to(FAST)


def _add(x: Tensor, y: Tensor) -> Tensor:
    return x + y.float()


def _soft(scores: Tensor, scale: float) -> Tensor:
    at = torch.arange(scores.shape[-1], device=scores.device)
    return torch.where(at <= at[:, None], scores.float() * scale, -1e4).softmax(-1).to(FAST)


class Forward:
    """Matrices in `FAST`, states between layers in float32. `fused`: compile what is no matrix product."""

    def __init__(self, fused: bool) -> None:
        def made(part: Callable[..., Tensor]) -> Callable[..., Tensor]:
            compiled: Callable[..., Tensor] = torch.compile(part, dynamic=True) if fused else part
            return compiled

        self._norm, self._turn, self._gate = made(_norm), made(_turn), made(_gate)
        self._add, self._soft = made(_add), made(_soft)

    def __call__(self, model: Any, ids: Tensor, turned: dict[int, Tensor] | None = None) -> list[Tensor]:
        """The states after each layer, and last those that logits are made of (`FAST`).

        `turned` gets queries and keys of the layers that it has, the heads of queries before those of keys.
        """
        core = model.model
        length = ids.shape[1]
        angles = torch.outer(torch.arange(length, device=ids.device).float(), core.rotary_emb.inv_freq)[
            None, :, None, :
        ]
        turn = (angles.cos(), angles.sin())
        x = functional.embedding(ids, core.embed_tokens.weight)
        found = []
        for at, layer in enumerate(core.layers):
            seen, both = self._attend(layer.self_attn, self._norm(x, layer.input_layernorm.weight), turn)
            if turned is not None and at in turned:
                turned[at] = both
            x = self._add(x, seen)
            mlp = layer.mlp
            both = torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)).to(FAST)
            gated = self._gate(functional.linear(self._norm(x, layer.post_attention_layernorm.weight), both))
            x = self._add(x, functional.linear(gated, mlp.down_proj.weight.to(FAST)))
            found.append(x)
        return [*found, self._norm(x, core.norm.weight)]

    def _attend(self, attention: Any, x: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        rows, length, _ = x.shape
        parts = (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight)
        mixed = functional.linear(x, torch.cat(parts).to(FAST)).view(rows, length, -1, attention.head_dim)
        heads = mixed.shape[2] // 3
        turned = self._turn(mixed[:, :, : 2 * heads], *turn).transpose(1, 2)
        values = mixed[:, :, 2 * heads :].transpose(1, 2)
        if length <= _SHORT:
            scores = turned[:, :heads] @ turned[:, heads:].transpose(-1, -2)
            out = self._soft(scores, attention.scaling) @ values
        else:
            out = functional.scaled_dot_product_attention(
                turned[:, :heads], turned[:, heads:], values, is_causal=True
            )
        return functional.linear(out.transpose(1, 2).flatten(2), attention.o_proj.weight.to(FAST)), turned
