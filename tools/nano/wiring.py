"""Set the heads of `looks` by hand in a model that training left them free in: `wiring.py FOLDER OUT`.

FOLDER and OUT are models as export.py writes them; `train.py RUN --begin OUT` goes on from there. Projections
are fitted to states of generated items; everything else of the model stays as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer
from tools.nano.batches import Batch
from tools.nano.export import write
from tools.nano.forward import Forward
from tools.nano.items import Item, Pool, Stage
from tools.nano.layout import BEATS, FIRST_B, FIRST_S, MARKS, PAD
from tools.nano.looks import BEFORE, ITSELF, LATEST, MATCH, latest, scores
from tools.nano.model import Shape
from tools.nano.tokenizer import Encoder
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

__all__ = ["Aim", "Sample", "correlated", "fit", "quiet", "telling", "wire"]

_HEAD = 64
_CODE = 40
"""Dimensions that tell beats and marks apart; twice that many and one are written to."""
_SIZE = 25.0  # of a code; the states that it is added to have a length of some 130
_FLAG = 0.6  # more of it in the embeddings of beats costs choosing
_SLOW = torch.arange(18, 32)  # pairs of a head that hardly turn within a prompt
_SHARP = 10.0
_GAIN = 30.0
_HARD = 2.0
_NEXT = 4.0  # at twice as much the beat is said where a word goes on
_STAGES = (Stage((1, 4), (1, 3), 36, 0.4, 0.0), Stage((2, 8), (1, 5), 28, 0.4, 0.0))
_ROWS = 6


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight


@dataclass(frozen=True, slots=True)
class Sample:
    """Batches that projections are fitted to, and the model."""

    model: Any
    batches: list[Batch]
    forward: Forward

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def states(self, layer: int) -> list[Tensor]:
        """What enters the attention of a layer, counted from 0, of each batch."""
        core = self.model.model
        weight = core.layers[layer].input_layernorm.weight
        below = SimpleNamespace(
            **{name: getattr(core, name) for name in ("embed_tokens", "rotary_emb", "norm")}
        )
        below.layers = core.layers[:layer]
        whole = SimpleNamespace(model=below)
        found = (self.forward(whole, b.ids)[layer - 1] for b in self.batches)
        return [_norm(x, weight).to(torch.bfloat16) for x in found]

    def part(self, batches: int) -> Sample:
        """Some of the batches, evenly from short to long."""
        return Sample(self.model, self.batches[:: max(1, len(self.batches) // batches)], self.forward)


def sample(model: Any, encoder: Encoder, rng: Random, sizes: Iterable[int], *, fused: bool = False) -> Sample:
    """Items of both stages, so many of each."""
    items: list[Item] = []
    for stage, size in zip(_STAGES, sizes, strict=True):
        pool = Pool(encoder, rng, 3000, stage.words)
        found = (pool.item(stage) for _ in range(4 * size))
        items += [item for item in found if item.gold >= 0][:size]
    items.sort(key=lambda i: -len(i.ids))
    cut = [items[at : at + _ROWS] for at in range(0, len(items), _ROWS)]
    return Sample(model, [Batch(part, -(-len(part[0].ids) // 32) * 32) for part in cut], Forward(fused))


# ---- what projections are fitted with ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Aim:
    """States, places that ask, and where they are to look (-1: nowhere). `ids`: the tokens, where places that
    follow the same token as the asking one are to be told apart first of all."""

    states: Tensor
    asks: Tensor
    places: Tensor
    ids: Tensor | None = None


def fit(
    query: Tensor, key: Tensor, aims: list[Aim], turn: Tensor, steps: int, rate: float
) -> tuple[Tensor, Tensor]:
    """Projections that make one head look where it is to; `turn`: how fast each pair of it turns."""
    query, key = query.clone().requires_grad_(), key.clone().requires_grad_()
    optimizer = torch.optim.AdamW([query, key], lr=rate, betas=(0.9, 0.99), weight_decay=0.1)
    order = Random(1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, 1.5 * (1 - step / steps))
        aim = order.choice(aims)
        real = aim.places >= 0
        found = scores(_turned(aim.states.float(), query, key, turn), 0, aim.asks, _HEAD**-0.5)[real]
        loss = functional.cross_entropy(found, aim.places[real], reduction="sum")
        if aim.ids is not None:
            before = aim.ids.roll(1, 1)[:, None]
            rivals = (before == aim.ids.gather(1, aim.asks)[..., None])[real]
            hard = functional.cross_entropy(
                found.masked_fill(~rivals, -1e4), aim.places[real], reduction="sum"
            )
            loss = loss + _HARD * hard
        optimizer.zero_grad()
        (loss / max(1, len(found))).backward()
        optimizer.step()
    return query.detach(), key.detach()


def _turned(x: Tensor, query: Tensor, key: Tensor, turn: Tensor) -> Tensor:
    both = torch.stack((x @ query.T, x @ key.T), 1)
    angles = torch.outer(torch.arange(x.shape[1]).float(), turn)
    left, right = both.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1)


def _ridge(x: Tensor, y: Tensor) -> Tensor:
    """The columns w of the least squares of x w = y."""
    some = 1e-3 * len(x) * x.square().mean() * torch.eye(x.shape[1])
    return torch.linalg.solve(x.T @ x + some, x.T @ y)


def _whiten(square: Tensor, some: float) -> Tensor:
    values, vectors = torch.linalg.eigh(square)
    return vectors * (values + some * values.mean()).rsqrt() @ vectors.T


def telling(x: Tensor, kinds: Tensor, top: int) -> Tensor:
    """Rows that tell kinds apart best against the spread within a kind (Fisher's discriminant)."""
    counts = torch.bincount(kinds).clamp(min=1)[:, None]
    means = torch.zeros(len(counts), x.shape[1]).index_add_(0, kinds, x) / counts
    within = x - means[kinds]
    white = _whiten(within.T @ within / len(x), 1e-2)
    apart = (means - x.mean(0)) * (counts / len(x)).sqrt() @ white
    vectors = torch.linalg.eigh(apart.T @ apart)[1][:, -top:]
    return vectors.T @ white


def correlated(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Rows for x and for y, whose products with pairs of them agree most first (canonical correlation)."""
    x, y = x - x.mean(0), y - y.mean(0)
    white_x, white_y = _whiten(x.T @ x / len(x), 3e-3), _whiten(y.T @ y / len(y), 3e-3)
    left, _, right = torch.linalg.svd(white_x @ (x.T @ y / len(x)) @ white_y)
    return (white_x @ left).T, (white_y @ right.T).T


@torch.no_grad()  # type: ignore[untyped-decorator]
def quiet(told: Sample, count: int) -> Tensor:
    """Orthonormal rows that layers read and states vary along least, and that the output looks at least."""
    model = told.model.model
    states: list[list[Tensor]] = []
    for b in told.batches:
        found = [model.embed_tokens(b.ids), *told.forward(told.model, b.ids)]
        states.append([x[b.ids != PAD].float() for x in found])
    *inner, last = (torch.cat(parts) for parts in zip(*states, strict=True))
    squares = [torch.cov(x.T) for x in inner] + 8 * [last.T @ last]
    for layer in model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        read = torch.cat((attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight))
        squares.append(_square(read, layer.input_layernorm))
        squares.append(
            _square(torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)), layer.post_attention_layernorm)
        )
    whole = torch.stack([s / s.trace() for s in squares]).sum(0)
    found_rows: Tensor = torch.linalg.eigh(whole)[1][:, :count].T
    return found_rows


def _square(weight: Tensor, norm: Any) -> Tensor:
    scaled = weight * norm.weight
    return scaled.T @ scaled


# ---- the heads ---------------------------------------------------------------------------------------------


def wire(told: Sample, steps: int = 4000) -> None:
    """All heads of `looks`, one layer after the other, as each reads what those before it write.

    `steps`: of fitting the heads that match; those before need fewer.
    """
    rows = quiet(told.part(5), 2 * _CODE + 1)
    _flag(told.model, rows[0])
    _wire_latest(told, rows[0], rows[1 : 1 + _CODE], min(steps, 300))
    _wire_before(told.part(10), rows[1 : 1 + _CODE], rows[1 + _CODE :], min(steps, 100))
    _wire_match(told, steps)
    _wire_itself(told, min(steps, 1500))


@torch.no_grad()  # type: ignore[untyped-decorator]
def _flag(model: Any, row: Tensor) -> None:
    """Beats and marks that begin a sentence have one direction, which no layer before `LATEST` writes."""
    table = model.model.embed_tokens.weight
    table -= torch.outer(table @ row, row)
    for first, count in ((FIRST_B, BEATS), (FIRST_S, MARKS)):
        table[first : first + count] += _FLAG * row
    for layer in model.model.layers[: LATEST[0]]:
        for part in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            part -= torch.outer(row, row @ part)


@torch.no_grad()  # type: ignore[untyped-decorator]
def _put(model: Any, at: tuple[int, int], query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
    layer, head = at
    attention = model.model.layers[layer].self_attn
    rows = slice(head * _HEAD, (head + 1) * _HEAD)
    attention.q_proj.weight[rows] = query
    attention.k_proj.weight[rows] = key
    attention.v_proj.weight[rows] = functional.pad(value, (0, 0, 0, _HEAD - len(value)))
    attention.o_proj.weight[:, rows] = functional.pad(out, (0, _HEAD - out.shape[1]))


def _inside(batch: Batch) -> Tensor:
    return (batch.owner >= 0) | batch.copy


def _turn(told: Sample) -> Tensor:
    turn: Tensor = told.model.model.rotary_emb.inv_freq
    return turn


def _constant(x: Tensor) -> Tensor:
    """What has a product of about one with every state."""
    return _ridge(x, torch.ones(len(x)))


def _wire_latest(told: Sample, flag: Tensor, rows: Tensor, steps: int) -> None:
    """Keys with the flag are met by all; pairs of all speeds make the nearest of them stand out."""
    layer = LATEST[0]
    some = told.part(15)
    states, aims = some.states(layer), []
    for b, x in zip(some.batches, states, strict=True):
        places = torch.where(_inside(b), latest(b.ids), -1)
        aims.append(Aim(x, torch.arange(b.ids.shape[1]).expand_as(b.ids), places))
    x = torch.cat([x[_inside(b)] for b, x in zip(some.batches, states, strict=True)]).float()
    ids = torch.cat([b.ids[_inside(b)] for b in some.batches])
    beats = latest(ids[None])[0] == torch.arange(len(ids))
    key = flag / told.model.model.layers[layer].input_layernorm.weight.detach()
    key = key / (x[beats] @ key).mean()
    query, key = fit(
        4 * _constant(x).expand(_HEAD, -1) * (torch.arange(_HEAD) < _HEAD // 2)[:, None],
        2 * key.expand(_HEAD, -1) * (torch.arange(_HEAD) < _HEAD // 2)[:, None],
        aims, _turn(told), steps, 0.01,
    )  # fmt: skip
    marked, kinds = [], []
    many = told.part(170)
    for b, x in zip(many.batches, many.states(layer), strict=True):
        for first, count, base in ((FIRST_B, BEATS, 0), (FIRST_S, MARKS, BEATS)):
            here = (b.ids >= first) & (b.ids < first + count)
            marked.append(x[here])
            kinds.append(b.ids[here] - first + base)
    x, kind = torch.cat(marked).float(), torch.cat(kinds)
    code = telling(x, kind, _CODE)
    code *= _SIZE / _CODE**0.5 / (x @ code.T).std(0)[:, None]
    _put(told.model, LATEST, query, key, code, rows.T)


def _back(told: Sample, layer: int, tokens: int, steps: int) -> tuple[Tensor, Tensor]:
    """Queries and keys of a head that looks so many tokens back."""
    states = told.states(layer)
    aims = []
    for b, x in zip(told.batches, states, strict=True):
        at = torch.arange(b.ids.shape[1]).expand_as(b.ids)
        aims.append(Aim(x, at, torch.where(_inside(b), at - tokens, -1)))
    inside = torch.cat([x[_inside(b)] for b, x in zip(told.batches, states, strict=True)])
    constant = 7 * _constant(inside.float())
    query, key = torch.zeros(_HEAD, len(constant)), torch.zeros(_HEAD, len(constant))
    for pair, speed in enumerate(tokens * _turn(told)[:12]):
        key[pair] = constant
        query[pair], query[_HEAD // 2 + pair] = constant * speed.cos(), -constant * speed.sin()
    return fit(query, key, aims, _turn(told), steps, 0.005)


def _wire_before(told: Sample, rows: Tensor, out: Tensor, steps: int) -> None:
    """The code of the token before is written beside that of the token itself."""
    layer = BEFORE[0]
    query, key = _back(told, layer, 1, steps)
    norm = told.model.model.layers[layer].input_layernorm.weight.detach()
    # A state is divided by its size before it is read; the code gets it back.
    found = [told.forward(told.model, b.ids)[layer - 1][_inside(b)] for b in told.batches[:4]]
    size = torch.cat(found).detach().square().mean().sqrt()
    _put(told.model, BEFORE, query, key, rows / norm * size, out.T)


def _wire_match(told: Sample, steps: int) -> None:
    """What a place to copy from and the place that asks have in common is met; the token there is written."""
    layer = MATCH[0][0]
    states = told.states(layer)
    real = [b.places >= 0 for b in told.batches]
    row = [torch.arange(len(b.ids))[:, None].expand_as(b.asks) for b in told.batches]
    each = list(zip(states, told.batches, real, row, strict=True))
    asks = torch.cat([x[r[k], b.asks[k]] for x, b, k, r in each]).float()
    keys = torch.cat([x[r[k], b.places[k]] for x, b, k, r in each]).float()
    ids = torch.cat([b.ids[r[k], b.places[k]] for x, b, k, r in each])
    constant = _constant(torch.cat((asks, keys)))
    slow = torch.cat((_SLOW, _SLOW + _HEAD // 2))
    pair = []
    for found, x in zip(correlated(asks, keys), (asks, keys), strict=True):
        found = found[: len(slow)]
        projection = torch.zeros(_HEAD, x.shape[1])
        projection[slow] = _SHARP**0.5 * (found - torch.outer(found @ x.mean(0), constant))
        pair.append(projection)
    aims = [Aim(x, b.asks, b.places, b.ids) for x, b in zip(states, told.batches, strict=True)]
    query, key = fit(pair[0], pair[1], aims, _turn(told), steps, 0.005)
    table = told.model.model.embed_tokens.weight.detach()
    values = _ridge(keys, table[ids] - table[ids].mean(0))
    written = keys @ values
    ways = torch.linalg.eigh(written.T @ written)[1].flip(1)
    for at, way in zip(MATCH, ways.split(_HEAD, 1), strict=False):
        _put(told.model, at, query, key, (values @ way).T, _GAIN * way)


def _wire_itself(told: Sample, steps: int) -> None:
    """The beat that comes next is told from the code of the latest one, against the other beats alone."""
    layer = ITSELF[0]
    some = told.part(90)
    known, following = [], []
    for b, x in zip(some.batches, some.states(layer), strict=True):
        last = b.ids.gather(1, latest(b.ids).clamp(min=0))
        here = _inside(b) & (last >= FIRST_B) & (last < FIRST_B + BEATS)
        known.append(x[here])
        following.append((last[here] - FIRST_B + 1) % BEATS)
    core = told.model.model
    table = (core.embed_tokens.weight[FIRST_B : FIRST_B + BEATS] * core.norm.weight).detach()
    value, out = _classes(torch.cat(known).float(), torch.cat(following), table - table.mean(0), steps)
    query, key = _back(told.part(10), layer, 0, min(steps, 100))
    _put(told.model, ITSELF, query, key, value, _NEXT * out)


def _classes(x: Tensor, kinds: Tensor, table: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Values and output of a head whose products with the rows of `table` tell of which kind x is."""
    start = _ridge(x, functional.one_hot(kinds, len(table)).float() - 1 / len(table))
    left, size, right = torch.linalg.svd(start, full_matrices=False)
    size = 6 * size[:_HEAD].sqrt()
    value = (left[:, :_HEAD] * size).T.clone().requires_grad_()
    back = torch.linalg.pinv(table)
    out = (back @ (right[:_HEAD].T * size)).requires_grad_()
    optimizer = torch.optim.Adam([value, out], lr=0.003)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.003 * min(1.0, 1.5 * (1 - step / steps))
        some = torch.randint(len(x), (1024,))
        found = x[some] @ value.T @ (table @ out).T
        loss = functional.cross_entropy(found, kinds[some]) + 5e-4 * found.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return value.detach(), back @ table @ out.detach()


def main(folder: Path, out: Path) -> None:
    """As the module says."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    wire(sample(model, Encoder(tokenizer), Random(501), (4500, 500), fused=True))
    write(model.state_dict(), Shape(), tokenizer, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
