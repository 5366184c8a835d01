"""The clock of the first token begins when the command was given, not when Python was ready."""

from __future__ import annotations

import subprocess
import sys
import time

TICK_S = 0.01  # of what Linux notes for a process
ASK = "from sage.apps.quickstart import process_start; print(process_start())"


def began(*command: str) -> tuple[float, float, float]:
    """Just before, what the process says of itself, just after."""
    before = time.time()
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return before, float(said.split()[-1]), time.time()


def test_a_process_began_between_its_command_and_its_answer() -> None:
    before, start, after = began(sys.executable, "-c", ASK)
    assert before - 2 * TICK_S <= start <= after


def test_a_script_that_becomes_the_process_counts() -> None:
    # The script notes the time, waits for the interpreter to be imported once, then becomes the process.
    script = f'date +%s.%N; {sys.executable} -c "import sage.apps"; exec {sys.executable} -c "{ASK}"'
    before = time.time()
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    noted, start = map(float, done.stdout.split())
    assert before - 2 * TICK_S <= start <= noted + 2 * TICK_S
