"""The small model before it is trained: its start, its training step, and the folder that is written."""

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from tools.nano import export
from tools.nano.batches import batches
from tools.nano.evaluate import Reader, generated_report
from tools.nano.forward import Forward
from tools.nano.items import Item, Pool, Stage
from tools.nano.layout import MARKS, PASSAGES
from tools.nano.looks import MATCH
from tools.nano.model import Heads, Shape, build
from tools.nano.muon import Muon
from tools.nano.tokenizer import Encoder, texts
from tools.nano.train import STAGES, Run
from transformers import AutoModelForCausalLM

STAGE = Stage((3, 3), (1, 2), 12, 0.3, 0.0)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return build(Shape(), 1, texts(tokenizer))


@pytest.fixture(scope="module")
def items(tokenizer: Any) -> list[Item]:
    pool = Pool(Encoder(tokenizer), Random(1), 100, 12)
    return [pool.item(STAGE) for _ in range(3)]


def attention(model: Any, item: Item, layer: int, head: int) -> torch.Tensor:
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model.model(input_ids=torch.tensor([item.ids]), output_attentions=True)
    model.set_attn_implementation("sdpa")
    return out.attentions[layer][0, head]


def test_the_model_is_small_and_a_plain_llama(model: Any) -> None:
    assert sum(p.numel() for p in model.parameters()) < 5_000_000
    assert model.config.model_type == "llama"
    assert model.config.tie_word_embeddings


def test_it_starts_with_the_two_tokens_before_and_the_mark_of_the_sentence(
    model: Any, items: list[Item]
) -> None:
    for item in items:
        before, second, latest = (attention(model, item, 0, head) for head in range(3))
        assert before.diagonal(-1).mean() > 0.5
        assert second.diagonal(-2).mean() > 0.5
        first: dict[int, int] = {}
        for at, mark in enumerate(item.owner):
            if mark >= 0:
                first.setdefault(mark, at)
        hits = [latest[at, first[mark]] for at, mark in enumerate(item.owner) if mark >= 0]
        assert torch.stack(hits).mean() > 0.8


def test_it_starts_with_attention_for_the_tokens_of_the_question(model: Any, items: list[Item]) -> None:
    asked: list[float] = []
    others: list[float] = []
    for item in items:
        until = item.ids.index(PASSAGES)
        seen = attention(model, item, 1, 2)[:, 2:until].sum(-1)
        for at, mark in enumerate(item.owner):
            if mark >= 0:
                (asked if item.ids[at] in item.ids[2:until] else others).append(float(seen[at]))
    assert sum(asked) / len(asked) > 0.4
    assert sum(others) / len(others) < 0.15


def test_it_nearly_copies_before_it_is_trained(model: Any, items: list[Item]) -> None:
    hits = total = 0
    for item in items:
        with torch.no_grad():
            said = model(input_ids=torch.tensor([item.ids])).logits[0].argmax(-1)
        for at in range(item.start, len(item.ids) - 2):
            hits, total = hits + int(said[at] == item.ids[at + 1]), total + 1
    assert hits > 0.2 * total


def test_forms_of_one_word_begin_alike() -> None:
    rows = build(
        Shape(), 1, ["x", " serve", "Serves", "serving", " the", "The", " port"]
    ).model.embed_tokens.weight
    alike = torch.nn.functional.cosine_similarity
    for one, other in ((1, 2), (1, 3), (4, 5)):
        assert 0.4 < alike(rows[one], rows[other], dim=0) < 0.8
    assert abs(alike(rows[1], rows[6], dim=0)) < 0.3


def test_forward_computes_what_transformers_computes(model: Any, items: list[Item]) -> None:
    ids = torch.tensor([items[0].ids])
    with torch.no_grad():
        wanted = model.model(input_ids=ids, output_hidden_states=True).hidden_states
        found = Forward(fused=False)(model, ids)
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, (*wanted[1:-1], None, wanted[-1]), strict=True):
        if theirs is not None:
            assert (ours.float() - theirs).abs().mean() < 0.05 * theirs.abs().mean()


def test_what_is_exported_loads_and_says_the_same(tmp_path: Path, tokenizer: Any, items: list[Item]) -> None:
    shape = Shape()
    model = build(shape, 2, texts(tokenizer))
    export.write(model.state_dict(), shape, tokenizer, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.tensor([items[0].ids])
    with torch.no_grad():
        wanted, found = (m.to(torch.bfloat16).float()(input_ids=ids).logits for m in (model, loaded))
    assert torch.equal(wanted, found)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert {"generation_config.json", "model.safetensors", "tokenizer.json"} <= {
        f.name for f in tmp_path.iterdir()
    }
    reader = Reader(tmp_path, longest=4)
    said = reader.answers(["Say hello.", "Passages:\n\n[1] (a.md)\nA port.\n\nQuestion: Which?"])
    assert len(said) == 2


def test_a_model_that_is_too_large_is_not_exported(tmp_path: Path, tokenizer: Any) -> None:
    shape = Shape(layers=12)
    with pytest.raises(ValueError, match="12000000"):
        export.write(build(shape, 2, texts(tokenizer)).state_dict(), shape, tokenizer, tmp_path)


def test_the_report_of_an_untrained_model_has_all_figures(tmp_path: Path, tokenizer: Any) -> None:
    shape = Shape(mlp=64)
    export.write(build(shape, 2, texts(tokenizer)).state_dict(), shape, tokenizer, tmp_path)
    report = generated_report(Reader(tmp_path, longest=2), Encoder(tokenizer), items=2)
    assert set(report) == {"3", "5", "8", "refusal"}
    assert report["5"]["chance_citation"] == 0.2
    assert 0 <= report["refusal"]["recall"] <= 1


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_muon_steps_as_that_of_torch_does(shape: tuple[int, int]) -> None:
    torch.manual_seed(4)
    start = torch.randn(shape)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    made: list[Any] = [
        Muon([ours], weight_decay=0.05),
        torch.optim.Muon([theirs], weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(3):
        grad = torch.randn(shape)
        for parameter, optimizer in zip((ours, theirs), made, strict=True):
            parameter.grad = grad.clone()
            optimizer.param_groups[0]["lr"] = 0.02
            optimizer.step()
    assert (ours - start).abs().mean() > 0.005
    assert (ours - theirs).abs().mean() < 0.03 * (ours - start).abs().mean()


def test_a_run_learns_saves_and_goes_on(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    run = Run(tmp_path, seed=1, stage=0, fused=False)
    run.train(steps=25, tokens=128, rate=1e-3)
    lines = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [25]
    assert {"point", "chance", "loss_copy", "cpu_min", "stage"} <= set(lines[0])
    again = Run(tmp_path, seed=1, stage=0, fused=False)
    assert (again.step, again.stage, again.tokens) == (25, 0, run.tokens)
    assert torch.equal(again.model.lm_head.weight, run.model.lm_head.weight)
    again.train(steps=26, tokens=128, rate=1e-3)
    assert Run(tmp_path, seed=1, stage=0, fused=False).step == 26


def test_a_run_begins_with_an_exported_model_and_teaches_its_heads(tmp_path: Path, tokenizer: Any) -> None:
    given = build(Shape(), 3, texts(tokenizer))
    export.write(given.state_dict(), Shape(), tokenizer, tmp_path / "given")
    run = Run(tmp_path / "run", seed=1, stage=0, fused=False, begin=tmp_path / "given")
    before = run.heads.owner.weight.clone()
    assert torch.allclose(run.model.lm_head.weight.cpu(), given.lm_head.weight, atol=0.01)
    assert (tmp_path / "run/tokenizer.json").exists()
    kept = run.model.lm_head.weight.clone()
    run.teach_heads(steps=1, tokens=128)
    assert not torch.equal(run.heads.owner.weight, before)
    assert torch.equal(run.model.lm_head.weight, kept)


def test_a_few_steps_on_one_batch_lower_the_loss(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    run = Run(tmp_path, seed=1, stage=0, fused=False)
    batch = batches(Pool(run.encoder, Random(1), 100, 8), STAGES[0], 128)[0]
    told = [run.update(batch, 1e-3) for _ in range(8)]
    for name in ("owner", "flag", "point", "copy"):
        assert told[-1][f"loss_{name}"] < told[0][f"loss_{name}"]


def test_a_step_tells_which_items_it_got_wrong(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    run = Run(tmp_path, seed=1, stage=0, fused=False)
    batch = batches(Pool(run.encoder, Random(1), 100, 8), STAGES[0], 256)[0]
    run.update(batch, 0.0)
    rows = range(len(batch.ids))
    with torch.no_grad():
        said = run.model(input_ids=batch.ids).logits.argmax(-1)
    wrong = [
        row
        for row in rows
        if said[row, batch.start[row] - 1] != batch.ids[row, batch.start[row]]
        or (said[row, :-1] != batch.ids[row, 1:])[batch.copy[row, :-1]].any()
    ]
    assert wrong
    assert [item.ids for item in batch.failed] == [
        batch.ids[row, : len(item.ids)].tolist() for row, item in zip(wrong, batch.failed, strict=True)
    ]


def test_what_failed_comes_once_more(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    run = Run(tmp_path, seed=1, stage=0, fused=False)
    seen: list[tuple[int, ...]] = []

    def update(batch: Any, rate: float) -> dict[str, float]:
        seen.extend(tuple(row) for row in batch.ids.tolist())
        batch.note([0])
        return {"point": 0.0}

    monkeypatch.setattr(run, "update", update)
    run.train(steps=60, tokens=128, rate=1e-3)
    texts_of = Counter(tuple(i for i in row if i) for row in seen)
    assert 2 in texts_of.values()
    assert max(texts_of.values()) == 2


def test_what_is_held_stays_and_the_rest_learns(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    run = Run(tmp_path, seed=1, stage=0, fused=False)
    run.hold(4)
    before = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    batch = batches(Pool(run.encoder, Random(1), 100, 8), STAGES[0], 128)[0]
    for _ in range(2):
        run.update(batch, 1e-3)
    moved = {name for name, weight in run.model.state_dict().items() if not torch.equal(weight, before[name])}
    assert not any("embed" in name or "layers.2" in name for name in moved)
    assert {f"model.layers.{at}.mlp.down_proj.weight" for at in (4, 5)} <= moved
    layer, head = MATCH[0]
    name, rows = f"model.layers.{layer}.self_attn.q_proj.weight", slice(head * 64, head * 64 + 64)
    now = run.model.state_dict()[name]
    assert torch.allclose(now[rows], before[name][rows], rtol=1e-3)  # but for the decay of weights
    assert not torch.allclose(now[128:], before[name][128:], rtol=1e-3)


def test_what_is_held_at_a_pace_moves_as_much_less(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    run = Run(tmp_path, seed=1, stage=0, fused=False)
    run.hold(2, 0.1)
    before = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    run.update(batches(Pool(run.encoder, Random(1), 100, 8), STAGES[0], 128)[0], 1e-3)
    moved = {n: (weight - before[n]).abs().mean().item() for n, weight in run.model.state_dict().items()}
    assert moved["model.embed_tokens.weight"] == 0
    assert moved["model.layers.1.input_layernorm.weight"] == 0
    for part in ("mlp.down_proj", "self_attn.v_proj"):
        slow, fast = (moved[f"model.layers.{at}.{part}.weight"] for at in (1, 3))
        assert 0.05 * fast < slow < 0.2 * fast


def test_stages_grow_up_to_eight_passages() -> None:
    sizes = [stage.passages[1] * stage.sentences[1] for stage in STAGES]
    assert sizes == sorted(sizes)
    assert STAGES[0].passages == (2, 2)
    assert STAGES[-1].passages[1] == 8
    assert sizes[-1] <= MARKS


def test_heads_are_not_part_of_the_model(model: Any) -> None:
    own = {id(p) for p in model.parameters()}
    assert not own & {id(p) for p in Heads(256).parameters()}
