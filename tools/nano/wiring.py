"""Set the heads of `looks` by hand in a model that training left them free in: `wiring.py FOLDER OUT`.

FOLDER and OUT are models as export.py writes them; `train.py RUN --begin OUT` goes on from there. Projections
are fitted to states of generated items; all else of the model stays as it is. With `--match` nothing is
fitted but where the heads that match look, beginning with where they look: for a model that was wired before.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer
from tools.nano.batches import Batch
from tools.nano.export import write
from tools.nano.fits import HEAD, Aim, classes, constant, correlated, fit, ridge, telling
from tools.nano.forward import Forward
from tools.nano.items import Item, Pool, Stage
from tools.nano.layout import BEATS, FIRST_B, FIRST_S, MARKS, PAD
from tools.nano.looks import BEFORE, ITSELF, LATEST, MARGIN, MATCH, latest
from tools.nano.model import Shape
from tools.nano.tokenizer import Encoder
from tools.nano.written import passages
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

__all__ = ["Sample", "quiet", "rematch", "sample", "wire"]

_CODE = 40
"""Dimensions that tell beats and marks apart; twice that many and one are written to."""
_SIZE = 25.0  # of a code; the states that it is added to have a length of some 130
_FLAG = 0.6  # more of it in the embeddings of beats costs choosing
_SLOW = torch.arange(18, 32)  # pairs of a head that hardly turn within a prompt
_SHARP = 10.0
_GAIN = 30.0
_NEXT = 4.0  # at twice as much the beat is said where a word goes on
_STAGES = (Stage((1, 4), (1, 3), 36, 0.4, 0.0), Stage((2, 8), (1, 5), 28, 0.4, 0.0))
_COPIED = (
    Stage((1, 4), (1, 3), 36, 0.4, 0.0, copies=2),
    Stage((2, 8), (1, 5), 28, 0.4, 0.0, copies=4),
    Stage((4, 8), (1, 1), 36, 0.7, 0.0, copies=4, written=True),
)
"""With more places that ask, which cost little more."""
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


def sample(
    model: Any, encoder: Encoder, rng: Random, stages: Sequence[Stage], sizes: Iterable[int], *, fused: bool
) -> Sample:
    """Items of all stages, so many of each."""
    items: list[Item] = []
    for stage, size in zip(stages, sizes, strict=True):
        pool = Pool(encoder, rng, 3000, stage.words, passages() if stage.written else ())
        found = (pool.item(stage) for _ in range(4 * size))
        items += [item for item in found if item.gold >= 0][:size]
    items.sort(key=lambda i: -len(i.ids))
    cut = [items[at : at + _ROWS] for at in range(0, len(items), _ROWS)]
    return Sample(model, [Batch(part, -(-len(part[0].ids) // 32) * 32) for part in cut], Forward(fused))


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
    rows = slice(head * HEAD, (head + 1) * HEAD)
    attention.q_proj.weight[rows] = query
    attention.k_proj.weight[rows] = key
    attention.v_proj.weight[rows] = functional.pad(value, (0, 0, 0, HEAD - len(value)))
    attention.o_proj.weight[:, rows] = functional.pad(out, (0, HEAD - out.shape[1]))


def _inside(batch: Batch) -> Tensor:
    return (batch.owner >= 0) | batch.copy


def _turn(told: Sample) -> Tensor:
    turn: Tensor = told.model.model.rotary_emb.inv_freq
    return turn


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
        4 * constant(x).expand(HEAD, -1) * (torch.arange(HEAD) < HEAD // 2)[:, None],
        2 * key.expand(HEAD, -1) * (torch.arange(HEAD) < HEAD // 2)[:, None],
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
    known = 7 * constant(inside.float())
    query, key = torch.zeros(HEAD, len(known)), torch.zeros(HEAD, len(known))
    for pair, speed in enumerate(tokens * _turn(told)[:12]):
        key[pair] = known
        query[pair], query[HEAD // 2 + pair] = known * speed.cos(), -known * speed.sin()
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
    known = constant(torch.cat((asks, keys)))
    slow = torch.cat((_SLOW, _SLOW + HEAD // 2))
    pair = []
    for found, x in zip(correlated(asks, keys), (asks, keys), strict=True):
        found = found[: len(slow)]
        projection = torch.zeros(HEAD, x.shape[1])
        projection[slow] = _SHARP**0.5 * (found - torch.outer(found @ x.mean(0), known))
        pair.append(projection)
    aims = [Aim(x, b.asks, b.places, b.ids) for x, b in zip(states, told.batches, strict=True)]
    query, key = fit(pair[0], pair[1], aims, _turn(told), steps, 0.005)
    table = told.model.model.embed_tokens.weight.detach()
    values = ridge(keys, table[ids] - table[ids].mean(0))
    written = keys @ values
    ways = torch.linalg.eigh(written.T @ written)[1].flip(1)
    for at, way in zip(MATCH, ways.split(HEAD, 1), strict=False):
        _put(told.model, at, query, key, (values @ way).T, _GAIN * way)


def rematch(told: Sample, steps: int = 2500) -> None:
    """Fit anew where the heads that match look, as what layers before them write has changed since.

    Where they look from ends of sentences and from where the answer begins stays: the choice depends on it.
    """
    layer = MATCH[0][0]
    attention = told.model.model.layers[layer].self_attn
    rows = [slice(head * HEAD, (head + 1) * HEAD) for _, head in MATCH]
    stays = [torch.cat((b.start[:, None] - 1, b.ends), 1) for b in told.batches]
    states = told.states(layer)
    aims = [Aim(x, b.asks, b.places, b.ids, s) for x, b, s in zip(states, told.batches, stays, strict=True)]
    query, key = (part.weight[rows[0]].detach() for part in (attention.q_proj, attention.k_proj))
    query, key = fit(query, key, aims, _turn(told), steps, 0.006, MARGIN)
    with torch.no_grad():
        for one in rows:
            attention.q_proj.weight[one] = query
            attention.k_proj.weight[one] = key


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
    value, out = classes(torch.cat(known).float(), torch.cat(following), table - table.mean(0), steps)
    query, key = _back(told.part(10), layer, 0, min(steps, 100))
    _put(told.model, ITSELF, query, key, value, _NEXT * out)


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--match", action="store_true", help="fit nothing but where the heads that match look"
    )
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.folder / "tokenizer.json"))
    encoder = Encoder(tokenizer)
    model = LlamaForCausalLM.from_pretrained(args.folder, dtype=torch.float32)
    torch.manual_seed(0)
    if args.match:
        rematch(sample(model, encoder, Random(611), _COPIED, (2600, 800, 300), fused=True))
    else:
        wire(sample(model, encoder, Random(501), _STAGES, (4500, 500), fused=True))
    write(model.state_dict(), Shape(), tokenizer, args.out)


if __name__ == "__main__":
    main()
