"""Where the heads that match look, fitted anew; and the command that sets the heads of a folder."""

import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from tools.nano import export, wiring
from tools.nano.forward import Forward
from tools.nano.items import Stage
from tools.nano.looks import MATCH, look_losses, turned_layers
from tools.nano.model import Shape, build
from tools.nano.tokenizer import Encoder, texts
from transformers import LlamaForCausalLM

STAGE = Stage((3, 3), (1, 2), 12, 0.3, 0.2, copies=2)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def found(tokenizer: Any) -> wiring.Sample:
    return wiring.sample(
        build(Shape(), 1, texts(tokenizer)), Encoder(tokenizer), Random(2), (STAGE,), (16,), fused=False
    )


def share(found: wiring.Sample) -> dict[str, float]:
    hits: dict[str, list[float]] = {}
    for batch in found.batches:
        turned = turned_layers()
        with torch.no_grad():
            Forward(fused=False)(found.model, batch.ids, turned)
        for name, hit in look_losses(turned, batch, 64**-0.5)[1].items():
            hits.setdefault(name, []).extend(hit.float().tolist())
    return {name: sum(all_of) / len(all_of) for name, all_of in hits.items()}


def test_a_match_is_fitted_anew_and_all_else_stays(found: wiring.Sample) -> None:
    wiring._wire_match(found, 5)  # hardly fitted
    before = {name: weight.clone() for name, weight in found.model.state_dict().items()}
    first = share(found)
    wiring.rematch(found, steps=60)
    then = share(found)
    assert then["match0"] > first["match0"] + 0.1
    assert then["match0"] == then["match1"]
    assert then["latest"] == first["latest"]
    layer = MATCH[0][0]
    rows = torch.zeros(256, dtype=torch.bool)
    for _, head in MATCH:
        rows[head * 64 : head * 64 + 64] = True
    for name, weight in found.model.state_dict().items():
        if name in {f"model.layers.{layer}.self_attn.{part}.weight" for part in ("q_proj", "k_proj")}:
            assert not torch.equal(weight[rows], before[name][rows])
            assert torch.equal(weight[~rows], before[name][~rows])
        else:
            assert torch.equal(weight, before[name])


def test_items_to_match_copy_more_than_their_answer_and_some_are_written() -> None:
    assert all(stage.copies for stage in wiring._COPIED)
    assert [stage.written for stage in wiring._COPIED] == [False, False, True]


def test_a_sample_takes_passages_that_people_wrote(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told = [["The first port is open.", "A second lamp burns."], ["Nobody reads the third page."]]
    monkeypatch.setattr(wiring, "passages", lambda: told)
    stage = Stage((1, 2), (1, 1), 36, 0.7, 0.0, written=True)
    encoder = Encoder(tokenizer)
    found = wiring.sample(None, encoder, Random(4), (stage,), (4,), fused=False)
    words = {tokenizer.decode(row.tolist()).strip() for batch in found.batches for row in batch.ids}
    assert words
    assert all(any(known in text for known in ("port", "lamp", "page")) for text in words)


@pytest.mark.parametrize(("option", "sizes"), [([], (4500, 500)), (["--match"], (2600, 800, 300))])
def test_a_folder_becomes_a_folder_with_the_heads_set(
    option: list[str], sizes: tuple[int, ...], tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def sample(
        model: Any, encoder: Encoder, rng: Random, stages: Any, sizes: tuple[int, ...], *, fused: bool
    ) -> Any:
        asked.append((len(stages), sizes, fused))
        return wiring.Sample(model, [], Forward(fused=False))

    def wire(found: wiring.Sample) -> None:
        with torch.no_grad():
            found.model.model.layers[3].self_attn.q_proj.weight.zero_()

    monkeypatch.setattr(wiring, "sample", sample)
    monkeypatch.setattr(wiring, "rematch" if option else "wire", wire)
    untold = build(Shape(), 1, texts(tokenizer))
    export.write(untold.state_dict(), Shape(), tokenizer, tmp_path / "given")
    monkeypatch.setattr(sys, "argv", ["wiring", str(tmp_path / "given"), str(tmp_path / "out"), *option])
    wiring.main()
    given, out = (LlamaForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("given", "out"))
    changed = {name for name in given if not torch.equal(given[name], out[name])}
    assert changed == {"model.layers.3.self_attn.q_proj.weight"}
    assert asked == [(len(sizes), sizes, True)]  # a match fitted on 400 items held on those alone
    assert (tmp_path / "out/chat_template.jinja").is_file()
