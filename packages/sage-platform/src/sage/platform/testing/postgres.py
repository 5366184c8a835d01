"""A real PostgreSQL server of its own for a test or a benchmark."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sage.common.errors import NotFoundError, UnreachableError

__all__ = ["postgres_programs", "postgres_server"]

SERVED_AS = ("postgres", "nobody")
"""The server refuses to run as root: then it runs as the first of these users that there is."""


def postgres_programs() -> Path | None:
    """The folder of `initdb` and `postgres`, on the PATH or where Debian has it; None without."""
    found = shutil.which("postgres")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").is_file()), None)


@contextmanager
def postgres_server() -> Iterator[str]:
    """The URL of an empty database of a server in a folder of its own; it ends with the block.

    It listens on a Unix socket alone. Its commits do not wait for the disk. Raises NotFoundError where no
    PostgreSQL is installed.
    """
    programs = postgres_programs()
    if programs is None:
        raise NotFoundError("There is no PostgreSQL here.", hint="Install Debian's package postgresql.")
    user: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="sage-postgres-") as folder:
        if os.geteuid() == 0:
            entry = next(e for name in SERVED_AS for e in pwd.getpwall() if e.pw_name == name)
            os.chown(folder, entry.pw_uid, entry.pw_gid)
            user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        options: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL, **user}
        data = f"{folder}/data"
        make = ["--auth=trust", "--username=sage", "--encoding=UTF8", "--no-locale", "--no-sync"]
        subprocess.run([programs / "initdb", "-D", data, *make], check=True, **options)
        serve = ["-D", data, "-h", "", "-k", folder, "-F"]
        with open(f"{folder}/log", "wb") as log:
            process = subprocess.Popen([programs / "postgres", *serve], stderr=log, **options)
        try:
            _wait_for(process, programs, folder)
            yield f"postgresql://sage@/postgres?host={folder}"
        finally:
            process.send_signal(
                signal.SIGINT
            )  # at once; SIGTERM waits for clients, SIGKILL leaves shared memory
            process.wait()


def _wait_for(process: subprocess.Popen[bytes], programs: Path, folder: str) -> None:
    asking = [str(programs / "pg_isready"), "-q", "-h", folder]
    end = time.monotonic() + 20
    while time.monotonic() < end and process.poll() is None:
        if subprocess.run(asking, check=False).returncode == 0:
            return
        time.sleep(0.02)
    raise UnreachableError(f"PostgreSQL did not answer in {folder}.")
