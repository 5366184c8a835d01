"""Vector indexes: one port, an exact index on the native top-k, and where it is kept on disk."""

from sage.middleware.vector.flat import FlatIndex
from sage.middleware.vector.port import Hit, VectorIndex
from sage.middleware.vector.topk import top_k

__all__ = ["FlatIndex", "Hit", "VectorIndex", "top_k"]
