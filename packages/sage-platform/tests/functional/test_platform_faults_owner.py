"""Who owns a state directory when processes contend for it, and die."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

CONTENDERS = 4
# Says what came of it, keeps what it got, and tries again at each line it is sent.
CONTENDER = """
import sys
from pathlib import Path
from sage.common.errors import ConflictError
from sage.platform.state import StateDirectory
from sage.platform.storage.sqlite import Database
folder = Path(sys.argv[1])
state = StateDirectory(folder)
kept = []
for line in sys.stdin:
    try:
        kept.append(state.acquire() if sys.argv[2] == "state" else Database(folder / "store.db"))
        print("owner", flush=True)
    except ConflictError as error:
        print(error, flush=True)
"""


class Contender:
    def __init__(self, state: Path, what: str) -> None:
        command = [sys.executable, "-c", CONTENDER, str(state), what]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self, how: signal.Signals) -> None:
        self.process.send_signal(how)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.mark.parametrize("what", ["state", "database"])
def test_of_many_processes_one_owns_and_after_each_kill_9_the_next(tmp_path: Path, what: str) -> None:
    state = tmp_path / "state"
    living = [Contender(state, what) for _ in range(CONTENDERS)]
    try:
        while living:
            for contender in living:
                contender.ask()
            answers = {contender: contender.answer() for contender in living}
            (owner,) = [contender for contender, said in answers.items() if said == "owner"]
            for contender in living:
                contender.ask()  # and again, now that it is settled
            for contender in living:
                said = contender.answer()
                mine = contender is owner
                assert said == "owner" if mine else f"in use by process {owner.process.pid}." in said
            assert (state / "owner.lock").read_text() == str(owner.process.pid)
            owner.end(signal.SIGKILL)
            living.remove(owner)
    finally:
        for contender in living:
            contender.end(signal.SIGKILL)
