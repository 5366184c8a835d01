"""How long a user waits: import, help, stack up, first streamed token; and the memory of an idle gateway.

    .venv/bin/python benchmarks/startup/measure.py [--fresh N] [--repeat N]

Without `--fresh` the installed `.venv` is used. `--fresh` clones this checkout N times, runs
`./quickstart.sh` in each (a new environment from packages that are already downloaded) and measures to the
first token from that command. CPU seconds are those of all processes that a quick start made, engines too,
up to its end: they say more than times where other programs run. Writes `results.json` beside itself. Linux
only.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BIN = Path(sys.executable).parent
PR_SET_CHILD_SUBREAPER = 36


def seconds(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begin


def median(measure: Callable[[], float], repeat: int) -> dict[str, float | int]:
    measure()  # fills the file cache
    taken = [measure() for _ in range(repeat)]
    return {"median": round(statistics.median(taken), 3), "max": round(max(taken), 3), "n": repeat}


def reaped_cpu_s() -> float:
    """CPU seconds of all processes that this one has awaited. Awaits those that were left to it."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def quickstart(command: list[str], cwd: Path) -> dict[str, float]:
    """Run it to its end and read what it says of itself."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = reaped_cpu_s()
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(command, cwd=cwd, env=env | {"SAGE_HOME": home}, capture_output=True, text=True)
    cpu_s = reaped_cpu_s() - before
    said = done.stdout + done.stderr
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{said}")
    up = re.search(r"stack: up in ([\d.]+) s", said)
    token = re.search(r"first streamed token: ([\d.]+) s", said)
    if up is None or token is None:
        raise SystemExit(f"{command} did not say how long it took:\n{said}")
    return {"stack_up_s": float(up[1]), "first_token_s": float(token[1]), "cpu_s": round(cpu_s, 1)}


def fresh_quickstart() -> dict[str, float]:
    """That of a clean clone."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "sage")
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        return quickstart(["./quickstart.sh"], clone)


def idle_memory_mb() -> dict[str, float]:
    """RSS and private memory of the serving process of a stack that is up and has served nothing."""
    import psutil

    with tempfile.TemporaryDirectory() as home:
        env = os.environ | {"SAGE_HOME": home}
        subprocess.run([BIN / "sage", "up"], env=env, check=True, capture_output=True)
        try:
            run = json.loads(Path(home, "state", "run.json").read_text(encoding="utf-8"))
            memory = psutil.Process(run["pid"]).memory_full_info()
        finally:
            subprocess.run([BIN / "sage", "down"], env=env, check=True, capture_output=True)
    return {"rss_mb": round(memory.rss / 1e6, 1), "private_mb": round(memory.uss / 1e6, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--fresh", type=int, default=0, help="also new environments from clean clones")
    parser.add_argument("--repeat", type=int, default=9)
    options = parser.parse_args()
    # What a quick start leaves behind, as its gateway, is awaited here, and so counted.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    python = sys.executable
    results: dict[str, object] = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "load_before": round(os.getloadavg()[0], 1),
        "commit": subprocess.check_output(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True
        ).strip(),
        "date": time.strftime("%Y-%m-%d"),
        "empty_interpreter_s": median(lambda: seconds([python, "-c", ""]), options.repeat),
        "import_sage_kernel_s": median(lambda: seconds([python, "-c", "import sage.kernel"]), options.repeat),
        "sage_help_s": median(lambda: seconds([str(BIN / "sage"), "--help"]), options.repeat),
        "idle_gateway": idle_memory_mb(),
        "quickstart_installed": quickstart([str(BIN / "sage"), "quickstart"], ROOT),
    }
    if options.fresh:
        results["quickstart_fresh"] = [fresh_quickstart() for _ in range(options.fresh)]
    text = json.dumps(results, indent=2)
    (HERE / "results.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
