import json
import os
from pathlib import Path

import numpy as np
import pytest

from sage.common.errors import NotFoundError, SageError, UsageError
from sage.middleware.testing.vector import VectorIndexConformance, rows, vector
from sage.middleware.vector import FlatIndex, VectorIndex


class TestFlatIndex(VectorIndexConformance):
    def make(self, dimensions: int) -> VectorIndex:
        return FlatIndex(dimensions)


def saved(folder: Path) -> FlatIndex:
    index = FlatIndex(2)
    index.add(["a", "b"], rows([1, 0], [0, 1]), [{"n": 1}, {"n": 2}])
    index.save(folder)
    return index


def part(folder: Path, suffix: str) -> Path:
    (found,) = folder.glob(f"*{suffix}")
    return found


def test_dimensions_have_to_be_positive() -> None:
    with pytest.raises(UsageError, match="0 dimensions"):
        FlatIndex(0)


def test_extreme_lengths_are_normalised() -> None:
    index = FlatIndex(2)
    index.add(["big", "small"], rows([3e38, 3e38], [1e-44, 0]), [{}, {}])
    scores = {hit.id: hit.score for hit in index.search(vector(1, 1), 2)}
    assert scores == {"big": pytest.approx(1.0), "small": pytest.approx(np.sqrt(0.5), rel=1e-5)}


def test_a_payload_is_a_copy() -> None:
    payload = {"list": [1]}
    index = FlatIndex(1)
    index.add(["a"], rows([1]), [payload])
    payload["list"].append(2)
    assert index.search(vector(1), 1)[0].payload == {"list": [1]}


def test_the_folder_holds_one_generation(tmp_path: Path) -> None:
    keep = tmp_path / "mine.txt"
    keep.write_text("not the index's")
    saved(tmp_path).save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    assert keep.exists()


def test_an_interrupted_save_leaves_the_old_index(tmp_path: Path) -> None:
    saved(tmp_path)
    # What a crash before the manifest's replacement leaves behind.
    (tmp_path / "vectors-gen-dead.npy").write_bytes(b"half")
    (tmp_path / "manifest.json.gen-dead").write_bytes(b"{")
    again = FlatIndex.load(tmp_path)
    assert len(again) == 2
    again.save(tmp_path)
    assert not list(tmp_path.glob("*gen-dead*"))


@pytest.mark.parametrize("suffix", [".npy", ".jsonl"])
def test_a_changed_byte_is_found(tmp_path: Path, suffix: str) -> None:
    saved(tmp_path)
    file = part(tmp_path, suffix)
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(SageError, match=r"damaged: the checksum of .* does not match"):
        FlatIndex.load(tmp_path)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    saved(tmp_path)
    part(tmp_path, ".npy").unlink()
    with pytest.raises(SageError, match=r"vectors-.* cannot be read"):
        FlatIndex.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other/9"}, "not of format"),
        ({"rows": 3}, r"\(3, 2\) was promised"),
        ({"files": {"../../outside.npy": "0"}}, "is no file name"),
    ],
)
def test_a_manifest_that_lies_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    saved(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(SageError, match=message):
        FlatIndex.load(tmp_path)


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    import hashlib

    saved(tmp_path)
    file = part(tmp_path, ".npy")
    np.save(file, np.array([object()], dtype=object), allow_pickle=True)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["files"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SageError, match="allow_pickle=False"):
        FlatIndex.load(tmp_path)


def test_broken_json_is_damage_and_no_manifest_is_absence(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no manifest\.json"):
        FlatIndex.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(SageError, match="cannot be read"):
        FlatIndex.load(tmp_path)


def test_a_disk_that_refuses_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SageError, match=r"cannot be written to .*file"):
        saved(tmp_path / "file")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_keeps_the_old_index(tmp_path: Path) -> None:
    from sage.middleware.vector import snapshot

    with pytest.raises(OSError, match="No space left"):
        snapshot._write_durably(Path("/dev/full"), b"x")
