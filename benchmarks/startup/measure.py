"""How long a user waits: import, help, stack up, first streamed token; and the memory of an idle gateway.

    .venv/bin/python benchmarks/startup/measure.py [--fresh] [--repeat N]

Without `--fresh` the installed `.venv` is used. `--fresh` clones this checkout, runs its `./quickstart.sh`
there (a new environment from packages that are already downloaded) and measures to the first token from that
command. Writes `results.json` beside itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
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


def seconds(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begin


def median(measure: Callable[[], float], repeat: int) -> dict[str, float | int]:
    measure()  # fills the file cache
    taken = [measure() for _ in range(repeat)]
    return {"median": round(statistics.median(taken), 3), "max": round(max(taken), 3), "n": repeat}


def quickstart(command: list[str], cwd: Path) -> dict[str, float]:
    """Run it to its end and read what it says of itself."""
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            command, cwd=cwd, env=os.environ | {"SAGE_HOME": home}, capture_output=True, text=True
        )
    said = done.stdout + done.stderr
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{said}")
    up = re.search(r"stack: up in ([\d.]+) s", said)
    token = re.search(r"first streamed token: ([\d.]+) s", said)
    if up is None or token is None:
        raise SystemExit(f"{command} did not say how long it took:\n{said}")
    return {"stack_up_s": float(up[1]), "first_token_s": float(token[1])}


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
    parser.add_argument("--fresh", action="store_true", help="also a new environment from a clean clone")
    parser.add_argument("--repeat", type=int, default=9)
    options = parser.parse_args()
    python = sys.executable
    results: dict[str, object] = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
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
        with tempfile.TemporaryDirectory() as folder:
            clone = Path(folder, "sage")
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
            results["quickstart_fresh"] = quickstart(["./quickstart.sh"], clone)
    text = json.dumps(results, indent=2)
    (HERE / "results.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
