"""Write a checkpoint as a model folder that transformers and vLLM load as it is: `export.py RUN FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tools.nano.layout import SPECIAL
from tools.nano.model import Shape, config_of
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

__all__ = ["export"]

_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
_LIMIT = 12_000_000


def export(run: Path, folder: Path) -> None:
    """The weights as bfloat16, tokenizer, chat template and generation settings; no head of the training."""
    saved: dict[str, Any] = torch.load(run / "checkpoint.pt", weights_only=True, map_location="cpu")
    write(saved["model"], Shape(**saved["shape"]), Tokenizer.from_file(str(run / "tokenizer.json")), folder)


def write(weights: dict[str, torch.Tensor], shape: Shape, tokenizer: Tokenizer, folder: Path) -> None:
    """The folder. Raises ValueError where it is larger than the model may be."""
    model = LlamaForCausalLM(config_of(shape))
    model.load_state_dict(weights)
    model.generation_config = GenerationConfig(
        do_sample=False, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        pad_token=SPECIAL[0],
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    fast.chat_template = _TEMPLATE.read_text(encoding="utf-8")
    fast.save_pretrained(folder)
    size = sum(file.stat().st_size for file in folder.iterdir())
    if size > _LIMIT:
        raise ValueError(f"{folder} has {size} bytes; the model may have {_LIMIT}.")


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]))
    print(json.dumps({file.name: file.stat().st_size for file in sorted(Path(sys.argv[2]).iterdir())}))
