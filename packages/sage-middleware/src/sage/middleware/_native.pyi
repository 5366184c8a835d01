"""Native operators of sage-middleware."""

from typing import Literal

import numpy as np
import numpy.typing as npt

def top_k(
    vectors: npt.NDArray[np.float32],
    queries: npt.NDArray[np.float32],
    k: int,
    *,
    metric: Literal["inner_product", "cosine"],
    isa: Literal["auto", "scalar", "avx2"] = "auto",
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]: ...
def isa() -> Literal["scalar", "avx2"]: ...
