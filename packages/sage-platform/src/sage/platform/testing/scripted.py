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


def _take_memory() -> None:
    held = []
    while True:
        held.append(bytearray(16 * 1024 * 1024))


def _take_files() -> None:
    held = []
    while True:
        held.append(os.dup(0))


_GREEDY = {"/hog/memory": _take_memory, "/hog/files": _take_files}


class _Handler(http.server.BaseHTTPRequestHandler):
    healthy = True
    pids: list[int] = []

    def do_GET(self) -> None:
        if self.path.startswith("/exit/"):
            print("told to exit", flush=True)
            os._exit(int(self.path.rpartition("/")[2]))
        if self.path.startswith("/say/"):
            sys.stdout.writelines(f"line {number}\n" for number in range(int(self.path.rpartition("/")[2])))
            sys.stdout.flush()
        if self.path in _GREEDY:
            try:
                _GREEDY[self.path]()
            except (MemoryError, OSError) as error:
                print(f"{type(error).__name__}: {error}", flush=True)
                os._exit(1)
        if self.path in ("/heal", "/hurt"):
            _Handler.healthy = self.path == "/heal"
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        body = json.dumps({"pids": self.pids, "cores": cores, "nice": os.nice(0), "env": dict(os.environ)})
        self.send_response(503 if self.path == "/health" and not self.healthy else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Keep the log for what a test looks for."""


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A probe that was given up is nothing to talk about."""


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
    _Server(("127.0.0.1", options.port), _Handler).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
