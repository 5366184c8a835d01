"""Where SAGE keeps things on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SagePaths"]


@dataclass(frozen=True, slots=True)
class SagePaths:
    """The directories of one user: `state` (one owner process), `cache` (can be deleted), `config`.

    `SAGE_HOME` puts all three under one folder.
    """

    state: Path
    cache: Path
    config: Path

    @classmethod
    def default(cls) -> SagePaths:
        """From `SAGE_HOME`, else the platform's own conventions."""
        home = os.environ.get("SAGE_HOME")
        if home:
            root = Path(home).expanduser().resolve()
            return cls(state=root / "state", cache=root / "cache", config=root / "config")
        import platformdirs  # imported here: `sage --help` does not need it

        dirs = platformdirs.PlatformDirs("sage", appauthor=False)
        return cls(state=dirs.user_state_path, cache=dirs.user_cache_path, config=dirs.user_config_path)

    @property
    def run_file(self) -> Path:
        """`run.json`: what the serving process wrote when it became ready (`sage.common.api.RunInfo`)."""
        return self.state / "run.json"

    @property
    def effective_file(self) -> Path:
        """The configuration of a stack that was started in the background, while it runs."""
        return self.state / "effective.yaml"

    @property
    def default_key_file(self) -> Path:
        """The key made at first start, mode 0600."""
        return self.state / "default.key"

    @property
    def admin_token_file(self) -> Path:
        """The admin token made at first start, mode 0600."""
        return self.state / "admin.token"

    @property
    def pepper_file(self) -> Path:
        """What the stored digests of keys are made with, mode 0600."""
        return self.state / "keys.pepper"

    @property
    def gateway_database(self) -> Path:
        """Keys, as digests, and their usage."""
        return self.state / "gateway.db"

    @property
    def batch_database(self) -> Path:
        """What is known of files and batches, and the answers of batches under way."""
        return self.state / "batches.db"

    @property
    def files(self) -> Path:
        """The files that were uploaded and the outputs of batches, by id; mode 0600."""
        return self.state / "files"

    @property
    def job_database(self) -> Path:
        """What is known of jobs."""
        return self.state / "jobs.db"

    @property
    def jobs(self) -> Path:
        """A folder for each job, mode 0700: its plan, its checkpoints and its log."""
        return self.state / "jobs"

    @property
    def logs(self) -> Path:
        """Logs of the serving process and of each engine."""
        return self.state / "logs"
