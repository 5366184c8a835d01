"""The program behind `scripted_service`: standard library only, so that it starts fast."""

from __future__ import annotations

import argparse
import http.server
import json
import os
import signal
import sys

__all__ = ["main"]


def _sleep_forever() -> None:
    while True:
        signal.pause()


def _family() -> list[int]:
    """A child, and a grandchild that left the session; the child's pid, then the grandchild's."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        grandchild = os.fork()
        if grandchild == 0:
            os.setsid()
            _sleep_forever()
        os.write(writer, str(grandchild).encode())
        _sleep_forever()
    return [child, int(os.read(reader, 32))]


class _Handler(http.server.BaseHTTPRequestHandler):
    healthy = True
    pids: list[int] = []

    def do_GET(self) -> None:
        if self.path.startswith("/exit/"):
            print("told to exit", flush=True)
            os._exit(int(self.path.rpartition("/")[2]))
        if self.path in ("/heal", "/hurt"):
            _Handler.healthy = self.path == "/heal"
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        body = json.dumps({"pids": self.pids, "cores": cores, "env": dict(os.environ)}).encode()
        self.send_response(503 if self.path == "/health" and not self.healthy else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the log for what a test looks for."""


def main() -> int:
    """Serve until told otherwise."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--exit", type=int)
    parser.add_argument("--unready", action="store_true")
    parser.add_argument("--ignore-term", action="store_true")
    parser.add_argument("--family", action="store_true")
    options = parser.parse_args()
    if options.exit is not None:
        print(f"scripted exit with code {options.exit}", file=sys.stderr)
        return int(options.exit)
    if options.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _Handler.healthy = not options.unready
    _Handler.pids = [os.getpid(), *(_family() if options.family else [])]
    print("scripted service starts", flush=True)
    http.server.ThreadingHTTPServer(("127.0.0.1", options.port), _Handler).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
