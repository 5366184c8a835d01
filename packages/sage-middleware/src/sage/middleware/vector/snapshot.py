"""An index on disk: a folder with vectors (.npy), payloads (.jsonl) and a manifest that names both.

The manifest is replaced last and in one step, so that a reader finds the old index or the new one, whole.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sage.common.errors import NotFoundError, SageError
from sage.common.ids import new_id
from sage.middleware.vector.port import FloatMatrix, Payload

__all__ = ["MANIFEST", "Snapshot", "read", "write"]

MANIFEST = "manifest.json"
_FORMAT = "sage-flat-index/1"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What an index holds, row by row."""

    ids: Sequence[str]
    vectors: FloatMatrix
    payloads: Sequence[Payload]


def write(folder: Path, snapshot: Snapshot) -> None:
    """Write a snapshot into `folder`, made if it is missing. Raises SageError when the disk refuses."""
    buffer = io.BytesIO()
    np.save(buffer, snapshot.vectors, allow_pickle=False)
    rows = zip(snapshot.ids, snapshot.payloads, strict=True)
    lines = "".join(json.dumps({"id": i, "payload": dict(p)}, ensure_ascii=False) + "\n" for i, p in rows)
    generation = new_id("gen")
    parts = {f"vectors-{generation}.npy": buffer.getvalue(), f"payloads-{generation}.jsonl": lines.encode()}
    manifest = {
        "format": _FORMAT,
        "rows": len(snapshot.ids),
        "dimensions": int(snapshot.vectors.shape[1]),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in parts.items():
            _write_durably(folder / name, data)
        temporary = folder / f"{MANIFEST}.{generation}"
        _write_durably(temporary, json.dumps(manifest, indent=1).encode())
        os.replace(temporary, folder / MANIFEST)
        _sync(folder)
        _sweep(folder, keep=set(parts) | {MANIFEST})
    except OSError as exc:
        raise SageError(f"The index cannot be written to {folder}: {exc.strerror or exc}.") from exc


def read(folder: Path) -> Snapshot:
    """Read a snapshot and check every sum. Raises NotFoundError or SageError."""
    manifest = _manifest(folder)
    parts = {Path(name).suffix: _part(folder, name, digest) for name, digest in manifest["files"].items()}
    try:
        vectors = np.load(io.BytesIO(parts[".npy"]), allow_pickle=False)
        lines = [json.loads(line) for line in parts[".jsonl"].decode().split("\n")[:-1]]
        ids = [str(line["id"]) for line in lines]
        payloads = [dict(line["payload"]) for line in lines]
    except (ValueError, KeyError, TypeError) as exc:
        raise _damaged(folder, f"its files cannot be read ({exc})") from exc
    shape = (manifest["rows"], manifest["dimensions"])
    if vectors.dtype != np.float32 or vectors.shape != shape or len(ids) != len(vectors):
        raise _damaged(folder, f"{shape} was promised, vectors are {vectors.shape} and payloads {len(ids)}")
    return Snapshot(ids, vectors, payloads)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise NotFoundError(f"There is no index in {folder}: it has no {MANIFEST}.") from None
    except (ValueError, OSError) as exc:
        raise _damaged(folder, f"{MANIFEST} cannot be read ({exc})") from exc
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise _damaged(folder, f"{MANIFEST} is not of format {_FORMAT}")
    return manifest


def _part(folder: Path, name: str, digest: str) -> bytes:
    if Path(name).name != name:  # a manifest may not point out of its folder
        raise _damaged(folder, f"{name!r} is no file name")
    try:
        data = (folder / name).read_bytes()
    except OSError as exc:
        raise _damaged(folder, f"{name} cannot be read ({exc.strerror})") from exc
    if hashlib.sha256(data).hexdigest() != digest:
        raise _damaged(folder, f"the checksum of {name} does not match")
    return data


def _damaged(folder: Path, what: str) -> SageError:
    return SageError(f"The index in {folder} is damaged: {what}.", hint="Delete the folder and ingest again.")


def _write_durably(file: Path, data: bytes) -> None:
    with file.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(folder: Path, keep: set[str]) -> None:
    """Delete what earlier or broken writes left; nothing that is not ours."""
    for pattern in ("vectors-gen-*.npy", "payloads-gen-*.jsonl", f"{MANIFEST}.gen-*"):
        for file in folder.glob(pattern):
            if file.name not in keep:
                file.unlink(missing_ok=True)
