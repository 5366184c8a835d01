"""The folder of each job, mode 0700: what was submitted, its checkpoints and its log."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from pydantic import ValidationError

from sage.common.errors import NotFoundError
from sage.common.jobs import JobSpec
from sage.platform.state import explain, write_atomic

__all__ = ["Folders"]


class Folders:
    """Folders by the ids of their jobs, below `root`. Blocking: call them in a thread."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def log(self, ident: str) -> Path:
        """What the job's process prints."""
        return self.root / ident / "log"

    def checkpoints(self, ident: str) -> Path:
        """Where its checkpoints are."""
        return self.root / ident / "checkpoints"

    def make(self, ident: str, spec: JobSpec) -> None:
        """A folder with what was submitted; it is on the disk when this returns."""
        folder = self.root / ident
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700)
            self.checkpoints(ident).mkdir(mode=0o700)
        except OSError as error:
            raise explain(error, folder) from error
        write_atomic(folder / "spec.json", spec.model_dump_json().encode())

    def spec(self, ident: str) -> JobSpec:
        """What was submitted. Raises NotFoundError when it is not there as it was written."""
        file = self.root / ident / "spec.json"
        try:
            return JobSpec.model_validate_json(file.read_bytes())
        except (OSError, ValidationError) as error:
            raise NotFoundError(f"What was submitted is not in {file} any more: {error}.") from error

    def remove(self, ident: str) -> None:
        """All of it. Raises SageError when something of it cannot be removed."""
        try:
            shutil.rmtree(self.root / ident)
        except FileNotFoundError:
            return
        except OSError as error:
            raise explain(error, self.root / ident) from error

    def sweep(self, known: Collection[str]) -> None:
        """Remove folders of which no job is known: of a crash between folder and row."""
        found = [path.name for path in self.root.iterdir()] if self.root.is_dir() else []
        for name in found:
            if name not in known:
                self.remove(name)
