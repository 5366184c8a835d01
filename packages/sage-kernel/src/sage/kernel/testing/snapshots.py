"""The conformance suite of stores of checkpoints: subclass it in a test module with a fixture `make`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from sage.common.errors import ConflictError, NotFoundError, UsageError
from sage.kernel.ports import SnapshotStore

__all__ = ["SnapshotStoreSuite"]


class SnapshotStoreSuite:
    """What every `SnapshotStore` keeps to. The fixture `make` gives another on the same files, not opened."""

    @pytest.fixture
    def store(self, make: Callable[[], SnapshotStore]) -> Iterator[SnapshotStore]:
        """One that is open."""
        store = make()
        store.open()
        yield store
        store.close()

    def test_it_begins_empty_and_keeps_what_it_is_given(
        self, store: SnapshotStore, make: Callable[[], SnapshotStore]
    ) -> None:
        """Files in parts of any size, also none; another one that is opened later sees them."""
        assert store.names() == []
        store.write("two", [b"a" * 100_000, b"", b"b" * 3_000_000])
        store.write("none", [])
        assert store.names() == ["none", "two"]
        store.close()
        again = make()
        again.open()
        assert b"".join(again.read("two")) == b"a" * 100_000 + b"b" * 3_000_000
        assert b"".join(again.read("none")) == b""
        again.close()

    def test_a_write_replaces(self, store: SnapshotStore) -> None:
        """The old bytes are gone, also those that were added."""
        store.write("name", [b"long before"])
        store.append("name", b", and more")
        store.write("name", [b"now"])
        assert b"".join(store.read("name")) == b"now"
        store.append("name", b"!")
        assert b"".join(store.read("name")) == b"now!"

    def test_a_write_that_fails_leaves_what_was_there(self, store: SnapshotStore) -> None:
        """And no other file."""

        def parts() -> Iterator[bytes]:
            yield b"half"
            raise RuntimeError("it broke")

        store.write("name", [b"before"])
        for name in ("name", "new"):
            with pytest.raises(RuntimeError, match="it broke"):
                store.write(name, parts())
        assert store.names() == ["name"]
        assert b"".join(store.read("name")) == b"before"

    def test_what_is_appended_comes_behind(self, store: SnapshotStore) -> None:
        """A file that is missing is made."""
        for data in (b"one", b"", b"two"):
            store.append("log", data)
        assert b"".join(store.read("log")) == b"onetwo"
        store.remove("log")
        assert store.names() == []
        store.append("log", b"three")
        assert b"".join(store.read("log")) == b"three"

    def test_what_is_missing_is_an_error_to_read_and_none_to_remove(self, store: SnapshotStore) -> None:
        """The error names it."""
        store.remove("missing")
        with pytest.raises(NotFoundError, match="missing"):
            list(store.read("missing"))

    @pytest.mark.parametrize("name", ["", "a/b", ".hidden", "../up"])
    def test_names_are_plain(self, store: SnapshotStore, name: str) -> None:
        """No folders, no hidden files."""
        with pytest.raises(UsageError, match="is no name"):
            store.write(name, [b""])

    def test_it_has_one_user(self, store: SnapshotStore, make: Callable[[], SnapshotStore]) -> None:
        """The second one is refused, until the first has closed it."""
        other = make()
        with pytest.raises(ConflictError, match="in use"):
            other.open()
        store.close()
        other.open()
        other.close()
