"""The same computation as the Llama of transformers, in fewer passes over memory: for training on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["states"]


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight).to(torch.bfloat16)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.float().chunk(2, -1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1).to(torch.bfloat16)


def _gate(x: Tensor) -> Tensor:
    gate, up = x.float().chunk(2, -1)
    return (F.silu(gate) * up).to(torch.bfloat16)


def _add(x: Tensor, y: Tensor) -> Tensor:
    return x + y.float()


_norm, _turn, _gate, _add = (torch.compile(f, dynamic=True) for f in (_norm, _turn, _gate, _add))  # type: ignore[assignment]


def states(model: Any, ids: Tensor) -> list[Tensor]:
    """The hidden states after each layer (float32), and last the normed one (bfloat16)."""
    core = model.model
    rows, length = ids.shape
    half = core.config.head_dim // 2
    speed = core.rotary_emb.inv_freq
    angles = torch.outer(torch.arange(length).float(), speed)[None, :, None, :]
    cos, sin = angles.cos(), angles.sin()
    x = F.embedding(ids, core.embed_tokens.weight)
    width = x.shape[-1]
    found = []
    for layer in core.layers:
        a = layer.self_attn
        weight = torch.cat((a.q_proj.weight, a.k_proj.weight, a.v_proj.weight)).to(torch.bfloat16)
        mixed = F.linear(_norm(x, layer.input_layernorm.weight), weight).view(rows, length, -1, 2 * half)
        heads = width // (2 * half)
        turned = _turn(mixed[:, :, : 2 * heads], cos, sin).transpose(1, 2)
        out = F.scaled_dot_product_attention(turned[:, :heads], turned[:, heads:], mixed[:, :, 2 * heads :].transpose(1, 2), is_causal=True)
        x = _add(x, F.linear(out.transpose(1, 2).reshape(rows, length, width), a.o_proj.weight.to(torch.bfloat16)))
        m = layer.mlp
        weight = torch.cat((m.gate_proj.weight, m.up_proj.weight)).to(torch.bfloat16)
        gated = _gate(F.linear(_norm(x, layer.post_attention_layernorm.weight), weight))
        x = _add(x, F.linear(gated, m.down_proj.weight.to(torch.bfloat16)))
        found.append(x)
    found.append(_norm(x, core.norm.weight))
    return found
