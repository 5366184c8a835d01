"""What projections of heads are fitted with."""

from random import Random
from typing import Any

import pytest
import torch
from tools.nano import fits
from tools.nano.batches import batches
from tools.nano.forward import Forward
from tools.nano.items import Pool, Stage
from tools.nano.looks import scores
from tools.nano.model import Shape, build
from tools.nano.tokenizer import Encoder, texts
from tools.nano.wiring import _norm

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_least_squares_are_found() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(500, 6, generator=generator)
    wanted = torch.randn(6, 3, generator=generator)
    assert torch.allclose(fits.ridge(x, x @ wanted), wanted, atol=0.02)
    constant = torch.cat((x, torch.full((500, 1), 2.0)), 1)
    assert torch.allclose(constant @ fits.constant(constant), torch.ones(500), atol=0.05)


def test_what_is_whitened_varies_alike_in_all_directions() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5000, 4, generator=generator) @ torch.randn(4, 4, generator=generator)
    white = x @ fits.whiten(x.T @ x / len(x), 1e-6)
    assert torch.allclose(white.T @ white / len(x), torch.eye(4), atol=0.01)


def test_queries_and_keys_turn_as_those_of_the_model(tokenizer: Any) -> None:
    untold = build(Shape(), 1, texts(tokenizer))
    pool = Pool(Encoder(tokenizer), Random(3), 100, 12)
    batch = batches(pool, Stage((3, 3), (1, 2), 12, 0.3, 0.2), 1500)[0]
    turned = {0: torch.empty(0)}
    ids = batch.ids[:1, :40]
    with torch.no_grad():
        Forward(fused=False)(untold, ids, turned)
    attention, core = untold.model.layers[0].self_attn, untold.model
    x = _norm(core.embed_tokens(ids), core.layers[0].input_layernorm.weight).detach()
    rows = slice(64, 128)
    query, key = attention.q_proj.weight[rows].detach(), attention.k_proj.weight[rows].detach()
    found = fits.turned(x, query, key, core.rotary_emb.inv_freq)
    for ours, theirs in ((found[:, 0], turned[0][:, 1]), (found[:, 1], turned[0][:, 5])):
        assert (ours - theirs.float()).abs().mean() < 0.02 * ours.abs().mean()


def test_telling_finds_what_kinds_differ_in() -> None:
    generator = torch.Generator().manual_seed(1)
    kinds = torch.randint(0, 6, (3000,), generator=generator)
    x = torch.randn(3000, 10, generator=generator) * torch.tensor([9.0] * 8 + [0.1, 0.1])
    x[:, 8:] += torch.randn(6, 2, generator=generator)[kinds]
    rows = fits.telling(x, kinds, 2)
    assert rows[:, :8].abs().max() < 0.05 * rows[:, 8:].abs().max()


def test_telling_takes_kinds_that_never_come_and_as_many_rows_as_asked() -> None:
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    rows = fits.telling(x, 3 * torch.arange(50).remainder(2), 4)  # kinds 0 and 3
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
    of_x, of_y = fits.correlated(x, y)
    agree = [float(torch.corrcoef(torch.stack((x @ of_x[i], y @ of_y[i])))[0, 1]) for i in range(4)]
    assert min(agree[:2]) > 0.9
    assert max(agree[2:]) < 0.1


def test_fit_makes_a_head_look_where_it_is_told() -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 12, 16)
    x[:, 4, 0] = 8.0
    asks = torch.arange(12).expand(2, 12)
    told = [fits.Aim(x, asks, torch.where(asks > 4, 4, -1))]
    turn = torch.full((32,), 1e-6)
    query, key = fits.fit(0.1 * torch.randn(64, 16), 0.1 * torch.randn(64, 16), told, turn, 60, 0.02)
    found = scores(torch.stack((x @ query.T, x @ key.T), 1), 0, asks, 0.125)
    assert (found.argmax(-1)[:, 5:] == 4).all()


def test_fit_asks_nothing_where_a_place_has_nowhere_to_look() -> None:
    x = torch.randn(1, 6, 8)
    nowhere = torch.full((1, 6), -1)
    start = torch.zeros(64, 8)
    aims = [fits.Aim(x, torch.arange(6)[None], nowhere)]
    query, key = fits.fit(start, start, aims, torch.full((32,), 0.1), 3, 0.02)
    assert not query.any()
    assert not key.any()
    assert not query.requires_grad


def test_fit_tells_apart_what_follows_the_same_token() -> None:
    """Of two places that follow token 7 the one whose word has the beat of the asking place."""
    torch.manual_seed(1)
    ids = torch.tensor([[1, 7, 3, 7, 4, 7, 9]])
    x = torch.randn(1, 7, 24)
    x[0, 5, :4], x[0, 4, 4:8] = 3.0, 3.0
    aim = fits.Aim(x, torch.tensor([[5]]), torch.tensor([[4]]), ids)
    turn = torch.full((32,), 1e-6)
    query, key = fits.fit(0.1 * torch.randn(64, 24), 0.1 * torch.randn(64, 24), [aim], turn, 40, 0.02)
    found = scores(torch.stack((x @ query.T, x @ key.T), 1), 0, aim.asks, 0.125)[0, 0]
    assert found[4] > found[2] + 2


def test_classes_are_told_by_products_with_a_table() -> None:
    torch.manual_seed(1)
    kinds = torch.randint(0, 9, (800,))
    x = torch.randn(9, 40)[kinds] + 0.2 * torch.randn(800, 40)
    table = torch.randn(9, 20)
    value, out = fits.classes(x, kinds, table - table.mean(0), 150)
    found = x @ value.T @ out.T @ table.T
    assert (found.argmax(-1) == kinds).float().mean() > 0.95
    assert (out.T @ (table - table.mean(0)).T).mean(1).abs().max() < 1e-3


def test_fit_goes_on_until_what_is_wanted_leads_by_the_margin() -> None:
    torch.manual_seed(1)
    x = torch.randn(1, 12, 16)
    aim = fits.Aim(x, torch.arange(5, 12)[None], torch.full((1, 7), 4))
    turn, first, second = torch.full((32,), 1e-6), 0.1 * torch.randn(64, 16), 0.1 * torch.randn(64, 16)
    leads = []
    for margin in (0.0, 6.0):
        query, key = fits.fit(first, second, [aim], turn, 60, 0.02, margin)
        found = scores(torch.stack((x @ query.T, x @ key.T), 1), 0, aim.asks, 0.125)
        leads.append(float((found[..., 4] - found[..., :4].max(-1).values).min()))
    assert leads[1] > leads[0] + 1


def test_fit_leaves_where_some_places_look_as_it_is() -> None:
    torch.manual_seed(1)
    x = torch.randn(1, 12, 16)
    asks, stays = torch.arange(5, 9)[None], torch.arange(9, 12)[None]
    turn = torch.full((32,), 1e-6)
    start = (0.4 * torch.randn(64, 16), 0.4 * torch.randn(64, 16))

    def looks(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return scores(torch.stack((x @ query.T, x @ key.T), 1), 0, stays, 0.125).softmax(-1)

    moved = []
    for kept in (None, stays):
        aim = fits.Aim(x, asks, torch.full((1, 4), 4), stays=kept)
        query, key = fits.fit(*start, [aim], turn, 80, 0.02)
        found = scores(torch.stack((x @ query.T, x @ key.T), 1), 0, asks, 0.125)
        assert (found.argmax(-1) == 4).all()
        moved.append(float((looks(query, key) - looks(*start)).abs().sum()))
    assert moved[1] < 0.3 * moved[0]
