"""The models of the embedding server: texts to vectors, or pairs of texts to scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final, Protocol

import numpy as np

from sage.common.errors import ConfigError, NotFoundError
from sage.middleware.engines.asks import Task
from sage.middleware.engines.batching import Text
from sage.middleware.engines.packed import PackedTransformer, can_pack, lay_out
from sage.middleware.engines.threads import Cores, ThreadTeam
from sage.middleware.engines.tokens import Tokens

__all__ = ["Model", "load_model"]

_GRAIN: Final = 32768  # elements below which torch uses one thread (at::internal::GRAIN_SIZE)


class Model(Protocol):
    """What computes: texts or pairs in, one float32 row or score and one token count each out."""

    @property
    def dimensions(self) -> int:
        """The length of a vector; 0 where it gives scores."""
        ...

    @property
    def pads(self) -> bool:
        """Whether a text costs as much as the longest in its batch."""
        ...

    @property
    def tokens(self) -> Tokens:
        """Its tokenizer."""
        ...

    def encode(self, texts: Sequence[Text], threads: int) -> tuple[np.ndarray[Any, Any], list[int]]:
        """Vectors (n by dimensions) or scores (n), and tokens (n), computed with so many threads.

        From one thread only.
        """
        ...


class _Torch(ABC):
    """A model of sentence-transformers on a device and on cores."""

    pads = True

    def __init__(self, model: Any, window: int, cores: Cores) -> None:
        import torch

        def fork(count: int) -> None:
            torch.zeros(count * _GRAIN + 1).add_(1)

        self._torch = torch
        self._team = ThreadTeam(cores, torch.set_num_threads, fork)
        self._model = model
        self._model.eval()
        if self._model.device.type == "cpu":
            lay_out(self._model)
        self.tokens = Tokens.of(model, window)

    def encode(self, texts: Sequence[Text], threads: int) -> tuple[np.ndarray[Any, Any], list[int]]:
        """See the port."""
        self._team.use(threads)
        features = self._model.preprocess(list(texts))
        device = self._model.device
        features = {k: v.to(device) if hasattr(v, "to") else v for k, v in features.items()}
        tokens = features["attention_mask"].sum(dim=1).tolist()
        with self._torch.inference_mode():
            return self._compute(features).float().cpu().numpy(), tokens

    @abstractmethod
    def _compute(self, features: dict[str, Any]) -> Any:
        """A tensor with one row, or one number, for each text."""


class _Embedder(_Torch):
    """A bi-encoder; nothing is fetched when it is a folder."""

    def __init__(self, path: str, cores: Cores) -> None:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(path, device=_device())
        super().__init__(model, int(model.max_seq_length or 0), cores)
        self._packed = PackedTransformer(model) if can_pack(model) else None
        self.pads = self._packed is None
        self.dimensions: int = int(self._model.get_embedding_dimension() or 0)

    def _compute(self, features: dict[str, Any]) -> Any:
        if self._packed is not None:
            return self._packed.forward(features)
        return self._model.forward(features)["sentence_embedding"]


class _Reranker(_Torch):
    """A cross-encoder that gives one score for a pair."""

    dimensions = 0

    def __init__(self, path: str, cores: Cores) -> None:
        from sentence_transformers import CrossEncoder

        _check(path)
        model = CrossEncoder(path, device=_device())
        super().__init__(model, int(model.max_seq_length or 0), cores)

    def _compute(self, features: dict[str, Any]) -> Any:
        return self._model.activation_fn(self._model.forward(features)["scores"].float()).flatten()


def load_model(path: str, cores: Cores, task: Task = "embed") -> Model:
    """Load a model of sentence-transformers. Raises NotFoundError when it cannot be loaded.

    Raises ConfigError for `rerank` with a model that is none: its scores would be noise.
    """
    try:
        return _Reranker(path, cores) if task == "rerank" else _Embedder(path, cores)
    except (OSError, ValueError, KeyError) as error:
        what = "reranker" if task == "rerank" else "embedding model"
        raise NotFoundError(f"The {what} {path} cannot be loaded: {error}") from error


def _device() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "cpu"


def _check(path: str) -> None:
    """Refuse what the library would load with a scoring head of random weights, or with several labels."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path)
    found = (config.architectures or ["no architecture"])[0]
    if not found.endswith("ForSequenceClassification"):
        raise ConfigError(
            f"The model {path} is no cross-encoder: its config.json names {found}, which has no head that "
            "scores a pair.",
            hint="Name a reranker, such as BAAI/bge-reranker-v2-m3, or use task embed.",
        )
    if config.num_labels != 1:
        raise ConfigError(
            f"The model {path} gives {config.num_labels} numbers for a pair; a reranker gives one.",
            hint="Name a reranker, such as BAAI/bge-reranker-v2-m3.",
        )
