"""Checkpoints in a store: what is read back is what was saved, and damage is seen and said."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.kernel import CheckpointError
from sage.kernel.runtime.archive import MERGE_FILES, Archive
from sage.kernel.runtime.frames import DamagedError, frame, unframed
from sage.kernel.runtime.manifest import Manifest
from sage.kernel.runtime.state import Changes
from sage.kernel.runtime.store import FolderStore


def manifest(epoch: int) -> Manifest:
    return Manifest("flow", epoch, False, {"op": {"verb": "scan"}}, (), {"sink": {"n": epoch}})


def changes(states: dict[bytes, bytes]) -> dict[str, Changes]:
    return {"op": Changes(list(states), list(states.values()))}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FolderStore]:
    store = FolderStore(tmp_path)
    store.open()
    yield store
    store.close()


@given(st.lists(st.binary(max_size=50), max_size=20), st.integers(1, 40))
def test_records_come_back_in_whatever_pieces_they_are_read(payloads: list[bytes], size: int) -> None:
    data = b"".join(map(frame, payloads))
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert list(unframed(pieces)) == payloads


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=5), st.data())
def test_every_damaged_byte_shows(payloads: list[bytes], data: st.DataObject) -> None:
    whole = bytearray(b"".join(map(frame, payloads)))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DamagedError, match="record"):
        list(unframed([bytes(whole)]))


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=5), st.data())
def test_a_torn_end_shows_and_what_is_before_it_is_read(payloads: list[bytes], data: st.DataObject) -> None:
    whole, last = b"".join(map(frame, payloads)), len(frame(payloads[-1]))
    torn, found = whole[: -data.draw(st.integers(1, last - 1))], list[bytes]()
    with pytest.raises(DamagedError, match=f"record {len(payloads) - 1} ends in its middle"):
        found.extend(unframed([torn]))  # an `extend` keeps what came before the error
    assert found == payloads[:-1]


_KEYS = st.integers(0, 12).map(lambda n: b"key%d" % n)
_STEPS = st.lists(
    st.dictionaries(_KEYS, st.one_of(st.just(b""), st.binary(min_size=1, max_size=4))), max_size=40
)


@settings(max_examples=40)
@given(_STEPS, st.integers(1, 4), st.integers(0, 40))
def test_what_is_read_is_what_all_changes_come_to(
    steps: list[dict[bytes, bytes]], keep: int, again: int
) -> None:
    """Also after merges, and from another archive that goes on from any of them."""
    with tempfile.TemporaryDirectory() as name:
        store = FolderStore(Path(name))
        store.open()
        archive, wanted = Archive(store, keep), dict[bytes, bytes]()
        for epoch, step in enumerate(steps, 1):
            wanted = {key: state for key, state in {**wanted, **step}.items() if state}
            archive.save(manifest(epoch), {"stage": b"%d" % epoch}, changes(step))
            assert archive.tidy() == max(1, epoch - keep + 1)
            if epoch == again:
                archive = Archive(store, keep)
                archive.newest()
        found, warnings = Archive(store, keep).newest()
        assert warnings == []
        if steps:
            assert found is not None
            assert found.states.get("op", {}) == wanted
            assert found.plain == {"stage": b"%d" % len(steps)}
            assert (found.manifest.epoch, found.manifest.prepared) == (
                len(steps),
                {"sink": {"n": len(steps)}},
            )
        else:
            assert found is None
        store.close()


def test_changes_are_merged_and_old_files_go(store: FolderStore) -> None:
    archive = Archive(store, keep=2)
    for epoch in range(1, 3 * MERGE_FILES):
        archive.save(manifest(epoch), {}, changes({b"%d" % (epoch % 5): b"%d" % epoch}))
        archive.tidy()
        assert len(store.names()) <= 2 + 2 * MERGE_FILES + 1
    assert sum(name.startswith("manifest-") for name in store.names()) == 2
    assert len(Archive(store, 2).newest()[0].states["op"]) == 5  # type: ignore[union-attr]


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("kind", ["manifest-", "state-"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(store: FolderStore, kind: str) -> None:
    archive = Archive(store, keep=3)
    for epoch in (1, 2, 3):
        archive.save(manifest(epoch), {}, changes({b"key": b"%d" % epoch}))
    spoil(store.folder / f"{kind}00000003")
    found, warnings = Archive(store, 3).newest()
    assert found is not None
    assert (found.manifest.epoch, found.states) == (2, {"op": {b"key": b"2"}})
    assert len(warnings) == 1
    assert warnings[0].startswith("checkpoint 3 is damaged: ")
    # It is out of the way: the next one has its number again.
    after = Archive(store, 3)
    after.newest()
    after.save(manifest(3), {}, changes({b"key": b"new"}))
    found, warnings = Archive(store, 3).newest()
    assert (found and found.states, warnings) == ({"op": {b"key": b"new"}}, [])


def test_a_missing_file_is_damage(store: FolderStore) -> None:
    archive = Archive(store, keep=3)
    archive.save(manifest(1), {}, changes({b"key": b"1"}))
    archive.save(manifest(2), {}, changes({b"key": b"2"}))
    store.remove("state-00000002")
    assert Archive(store, 3).newest()[1] == ["checkpoint 2 is damaged: state-00000002 is missing"]


def test_if_none_is_sound_nothing_begins_anew_by_itself(store: FolderStore) -> None:
    archive = Archive(store, keep=3)
    archive.save(manifest(1), {}, changes({b"key": b"1"}))
    archive.save(manifest(2), {}, changes({b"key": b"2"}))
    spoil(store.folder / "state-00000001")
    with pytest.raises(CheckpointError, match=r"no checkpoint is sound: checkpoint 2 is damaged.*Begin anew"):
        Archive(store, 3).newest()
    assert "manifest-00000001" in store.names()


def test_a_manifest_of_another_version_is_not_read() -> None:
    newer = Manifest("flow", 1, False, {}, (), version=2).to_bytes()
    with pytest.raises(DamagedError, match="of version 2, and this is version 1"):
        Manifest.from_bytes(newer)
