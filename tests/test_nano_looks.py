"""Heads that have a place to look at: what is asked of them in training."""

from random import Random
from typing import Any

import pytest
import torch
from tools.nano.batches import Batch, batches
from tools.nano.items import Pool, Stage
from tools.nano.layout import BEATS, END, FIRST_B, FIRST_E, FIRST_S, MARKS, beaten
from tools.nano.looks import (
    BEFORE,
    ITSELF,
    LATEST,
    MATCH,
    hold,
    latest,
    led,
    look_losses,
    scores,
    turned_layers,
)
from tools.nano.model import Shape, build
from tools.nano.tokenizer import Encoder, texts
from torch import Tensor

STAGE = Stage((3, 3), (1, 2), 12, 0.3, 0.2)
ALL = (LATEST, BEFORE, *MATCH)
NAMES = ("latest", "before", "match0", "match1")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def batch(tokenizer: Any) -> Batch:
    return batches(Pool(Encoder(tokenizer), Random(3), 100, 12), STAGE, 1500)[0]


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return build(Shape(), 1, texts(tokenizer))


# ---- what is to be copied ----------------------------------------------------------------------------------


def test_a_copy_asks_for_the_token_that_is_to_come(batch: Batch) -> None:
    for row, gold in enumerate(batch.gold.tolist()):
        real = batch.places[row] >= 0
        if gold == batch.ends.shape[1]:
            assert not real.any()  # a refusal copies nothing
            continue
        asks, places = batch.asks[row][real], batch.places[row][real]
        assert asks[0] == batch.start[row]
        assert torch.equal(batch.ids[row][asks + 1], batch.ids[row][places])
        assert int(batch.ids[row][asks[-1] + 2]) == END
        assert (places < asks).all()


def test_a_place_to_copy_from_lies_in_the_sentence_of_the_answer(batch: Batch) -> None:
    for row in range(len(batch.ids)):
        places = batch.places[row][batch.places[row] >= 0]
        marks = batch.owner[row][places]
        assert (marks == batch.ids[row, batch.start[row]] - FIRST_S).all()
        assert (places.diff() == 1).all()


# ---- the latest beat ---------------------------------------------------------------------------------------


def test_the_latest_beat_is_the_token_itself_at_last() -> None:
    word, mark, beat, end = 900, FIRST_S + 4, FIRST_B + BEATS - 1, FIRST_E + 4
    ids = torch.tensor([[word, mark, word, beat, word, word, end, mark]])
    assert latest(ids).tolist() == [[-1, 1, 1, 3, 3, 3, 3, 7]]


@pytest.mark.parametrize(
    ("token", "counts"),
    [
        (FIRST_S - 1, False),
        (FIRST_S, True),
        (FIRST_S + MARKS - 1, True),
        (FIRST_E, False),
        (FIRST_B - 1, False),
        (FIRST_B, True),
        (FIRST_B + BEATS - 1, True),
        (FIRST_B + BEATS, False),
    ],
)
def test_beats_and_marks_that_begin_count_and_no_others(token: int, counts: bool) -> None:
    assert latest(torch.tensor([[900, token, 900]])).tolist() == [[-1, *([1, 1] if counts else [-1, -1])]]


def test_each_row_has_its_own_latest_beat() -> None:
    first, second = FIRST_B + 3, FIRST_B + 9
    ids = torch.tensor([[first, 900, second, 900], [900, 900, 900, first], [second, first, 900, 900]])
    assert latest(ids).tolist() == [[0, 0, 2, 2], [-1, -1, -1, 3], [0, 1, 1, 1]]


def test_what_comes_again_inside_a_word_has_another_latest_beat(tokenizer: Any) -> None:
    """So that the token and its beat together are one place."""
    text = beaten("At 26.0.0.1 or 7,000,000 a --b-c 5555", 180)
    ids = torch.tensor([tokenizer.encode("<|s3|>" + text).ids])
    keys = list(zip(ids[0].tolist(), ids[0][latest(ids)[0]].tolist(), strict=True))
    assert len(set(keys)) == len(keys)
    plain = torch.tensor([tokenizer.encode("<|s3|> At 26.0.0.1").ids])
    assert len(set(plain[0].tolist())) < plain.shape[1]


# ---- scores ------------------------------------------------------------------------------------------------


def test_nobody_is_asked_to_look_ahead() -> None:
    turned = torch.randn(2, 4, 9, 8)
    asks = torch.tensor([[0, 5], [3, 8]])
    found = scores(turned, 1, asks, 0.5)
    assert found.shape == (2, 2, 9)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        until = int(asks[row, column]) + 1
        assert (found[row, column, until:] < -1e3).all()
        wanted = 0.5 * turned[row, 3, :until] @ turned[row, 1, until - 1]
        assert torch.allclose(found[row, column, :until], wanted, atol=1e-5)


def test_scores_are_of_float_whatever_the_states_are() -> None:
    turned = torch.randn(1, 2, 5, 8)
    asks = torch.tensor([[4]])
    found = scores(turned.to(torch.bfloat16), 0, asks, 1.0)
    assert found.dtype == torch.float32
    assert torch.allclose(found, scores(turned, 0, asks, 1.0), atol=0.2)


def test_what_leads_by_the_margin_still_leads_and_what_leads_by_less_does_not() -> None:
    found = torch.tensor([[1.0, 5.0, 0.0], [1.0, 2.0, 0.0]])
    places = torch.tensor([1, 1])
    assert led(found, places, 3.0).argmax(-1).tolist() == [1, 0]
    assert torch.equal(led(found, places, 0.0), found)
    assert found[0, 1] == 5


# ---- losses ------------------------------------------------------------------------------------------------


def _looking(batch: Batch, places: dict[tuple[int, int], Tensor]) -> dict[int, Tensor]:
    """Queries and keys of heads that look where `places` has it, for each place of each row."""
    rows, length = batch.ids.shape
    turned = turned_layers()
    for layer in turned:
        turned[layer] = torch.zeros(rows, 8, length, length)
        turned[layer][:, 4:] = 100 * torch.eye(length)
    for (layer, head), where in places.items():
        turned[layer][:, head].scatter_(2, where.clamp(min=0)[..., None], 1.0)
    return turned


def _right(batch: Batch) -> dict[tuple[int, int], Tensor]:
    at = torch.arange(batch.ids.shape[1]).expand_as(batch.ids)
    follows = torch.zeros_like(batch.ids)
    for row in range(len(batch.ids)):
        real = batch.places[row] >= 0
        follows[row, batch.asks[row][real]] = batch.places[row][real]
    return {LATEST: latest(batch.ids), BEFORE: at - 1, **dict.fromkeys(MATCH, follows)}


def test_layers_to_be_filled_are_those_that_losses_read(batch: Batch) -> None:
    turned = turned_layers()
    assert set(turned) == {layer for layer, _ in ALL}
    assert not any(part.numel() for part in turned.values())
    turned[LATEST[0]] = torch.ones(1)
    assert not turned_layers()[LATEST[0]].numel()  # new ones each time
    assert ITSELF not in ALL  # it has no loss: it looks at itself whatever the text is


def test_heads_that_look_right_lose_nothing(batch: Batch) -> None:
    losses, right = look_losses(_looking(batch, _right(batch)), batch, 1.0)
    assert set(losses) == set(right) == set(NAMES)
    for name, loss in losses.items():
        assert float(loss) < 1e-3
        assert right[name].all()
        assert len(right[name])


@pytest.mark.parametrize(("name", "head"), [*zip(NAMES, ALL, strict=True)])
def test_a_head_that_looks_astray_loses_alone(batch: Batch, name: str, head: tuple[int, int]) -> None:
    good = _right(batch)
    losses, _ = look_losses(_looking(batch, good), batch, 1.0)
    elsewhere = torch.ones_like(batch.ids)  # the mark of the question: nothing is copied from there
    astray, wrong = look_losses(_looking(batch, good | {head: elsewhere}), batch, 1.0)
    assert float(astray[name]) > 10
    assert not wrong[name].any()
    for other in set(NAMES) - {name}:
        assert torch.equal(astray[other], losses[other])


def test_the_latest_beat_is_asked_for_at_both_ends_of_a_copy(batch: Batch) -> None:
    _, right = look_losses(_looking(batch, _right(batch)), batch, 1.0)
    copied = int((batch.places >= 0).sum())
    assert [len(right[name]) for name in NAMES] == [2 * copied, copied, copied, copied]


def test_a_loss_is_a_mean(batch: Batch) -> None:
    """Twice the same items lose what they lose once."""
    once = Batch.__new__(Batch)
    for name, value in vars(batch).items():
        setattr(once, name, torch.cat((value, value)) if isinstance(value, Tensor) else value)
    astray = _right(batch) | {BEFORE: torch.ones_like(batch.ids)}
    single, _ = look_losses(_looking(batch, astray), batch, 0.01)
    double, _ = look_losses(_looking(once, {k: torch.cat((v, v)) for k, v in astray.items()}), once, 0.01)
    for name in NAMES:
        assert float(single[name]) > 0
        assert torch.allclose(single[name], double[name], rtol=1e-4)


def test_losses_pull_at_the_heads_that_are_asked_and_no_others(batch: Batch) -> None:
    turned = {layer: part.requires_grad_() for layer, part in _looking(batch, {}).items()}
    losses, _ = look_losses(turned, batch, 1.0)
    torch.stack(list(losses.values())).sum().backward()
    for layer, part in turned.items():
        assert part.grad is not None
        asked = {head for of, head in ALL if of == layer}
        pulled = {head for head in range(4) if part.grad[:, head].any()}
        assert pulled == asked


def test_a_batch_that_copies_nothing_loses_nothing(tokenizer: Any) -> None:
    pool = Pool(Encoder(tokenizer), Random(3), 100, 12)
    none = Batch([pool._bare() for _ in range(2)], 96)
    losses, _ = look_losses(_looking(none, {}), none, 1.0)
    assert all(float(loss) == 0 for loss in losses.values())


# ---- what is held ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [*ALL, ITSELF])
def test_what_is_held_gets_no_gradient(model: Any, kept: tuple[int, int]) -> None:
    layer, head = kept
    attention = model.model.layers[layer].self_attn
    parts = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    for part in parts:
        part.weight.grad = torch.ones_like(part.weight)
    hold(model)
    rows = slice(head * 64, head * 64 + 64)
    for part in parts[:2]:
        assert not part.weight.grad[rows].any()
        free = {at for at in range(4) if (layer, at) not in (*ALL, ITSELF)}
        for at in free:
            assert part.weight.grad[at * 64 : at * 64 + 64].all()
    assert all(part.weight.grad.all() for part in parts[2:])  # what they say is learnt
    model.zero_grad()


def test_a_model_without_gradients_can_be_held(model: Any) -> None:
    model.zero_grad(set_to_none=True)
    hold(model)
    assert all(p.grad is None for p in model.parameters())
