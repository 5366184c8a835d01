from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from sage.common.errors import SageError
from sage.platform.storage.blobs import FsspecBlobs
from sage.platform.storage.port import Blobs
from sage.platform.testing.faults import Call, FaultFileSystem, Faults
from sage.platform.testing.storage import BlobsConformance


class TestLocal(BlobsConformance):
    @pytest.fixture
    def blobs(self, tmp_path: Path) -> Blobs:
        return FsspecBlobs(str(tmp_path / "blobs"))


class TestFsspecMemory(BlobsConformance):
    @pytest.fixture
    def blobs(self) -> Blobs:
        return FsspecBlobs(f"memory://{uuid.uuid4()}")


async def test_each_flipped_bit_is_an_error_that_names_the_blob(tmp_path: Path) -> None:
    blobs = FsspecBlobs(str(tmp_path))
    await blobs.put("model", b"weights")
    file = tmp_path / "model.blob"
    sound = file.read_bytes()
    for bit in range(8 * len(sound)):
        flipped = bytearray(sound)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        with pytest.raises(SageError, match="'model'"):
            await blobs.get("model")
    for size in range(len(sound)):
        file.write_bytes(sound[:size])
        with pytest.raises(SageError, match="'model'"):
            await blobs.get("model")
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("call", ["open", "write", "sync", "rename"])
async def test_a_put_that_fails_leaves_the_old_bytes_and_no_litter(tmp_path: Path, call: Call) -> None:
    faults = Faults()
    blobs = FsspecBlobs(str(tmp_path), fs=FaultFileSystem(faults))
    await blobs.put("k", b"old")
    faults.arm(call, 1, "full")
    with pytest.raises(SageError, match="No space left"):
        await blobs.put("k", b"new")
    assert await blobs.get("k") == b"old"
    assert os.listdir(tmp_path) == ["k.blob"]
    await blobs.put("k", b"new")
    assert await blobs.get("k") == b"new"
