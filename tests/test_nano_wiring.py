"""Heads that have a place to look at: how they are set by hand."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from tools.nano import export, wiring
from tools.nano.batches import Batch, batches
from tools.nano.forward import Forward
from tools.nano.items import Pool, Stage
from tools.nano.layout import ANSWER, BEATS, FIRST_B, FIRST_S, MARKS, PASSAGES
from tools.nano.looks import BEFORE, ITSELF, LATEST, MATCH, latest, look_losses, scores, turned_layers
from tools.nano.model import Shape, build
from tools.nano.tokenizer import Encoder, texts
from torch import Tensor
from transformers import LlamaForCausalLM

STAGE = Stage((3, 3), (1, 2), 12, 0.3, 0.2)
SET = (LATEST, BEFORE, *MATCH, ITSELF)


pytestmark = pytest.mark.usefixtures("one_thread")


def rows_of(head: int) -> slice:
    return slice(head * 64, head * 64 + 64)


@pytest.fixture(scope="module")
def batch(tokenizer: Any) -> Batch:
    return batches(Pool(Encoder(tokenizer), Random(3), 100, 12), STAGE, 1500)[0]


@pytest.fixture(scope="module")
def untold(tokenizer: Any) -> Any:
    """A model as training begins with it."""
    return build(Shape(), 1, texts(tokenizer))


@pytest.fixture(scope="module")
def told(tokenizer: Any) -> wiring.Sample:
    """The same model, wired; of short items, as fitting takes time with the square of their length."""
    torch.manual_seed(0)
    model = build(Shape(), 1, texts(tokenizer))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wiring, "_STAGES", (STAGE, STAGE))
        found = wiring.sample(model, Encoder(tokenizer), Random(2), (16, 0))
    wiring.wire(found, steps=40)
    return found


# ---- samples -----------------------------------------------------------------------------------------------


def test_a_sample_has_so_many_items_of_each_stage_and_all_are_answered(tokenizer: Any) -> None:
    found = wiring.sample(None, Encoder(tokenizer), Random(4), (5, 9))
    sizes = [len(b.ids) for b in found.batches]
    assert sum(sizes) == 14
    assert all(size == wiring._ROWS for size in sizes[:-1])
    for b in found.batches:
        assert b.ids.shape[1] % 32 == 0
        assert (b.places[:, 0] >= 0).all()
        assert (b.gold < b.ends.shape[1]).all()
    lengths = [int((b.ids[row] > 0).sum()) for b in found.batches for row in range(len(b.ids))]
    assert lengths == sorted(lengths, reverse=True)
    assert not wiring.sample(None, Encoder(tokenizer), Random(4), (0, 0)).batches


def test_a_part_of_a_sample_is_taken_evenly() -> None:
    many: list[Any] = list(range(20))
    whole = wiring.Sample("model", many, Forward(fused=False))
    parts: list[list[Any]] = [list(whole.part(size).batches) for size in (5, 3, 50)]
    assert parts == [[0, 4, 8, 12, 16], [0, 6, 12, 18], many]
    assert (whole.part(5).model, whole.part(5).forward) == (whole.model, whole.forward)


@pytest.mark.parametrize("layer", [2, 5])
def test_states_are_what_enters_the_attention_of_a_layer(untold: Any, batch: Batch, layer: int) -> None:
    (found,) = wiring.Sample(untold, [batch], Forward(fused=False)).states(layer)
    with torch.no_grad():
        hidden = untold.model(input_ids=batch.ids, output_hidden_states=True).hidden_states[layer]
        wanted = untold.model.layers[layer].input_layernorm(hidden)
    assert found.dtype == torch.bfloat16
    assert (found.float() - wanted).abs().mean() < 0.05 * wanted.abs().mean()


# ---- what projections are fitted with ----------------------------------------------------------------------


def test_the_least_squares_are_found() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(500, 6, generator=generator)
    wanted = torch.randn(6, 3, generator=generator)
    assert torch.allclose(wiring._ridge(x, x @ wanted), wanted, atol=0.02)
    constant = torch.cat((x, torch.full((500, 1), 2.0)), 1)
    assert torch.allclose(constant @ wiring._constant(constant), torch.ones(500), atol=0.05)


def test_what_is_whitened_varies_alike_in_all_directions() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5000, 4, generator=generator) @ torch.randn(4, 4, generator=generator)
    white = x @ wiring._whiten(x.T @ x / len(x), 1e-6)
    assert torch.allclose(white.T @ white / len(x), torch.eye(4), atol=0.01)


def test_queries_and_keys_turn_as_those_of_the_model(untold: Any, batch: Batch) -> None:
    turned = {0: torch.empty(0)}
    ids = batch.ids[:1, :40]
    with torch.no_grad():
        Forward(fused=False)(untold, ids, turned)
    attention, core = untold.model.layers[0].self_attn, untold.model
    x = wiring._norm(core.embed_tokens(ids), core.layers[0].input_layernorm.weight).detach()
    rows = rows_of(1)
    query, key = attention.q_proj.weight[rows].detach(), attention.k_proj.weight[rows].detach()
    found = wiring._turned(x, query, key, core.rotary_emb.inv_freq)
    for ours, theirs in ((found[:, 0], turned[0][:, 1]), (found[:, 1], turned[0][:, 5])):
        assert (ours - theirs.float()).abs().mean() < 0.02 * ours.abs().mean()


def test_telling_finds_what_kinds_differ_in() -> None:
    generator = torch.Generator().manual_seed(1)
    kinds = torch.randint(0, 6, (3000,), generator=generator)
    x = torch.randn(3000, 10, generator=generator) * torch.tensor([9.0] * 8 + [0.1, 0.1])
    x[:, 8:] += torch.randn(6, 2, generator=generator)[kinds]
    rows = wiring.telling(x, kinds, 2)
    assert rows[:, :8].abs().max() < 0.05 * rows[:, 8:].abs().max()


def test_telling_takes_kinds_that_never_come_and_as_many_rows_as_asked() -> None:
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    rows = wiring.telling(x, 3 * torch.arange(50).remainder(2), 4)  # kinds 0 and 3
    assert rows.shape == (4, 8)
    assert torch.isfinite(rows).all()


def test_correlated_finds_what_two_have_in_common_most_first() -> None:
    generator = torch.Generator().manual_seed(1)
    common = torch.randn(4000, 2, generator=generator)
    x = torch.cat((5 * torch.randn(4000, 3, generator=generator), common), 1)
    y = torch.cat(
        (common + 0.3 * torch.randn(4000, 2, generator=generator), torch.randn(4000, 4, generator=generator)),
        1,
    )
    of_x, of_y = wiring.correlated(x, y)
    agree = [float(torch.corrcoef(torch.stack((x @ of_x[i], y @ of_y[i])))[0, 1]) for i in range(4)]
    assert min(agree[:2]) > 0.9
    assert max(agree[2:]) < 0.1


def test_fit_makes_a_head_look_where_it_is_told() -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 12, 16)
    x[:, 4, 0] = 8.0
    asks = torch.arange(12).expand(2, 12)
    told = [wiring.Aim(x, asks, torch.where(asks > 4, 4, -1))]
    turn = torch.full((32,), 1e-6)
    query, key = wiring.fit(0.1 * torch.randn(64, 16), 0.1 * torch.randn(64, 16), told, turn, 60, 0.02)
    found = scores(torch.stack((x @ query.T, x @ key.T), 1), 0, asks, 0.125)
    assert (found.argmax(-1)[:, 5:] == 4).all()


def test_fit_asks_nothing_where_a_place_has_nowhere_to_look() -> None:
    x = torch.randn(1, 6, 8)
    nowhere = torch.full((1, 6), -1)
    start = torch.zeros(64, 8)
    aims = [wiring.Aim(x, torch.arange(6)[None], nowhere)]
    query, key = wiring.fit(start, start, aims, torch.full((32,), 0.1), 3, 0.02)
    assert not query.any()
    assert not key.any()
    assert not query.requires_grad


def test_fit_tells_apart_what_follows_the_same_token() -> None:
    """Of two places that follow token 7 the one whose word has the beat of the asking place."""
    torch.manual_seed(1)
    ids = torch.tensor([[1, 7, 3, 7, 4, 7, 9]])
    x = torch.randn(1, 7, 24)
    x[0, 5, :4], x[0, 4, 4:8] = 3.0, 3.0
    aim = wiring.Aim(x, torch.tensor([[5]]), torch.tensor([[4]]), ids)
    turn = torch.full((32,), 1e-6)
    query, key = wiring.fit(0.1 * torch.randn(64, 24), 0.1 * torch.randn(64, 24), [aim], turn, 40, 0.02)
    found = scores(torch.stack((x @ query.T, x @ key.T), 1), 0, aim.asks, 0.125)[0, 0]
    assert found[4] > found[2] + 2


def test_classes_are_told_by_products_with_a_table() -> None:
    torch.manual_seed(1)
    kinds = torch.randint(0, 9, (800,))
    x = torch.randn(9, 40)[kinds] + 0.2 * torch.randn(800, 40)
    table = torch.randn(9, 20)
    value, out = wiring._classes(x, kinds, table - table.mean(0), 150)
    found = x @ value.T @ out.T @ table.T
    assert (found.argmax(-1) == kinds).float().mean() > 0.95
    assert (out.T @ (table - table.mean(0)).T).mean(1).abs().max() < 1e-3


# ---- the heads ---------------------------------------------------------------------------------------------


def test_a_head_is_put_in_its_own_rows(tokenizer: Any) -> None:
    model = build(Shape(), 1, texts(tokenizer))
    attention = model.model.layers[3].self_attn
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    query, key = torch.full((64, 256), 2.0), torch.full((64, 256), 3.0)
    value, out = torch.full((10, 256), 4.0), torch.full((256, 10), 5.0)
    wiring._put(model, (3, 2), query, key, value, out)
    rows = rows_of(2)
    assert (attention.q_proj.weight[rows] == 2).all()
    assert (attention.k_proj.weight[rows] == 3).all()
    assert (attention.v_proj.weight[rows][:10] == 4).all()
    assert not attention.v_proj.weight[rows][10:].any()
    assert (attention.o_proj.weight[:, rows][:, :10] == 5).all()
    assert not attention.o_proj.weight[:, rows][:, 10:].any()
    others = torch.ones(256, dtype=torch.bool)
    others[rows] = False
    for name, weight in model.state_dict().items():
        if "layers.3.self_attn" not in name:
            assert torch.equal(weight, before[name])
        elif "o_proj" in name:
            assert torch.equal(weight[:, others], before[name][:, others])
        else:
            assert torch.equal(weight[others], before[name][others])


def test_beats_and_marks_have_a_direction_that_layers_before_do_not_write(tokenizer: Any) -> None:
    model = build(Shape(), 1, texts(tokenizer))
    row = torch.randn(256, generator=torch.Generator().manual_seed(2))
    row /= row.norm()
    kept = model.model.layers[LATEST[0]].mlp.down_proj.weight.clone()
    wiring._flag(model, row)
    along = model.model.embed_tokens.weight @ row
    flagged = torch.zeros(len(along), dtype=torch.bool)
    flagged[FIRST_B : FIRST_B + BEATS] = flagged[FIRST_S : FIRST_S + MARKS] = True
    assert torch.allclose(along[flagged], torch.tensor(wiring._FLAG), atol=1e-4)
    assert along[~flagged].abs().max() < 1e-4
    for layer in model.model.layers[: LATEST[0]]:
        for part in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            assert (row @ part).abs().max() < 1e-4
            assert part.abs().max() > 1e-3
    assert torch.equal(model.model.layers[LATEST[0]].mlp.down_proj.weight, kept)


def test_inside_are_sentences_and_the_answer_and_not_the_question(batch: Batch) -> None:
    inside = wiring._inside(batch)
    for row, ids in enumerate(batch.ids.tolist()):
        begin, answer = ids.index(PASSAGES), ids.index(ANSWER)
        assert not inside[row, : begin + 1].any()
        last = int(batch.ends[row][batch.has_end[row]].max()) if batch.has_end[row].any() else begin
        assert inside[row, begin + 1 : last + 1].all()
        assert not inside[row, last + 1 : answer + 1].any()
        assert inside[row, answer + 1]


@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_a_head_that_looks_back(untold: Any, batch: Batch, tokens: int) -> None:
    found = wiring.Sample(untold, [batch], Forward(fused=False))
    query, key = wiring._back(found, 3, tokens, 15)
    (x,) = found.states(3)
    at = torch.arange(x.shape[1]).expand(x.shape[:2])
    turned = wiring._turned(x.float(), query, key, untold.model.rotary_emb.inv_freq)
    said = scores(turned, 0, at, 0.125).argmax(-1)
    assert (said == at - tokens)[wiring._inside(batch)].float().mean() > 0.8


def test_quiet_directions_are_orthonormal_and_hardly_used(told: wiring.Sample) -> None:
    rows = wiring.quiet(told.part(2), 5)
    assert torch.allclose(rows @ rows.T, torch.eye(5), atol=1e-4)
    states = torch.cat([s.flatten(0, 1) for s in told.part(2).states(5)]).float()
    assert (states @ rows.T).std() < states.std()


def test_wired_heads_look_at_their_places(told: wiring.Sample, batch: Batch) -> None:
    turned = turned_layers()
    with torch.no_grad():
        Forward(fused=False)(told.model, batch.ids, turned)
    _, right = look_losses(turned, batch, 64**-0.5)
    share = {name: float(hit.float().mean()) for name, hit in right.items()}
    # Chance is below 0.01. Of few items and in a model that is not trained it is no more than this.
    assert share["latest"] > 0.8
    assert share["before"] > 0.6
    assert share["match0"] > 0.1
    assert share["match0"] == share["match1"]  # they differ in what they write


def test_a_wired_head_tells_the_next_beat(told: wiring.Sample, batch: Batch) -> None:
    """Alone, from what enters its layer; the token that it looks at is the asking one."""
    layer, head = ITSELF
    turned = {layer: torch.empty(0)}
    with torch.no_grad():
        Forward(fused=False)(told.model, batch.ids, turned)
    at = torch.arange(batch.ids.shape[1]).expand_as(batch.ids)
    inside = wiring._inside(batch)
    assert (scores(turned[layer], head, at, 64**-0.5).argmax(-1) == at)[inside].float().mean() > 0.6
    attention, core = told.model.model.layers[layer].self_attn, told.model.model
    (x,) = wiring.Sample(told.model, [batch], told.forward).states(layer)
    rows = slice(head * 64, head * 64 + 64)
    written = x.float() @ attention.v_proj.weight[rows].T @ attention.o_proj.weight[:, rows].T
    table = core.embed_tokens.weight[FIRST_B : FIRST_B + BEATS] * core.norm.weight
    said = (written @ table.T).argmax(-1)
    last = batch.ids.gather(1, latest(batch.ids).clamp(min=0))
    known = inside & (last >= FIRST_B) & (last < FIRST_B + BEATS)
    # Of few items and after few steps: 0.23 and more, where chance is 0.005.
    assert (said == (last - FIRST_B + 1) % BEATS)[known].float().mean() > 0.1


def test_wiring_keeps_the_size_of_the_model_and_is_finite(told: wiring.Sample) -> None:
    assert sum(p.numel() for p in told.model.parameters()) < 5_000_000
    assert all(torch.isfinite(p).all() for p in told.model.parameters())


def test_wiring_leaves_what_it_does_not_set_as_it_is(told: wiring.Sample, untold: Any) -> None:
    """But for a direction of the embeddings and of what the layers before write."""
    before = untold.state_dict()
    for name, weight in told.model.state_dict().items():
        if "embed" in name or "lm_head" in name or "layers.0" in name or "layers.1" in name:
            assert (weight - before[name]).norm() < 0.5 * before[name].norm()
            continue
        free = torch.ones(256, dtype=torch.bool)
        for layer, head in SET:
            if f"layers.{layer}.self_attn" in name:
                free[rows_of(head)] = False
        if "o_proj" in name:
            assert torch.equal(weight[:, free], before[name][:, free])
        elif "self_attn" in name:
            assert torch.equal(weight[free], before[name][free])
        else:
            assert torch.equal(weight, before[name])


def _written(model: Any, at: tuple[int, int], x: Tensor) -> Tensor:
    """What a head writes that looks at states x alone."""
    attention = model.model.layers[at[0]].self_attn
    values = attention.v_proj.weight[rows_of(at[1])]
    return (x.float() @ values.T @ attention.o_proj.weight[:, rows_of(at[1])].T).detach()


def test_codes_of_the_latest_beat_and_of_that_before_lie_side_by_side(told: wiring.Sample) -> None:
    outs = []
    for layer, head in (LATEST, BEFORE):
        out = told.model.model.layers[layer].self_attn.o_proj.weight[:, rows_of(head)]
        assert not out[:, wiring._CODE :].any()
        outs.append(out[:, : wiring._CODE])
    both = torch.cat(outs, 1)
    assert torch.allclose(both.T @ both, torch.eye(2 * wiring._CODE), atol=1e-3)


def test_the_code_of_a_beat_is_nearest_to_that_of_the_same_beat(told: wiring.Sample) -> None:
    (x, *_), first = told.states(LATEST[0]), told.batches[0]
    marked = (first.ids >= FIRST_B) & (first.ids < FIRST_B + BEATS)
    code = _written(told.model, LATEST, x)[marked]
    kinds = first.ids[marked]
    apart = torch.cdist(code, code) + 1e6 * torch.eye(len(code))
    some = (kinds[:, None] == kinds).sum(1) > 1
    # Of 192 beats, half of which the few items have not: chance is 0.01.
    assert (kinds[apart.argmin(1)] == kinds)[some].float().mean() > 0.5


def test_what_a_match_writes_is_the_token_to_come(told: wiring.Sample) -> None:
    table = told.model.model.embed_tokens.weight.detach()
    hits = total = 0
    for b, x in zip(told.batches, told.states(MATCH[0][0]), strict=True):
        real = b.places >= 0
        row = torch.arange(len(b.ids))[:, None].expand_as(b.places)[real]
        ids = b.ids[row, b.places[real]]
        there = x[row, b.places[real]]
        written = sum(_written(told.model, head, there) for head in MATCH)
        seen = table[ids.unique()]
        said = ids.unique()[(written @ (seen - table[ids].mean(0)).T).argmax(-1)]
        hits, total = hits + int((said == ids).sum()), total + len(ids)
    assert hits > 0.7 * total


def test_a_folder_becomes_a_folder_with_the_heads_set(
    tmp_path: Path, tokenizer: Any, untold: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def sample(model: Any, encoder: Encoder, rng: Random, sizes: tuple[int, int], *, fused: bool) -> Any:
        asked.append((sizes, fused))
        return wiring.Sample(model, [], Forward(fused=False))

    def wire(found: wiring.Sample) -> None:
        with torch.no_grad():
            found.model.model.layers[3].self_attn.q_proj.weight.zero_()

    monkeypatch.setattr(wiring, "sample", sample)
    monkeypatch.setattr(wiring, "wire", wire)
    export.write(untold.state_dict(), Shape(), tokenizer, tmp_path / "given")
    wiring.main(tmp_path / "given", tmp_path / "out")
    given, out = (LlamaForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("given", "out"))
    changed = {name for name in given if not torch.equal(given[name], out[name])}
    assert changed == {"model.layers.3.self_attn.q_proj.weight"}
    assert asked == [((4500, 500), True)]  # a match fitted on 400 items held on those alone
    assert (tmp_path / "out/chat_template.jinja").is_file()
