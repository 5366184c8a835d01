"""Train the model: `train.py RUN`, where RUN is a folder; what is there already is gone on with.

RUN gets the tokenizer, `checkpoint.pt` and `curve.jsonl`: every 25 steps the losses and how often the model
and its helping heads were right. Stages grow harder as soon as the right sentence is chosen often enough.
`--begin FOLDER` begins with a model that was exported; its helping heads are not in there, and learn first.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer
from tools.nano.batches import Batch, batches, cut
from tools.nano.forward import DEVICE, FAST, Forward
from tools.nano.items import Item, Pool, Stage
from tools.nano.looks import hold, look_losses, turned_layers
from tools.nano.model import Heads, Shape, build
from tools.nano.muon import Muon
from tools.nano.tokenizer import Encoder, texts
from tools.nano.tokenizer import train as train_tokenizer
from tools.nano.written import passages
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

STAGES = (
    Stage((2, 2), (1, 1), 8, 0.0, 0.0),
    Stage((2, 3), (1, 2), 10, 0.2, 0.0),
    Stage((3, 5), (1, 2), 14, 0.3, 0.02),
    Stage((3, 6), (1, 3), 20, 0.4, 0.04),
    Stage((2, 8), (1, 5), 28, 0.4, 0.1, copies=1),
    Stage((1, 8), (1, 10), 36, 0.5, 0.1, copies=2),
)
_EASY = Stage((1, 4), (1, 3), 36, 0.4, 0.1, copies=1)
_WRITTEN = Stage((4, 8), (1, 1), 36, 0.7, 0.1, copies=4, written=True)
_MIX = (_EASY, _EASY, _EASY, STAGES[-2], STAGES[-1], _WRITTEN, _WRITTEN)
"""What the last stage is made of: short prompts have more words of answers per second; long ones are used."""
_DOCS = Path(__file__).parents[2] / "docs"
_RIGHT = (0.9, 0.8, 0.8, 0.8, 0.9)  # of the answers of 25 steps, twice, and the next stage begins
_REPORT = 25
_SAVE = 100
_AGAIN = 4  # batches of what failed, before it comes again
_RARE = torch.tensor(4.0)
_TABLE = 0.1
_HEADS_STEPS, _HEADS_RATE = 120, 0.01
_WEIGHTS = {"owner": 0.5, "flag": 1.0, "share": 1.0, "score": 0.5, "point": 2.0, "copy": 1.0}
_LOOKS = 1.5
_COPY = 5.0  # while layers below are held, a copy is what there is to learn


def losses(
    hidden: list[Tensor], model: Any, heads: Heads, batch: Batch
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """What is minimised, and what share was right; `hidden` are the states of `Forward`.

    `owner`: after layer 1 each token knows its sentence; `flag`: after layer 3 the end of a word whether it
    is in the question; after layer 4 the end of a sentence how much of the question it has (`share`), after
    layer 5 whether it answers (`score`); `point` and `copy`: the model's own answer, first token and others.
    """
    rows = torch.arange(len(batch.ids), device=batch.ids.device)
    inside, known = batch.owner >= 0, batch.flags >= 0
    truth = batch.flags[known].float()
    some = max(1, len(truth))  # a batch may hold nothing but items without passages
    owner = heads.owner(hidden[0])[inside]
    flag = heads.flag(hidden[2])[known].squeeze(-1)
    share = heads.share(hidden[3][rows[:, None], batch.ends]).squeeze(-1)[batch.has_end]
    shares = batch.shares[batch.has_end]
    score = heads.score(hidden[4][rows[:, None], batch.ends]).squeeze(-1).masked_fill(~batch.has_end, -1e4)
    score = torch.cat((score, heads.none.expand(len(rows), 1)), 1)
    table = model.lm_head.weight.to(FAST)
    point = functional.linear(hidden[-1][rows, batch.start - 1], table).float()
    first = batch.ids[rows, batch.start]
    copied = functional.linear(hidden[-1][batch.copy], table).float()
    follows = batch.ids[:, 1:][batch.copy[:, :-1]]
    found = {
        "owner": functional.cross_entropy(owner, batch.owner[inside], reduction="sum")
        / max(1, int(inside.sum())),
        "flag": functional.binary_cross_entropy_with_logits(
            flag, truth, pos_weight=_RARE.to(flag.device), reduction="sum"
        )
        / some,
        "share": functional.binary_cross_entropy_with_logits(share, shares, reduction="sum")
        / max(1, len(share)),
        "score": functional.cross_entropy(score, batch.gold),
        "point": functional.cross_entropy(point, first),
        "copy": functional.cross_entropy(copied, follows),
    }
    with torch.no_grad():
        copies = batch.copy.nonzero()[:, 0]
        missed = torch.cat((rows[point.argmax(-1) != first], copies[copied.argmax(-1) != follows]))
        batch.note(missed.unique().tolist())
        right = {
            "owner": owner.argmax(-1) == batch.owner[inside],
            "flag": (flag > 0) == (truth > 0),
            "share": (share.sigmoid() - shares).abs() < 0.1,
            "score": score.argmax(-1) == batch.gold,
            "point": point.argmax(-1) == first,
            "copy": copied.argmax(-1) == follows,
        }
        return found, {name: hit.float().sum().item() / max(1, len(hit)) for name, hit in right.items()}


class Run:
    """A training run in a folder."""

    def __init__(
        self, folder: Path, seed: int, stage: int, *, fused: bool = True, begin: Path | None = None
    ) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = folder / "tokenizer.json"
        if not tokenizer.exists():
            if begin is None:
                train_tokenizer(_DOCS).save(str(tokenizer))
            else:
                shutil.copy(begin / tokenizer.name, tokenizer)
        read = Tokenizer.from_file(str(tokenizer))
        self.encoder = Encoder(read)
        self.shape = Shape()
        self._forward = Forward(fused)
        self.model = build(self.shape, seed, texts(read)).to(DEVICE)
        self.heads = Heads(self.shape.width).to(DEVICE)
        self.optimizers = _optimizers(self.model, self.heads)
        self.step, self.stage, self.tokens, self.cpu_s = 0, stage, 0, 0.0
        if (folder / "checkpoint.pt").exists():
            self._load()
        elif begin is not None:
            given = LlamaForCausalLM.from_pretrained(begin, dtype=torch.float32)
            self.model.load_state_dict(given.state_dict())
        self.rng = Random(seed * 1_000_003 + self.step)
        self._held = False

    def hold(self, layers: int, pace: float = 0.0) -> None:
        """Train neither embeddings nor where the heads of `looks` look, and of the first `layers` layers
        nothing but matrices, at `pace` of the rate, if at all."""
        core = self.model.model
        core.embed_tokens.requires_grad_(False)
        for at, layer in enumerate(core.layers[:layers]):
            for p in layer.parameters():
                p.requires_grad_(pace > 0 and p.ndim == 2)
            self.optimizers[0].param_groups[at]["pace"] = pace
        self._held = True

    def _load(self) -> None:
        saved = torch.load(self._folder / "checkpoint.pt", weights_only=True, map_location=DEVICE)
        self.model.load_state_dict(saved["model"])
        self.heads.load_state_dict(saved["heads"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step, self.stage, self.tokens, self.cpu_s = saved["progress"]

    def teach_heads(self, steps: int, tokens: int) -> None:
        """Train nothing but the helping heads."""
        optimizer = torch.optim.AdamW(self.heads.parameters(), lr=_HEADS_RATE, weight_decay=0.0)
        pool = Pool(self.encoder, self.rng, 3000, STAGES[self.stage].words)
        ready: list[Batch] = []
        for _ in range(steps):
            ready = ready or batches(pool, STAGES[self.stage], tokens)
            batch = ready.pop().to(DEVICE)
            with torch.no_grad():
                hidden = self._forward(self.model, batch.ids)
            found, _ = losses(hidden, self.model, self.heads, batch)
            optimizer.zero_grad()
            torch.stack([found[name] for name in ("owner", "flag", "share", "score")]).sum().backward()
            optimizer.step()

    def save(self) -> None:
        """Replace the checkpoint, whole or not at all."""
        draft = self._folder / "checkpoint.draft"
        torch.save(
            {
                "model": self.model.state_dict(),
                "heads": self.heads.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "progress": (self.step, self.stage, self.tokens, self.cpu_s),
                "shape": dataclasses.asdict(self.shape),
            },
            draft,
        )
        draft.rename(self._folder / "checkpoint.pt")

    def train(self, steps: int, tokens: int, rate: float) -> None:
        """Go on to step `steps`, in batches of `tokens`; after a fifth of it `rate` falls towards nothing.

        What was not answered as it was to be comes once more, when there are some batches of it.
        """
        last, sums, pool, good = time.process_time(), Counter[str](), None, 0
        ready: list[Batch] = []
        failed: list[Item] = []
        while self.step < steps:
            if sum(len(item.ids) for item in failed) > _AGAIN * tokens:
                ready += cut(failed, tokens)
                self.rng.shuffle(ready)
            if not ready:
                last_one = self.stage == len(STAGES) - 1
                if pool is None or self.rng.random() < 0.25:
                    told = passages() if last_one else ()
                    pool = Pool(self.encoder, self.rng, 3000, STAGES[self.stage].words, told)
                ready = batches(pool, self.rng.choice(_MIX) if last_one else STAGES[self.stage], tokens)
                self.rng.shuffle(ready)
            batch = ready.pop()
            sums.update(self.update(batch, rate * _pace(self.step, steps)))
            failed += batch.failed
            self.step += 1
            now = time.process_time()
            self.cpu_s, last = self.cpu_s + now - last, now
            if self.step % _REPORT == 0:
                point = self._report(sums)
                good = good + 1 if point > _RIGHT[min(self.stage, len(_RIGHT) - 1)] else 0
                sums.clear()
                if good == 2 and self.stage + 1 < len(STAGES):
                    self.stage, good, ready, pool = self.stage + 1, 0, [], None
            if self.step % _SAVE == 0 or self.step == steps:
                self.save()

    def update(self, batch: Batch, rate: float) -> dict[str, float]:
        """One step; the losses and shares of `losses`."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["pace"]
        batch = batch.to(DEVICE)
        turned = turned_layers()
        hidden = self._forward(self.model, batch.ids, turned)
        found, right = losses(hidden, self.model, self.heads, batch)
        scale = self.model.model.layers[0].self_attn.scaling
        looks, seen = look_losses(turned, batch, scale)
        right |= {n: hit.float().sum().item() / max(1, len(hit)) for n, hit in seen.items()}
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        weights = _WEIGHTS | {"copy": _COPY} if self._held else _WEIGHTS
        whole = torch.stack([weights[name] * value for name, value in found.items()]).sum()
        (whole + _LOOKS * torch.stack(list(looks.values())).sum()).backward()
        if self._held:
            hold(self.model)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.tokens += batch.ids.numel()
        return {f"loss_{n}": v.item() for n, v in found.items()} | right | {"chance": batch.chance}

    def _report(self, sums: Counter[str]) -> float:
        mean = {name: round(value / _REPORT, 3) for name, value in sums.items()}
        progress = {"step": self.step, "cpu_min": round(self.cpu_s / 60, 2), "at": time.strftime("%H:%M:%S")}
        line = json.dumps(progress | {"stage": self.stage, "Mtokens": round(self.tokens / 1e6, 2)} | mean)
        with (self._folder / "curve.jsonl").open("a", encoding="utf-8") as curve:
            curve.write(line + "\n")
        print(line, flush=True)
        return mean["point"]


def _optimizers(model: Any, heads: Heads) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside, AdamW for the others; `pace` is what a group takes of the rate.

    Embeddings take little: AdamW's steps have one size however small the gradient is, and the tied output
    pushes all tokens that are not the answer, so at the full rate those rarely seen drift off together.
    """
    named = list(model.named_parameters())
    inner = [[p for p in layer.parameters() if p.ndim == 2] for layer in model.model.layers]
    table = [p for n, p in named if "embed" in n]
    scales = [*(p for _, p in named if p.ndim != 2), *heads.parameters()]
    return [
        Muon([{"params": layer, "pace": 1.0} for layer in inner], weight_decay=0.05),
        torch.optim.AdamW(
            [{"params": scales, "pace": 1.0}, {"params": table, "pace": _TABLE}],
            betas=(0.9, 0.98),
            weight_decay=0.0,
            fused=True,
        ),
    ]


def _pace(step: int, steps: int) -> float:
    begin = steps // 5
    return min(1.0, (step + 1) / 50, max(0.02, 1 - (step - begin) / (steps - begin)))


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--stage", type=int, default=0, help="where a new run begins")
    parser.add_argument("--begin", type=Path, help="what a new run begins with, written by export.py")
    parser.add_argument("--hold", type=int, default=0, help="layers that stay as they are, if any")
    parser.add_argument("--pace", type=float, default=0.0, help="what they take of the rate all the same")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.begin is not None and not (args.begin / "model.safetensors").is_file():
        parser.error(f"--begin {args.begin} has no model.safetensors; valid: a folder that export.py wrote")
    torch.set_num_threads(args.threads)
    run = Run(args.run, args.seed, args.stage, begin=args.begin)
    if args.hold:
        run.hold(args.hold, args.pace)
    if args.begin is not None and not run.step:
        run.teach_heads(_HEADS_STEPS, args.tokens)
    run.train(args.steps, args.tokens, args.rate)


if __name__ == "__main__":
    main()
