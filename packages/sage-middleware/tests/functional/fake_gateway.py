"""A serving process for tests of `sage.middleware.stack`: real sockets and signals, engines by script.

The lock, the log-in, the run file and the admin answers are those of the real one. What it does is told by
the model of its first engine: `ready` comes up after two look-ups, `recovers` is degraded before, `fails` has
an engine that fails, `dies` says why and ends, `silent` ends without a word, `hangs` never listens, `drains`
ends two seconds after SIGTERM. With `--after FILE` it begins when that file is there.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from sage.common.errors import ConflictError
from sage.platform.state import StateDirectory

TOKEN = "token-of-the-test"
LOOKS = iter(range(1_000_000))


def engine(behaviour: str) -> dict[str, Any]:
    state, detail, look = "starting", "", next(LOOKS)
    if behaviour == "recovers" and look == 2:
        state = "degraded"
    elif look >= 2:
        state, detail = ("failed", "no space left on device") if behaviour == "fails" else ("ready", "")
    return {
        "name": "llm-0",
        "kind": "transformers",
        "model": behaviour,
        "task": "generate",
        "state": state,
        "url": "",
        "max_running": 1,
        "detail": detail,
    }


def serve(behaviour: str, state: Path) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers["Authorization"] == f"Bearer {TOKEN}"
            body = {"engines": [engine(behaviour)]} if known else {"error": {"message": "wrong token"}}
            raw = json.dumps(body).encode()
            self.send_response(200 if known else 401)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{server.server_address[1]}"
    (state / "admin.token").touch(0o600)
    (state / "admin.token").write_text(TOKEN)
    run = {
        "pid": os.getpid(),
        "version": "0",
        "base_url": f"{url}/v1",
        "admin_url": url,
        "health_url": url,
        "started_at": time.time(),
    }
    temporary = state / "run.json.new"
    temporary.write_text(json.dumps(run))
    temporary.replace(state / "run.json")
    server.serve_forever()


def drain(state: Path) -> None:
    time.sleep(2)  # longer than a busy machine takes to kill it
    (state / "drained").touch()
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--after", type=Path)
    given = parser.parse_args()
    while given.after and not given.after.exists():
        time.sleep(0.01)
    behaviour = json.loads(given.config.read_text())["engines"][0]["model"]
    if behaviour == "dies":
        print("loading", file=sys.stderr)
        sys.exit("error: Port 8888 on 127.0.0.1 is in use.")
    if behaviour == "silent":
        sys.exit(1)
    if behaviour == "hangs":
        threading.Event().wait()
    if behaviour == "drains":
        signal.signal(signal.SIGTERM, lambda *_: drain(given.state_dir))
    try:
        with StateDirectory(given.state_dir):
            serve(behaviour, given.state_dir)
    except ConflictError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
