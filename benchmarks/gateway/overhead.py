"""CPU time and latency that the gateway adds to a request, against an upstream that does next to nothing.

    python benchmarks/gateway/overhead.py [--requests 20000] [--connections 16] [--json FILE]

The gateway runs as its users run it: a process of its own, control plane on, one engine of kind `openai`. The
upstream and the load are processes of their own. CPU time is user + system of the one process measured, with
the gateway's idle rate taken off. Beside it, in the same run, goes a bare relay (`relay.py`: no keys,
limits, queue or records), the floor for any proxy here: compare the ratio, not times of a shared machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import uvloop

RUNS = 3
TOKENS = 100
ROWS = {
    "chat_cpu_us": "CPU per chat request, µs",
    "token_cpu_us": "CPU per streamed token, µs",
    "added_p50_us": "added latency p50, µs",
    "added_p99_us": "added latency p99, µs",
}
TOKEN_EVERY_S = 0.004
CHAT = json.dumps(
    {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Say something about gateways. " * 8}],
        "max_tokens": 100,
    }
).encode()
STREAM = CHAT[:-1] + b', "stream": true}'
ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "tiny",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "x" * 400}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 50, "completion_tokens": 100, "total_tokens": 150},
    }
).encode()
CHUNK = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": "tiny"}
TOKEN = (
    b"data: "
    + json.dumps(
        {**CHUNK, "choices": [{"index": 0, "delta": {"content": " word"}, "finish_reason": None}]}
    ).encode()
    + b"\n\n"
)
USAGE = (
    b"data: "
    + json.dumps(
        {
            **CHUNK,
            "choices": [],
            "usage": {"prompt_tokens": 50, "completion_tokens": TOKENS, "total_tokens": 150},
        }
    ).encode()
    + b"\n\ndata: [DONE]\n\n"
)


def framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


# ---- upstream ----------------------------------------------------------------------------------------------


class Upstream(asyncio.Protocol):
    """Answers whole requests; trusts its client."""

    def __init__(self) -> None:
        self.buffer = b""
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, separator, rest = self.buffer.partition(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        if not separator or len(rest) < length:
            return
        self.buffer = b""
        if b'"stream"' in rest:
            self.transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            self.token(TOKENS)
            return
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (len(ANSWER), ANSWER)
        )

    def token(self, left: int) -> None:
        if left == 0:
            self.transport.write(framed(USAGE) + b"0\r\n\r\n")
            return
        self.transport.write(framed(TOKEN))
        asyncio.get_running_loop().call_later(TOKEN_EVERY_S, self.token, left - 1)


async def serve_upstream() -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# ---- load --------------------------------------------------------------------------------------------------


async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> float:
    """Send a request, read all of the answer; seconds."""
    began = time.perf_counter()
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1.1 200"):
        raise RuntimeError(head.decode())
    if b"transfer-encoding: chunked" in head:
        await reader.readuntil(b"0\r\n\r\n")
    else:
        length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
    return time.perf_counter() - began


async def load(port: int, key: str, body: bytes, requests: int, connections: int) -> list[float]:
    """`requests` over `connections` that each wait for their answer; seconds of each."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {key}\r\n"
    request = f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
    times: list[float] = []

    async def worker(count: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        times.extend([await one(reader, writer, request) for _ in range(count)])
        writer.close()

    await asyncio.gather(*(worker(requests // connections) for _ in range(connections)))
    return times


# ---- measuring ---------------------------------------------------------------------------------------------


def cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


@contextmanager
def running(folder: Path) -> Iterator[tuple[psutil.Process, int, int, str]]:
    """Upstream and gateway: the gateway's process, its port, the upstream's port, a key."""
    upstream = subprocess.Popen([sys.executable, __file__, "--upstream"], stdout=subprocess.PIPE, text=True)
    assert upstream.stdout is not None
    up_port = int(upstream.stdout.readline())
    engine = {
        "name": "up-0",
        "kind": "openai",
        "model": "tiny",
        "url": f"http://127.0.0.1:{up_port}",
        "max_running": 256,
    }
    config = {"ports": {"gateway": 0, "admin": 0, "health": 0}, "engines": [engine]}
    (folder / "sage.json").write_text(json.dumps(config))
    argv = [
        sys.executable,
        "-m",
        "sage.gateway",
        "--config",
        str(folder / "sage.json"),
        "--state-dir",
        str(folder / "s"),
    ]
    gateway = subprocess.Popen(argv, cwd=folder, env={**os.environ, "SAGE_HOME": str(folder)})
    try:
        run_file = folder / "s" / "run.json"
        while not run_file.exists():
            if gateway.poll() is not None:
                raise RuntimeError("the gateway did not start")
            time.sleep(0.05)
        port = int(json.loads(run_file.read_text())["base_url"].split(":")[2].split("/")[0])
        key = (folder / "s" / "default.key").read_text().strip()
        time.sleep(1.0)  # the pool's first look at the engine
        yield psutil.Process(gateway.pid), port, up_port, key
    finally:
        gateway.terminate()
        upstream.terminate()
        gateway.wait()
        upstream.wait()


def quantile(times: list[float], q: float) -> float:
    return statistics.quantiles(times, n=1000)[int(q * 1000) - 1] * 1e6


@contextmanager
def relay(up_port: int) -> Iterator[tuple[psutil.Process, int]]:
    """The bare relay: its process and port."""
    argv = [sys.executable, str(Path(__file__).with_name("relay.py")), str(up_port)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield psutil.Process(process.pid), int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()


class Meter:
    """Spends requests on one server and reads the CPU time of its process."""

    def __init__(self, process: psutil.Process, port: int, key: str, connections: int) -> None:
        self.process = process
        self.port = port
        self.key = key
        self.connections = connections
        self.idle = 0.0

    def rest(self, seconds: float = 3.0) -> None:
        before = cpu(self.process)
        time.sleep(seconds)
        self.idle = (cpu(self.process) - before) / seconds

    def drive(self, body: bytes, count: int, width: int) -> list[float]:
        times: list[float] = uvloop.run(load(self.port, self.key, body, count, width))
        return times

    def spent(self, body: bytes, count: int) -> float:
        """CPU microseconds of one request."""
        before, began = cpu(self.process), time.monotonic()
        self.drive(body, count, self.connections)
        used = cpu(self.process) - before - self.idle * (time.monotonic() - began)
        return used / count * 1e6


def measure(requests: int, connections: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as (process, port, up_port, key):
        with relay(up_port) as (relay_process, relay_port):
            ours = Meter(process, port, key, connections)
            floor = Meter(relay_process, relay_port, key, connections)
            rss = process.memory_info().rss / 1e6
            ours.rest()
            streams = max(connections, requests // 50 // connections * connections)
            chat: dict[str, list[float]] = {"ours": [], "floor": []}
            stream: dict[str, list[float]] = {"ours": [], "floor": []}
            for name, meter in (("ours", ours), ("floor", floor)) * RUNS:
                meter.drive(CHAT, 1000, connections)
                chat[name].append(meter.spent(CHAT, requests))
                stream[name].append(meter.spent(STREAM, streams))
            direct = Meter(process, up_port, key, 1).drive(CHAT, 3000, 1)
            latency = {name: meter.drive(CHAT, 3000, 1) for name, meter in (("ours", ours), ("floor", floor))}
        result: dict[str, Any] = {
            "idle_cpu_percent": ours.idle * 100,
            "idle_rss_mb": rss,
            "requests": requests,
            "connections": connections,
            "tokens_per_stream": TOKENS,
            "machine": f"{platform.machine()}, {psutil.cpu_count()} cores",
            "python": platform.python_version(),
        }
        for name in chat:
            per_chat = statistics.median(chat[name])
            result[name] = {
                "chat_cpu_us": per_chat,
                "chat_cpu_us_runs": chat[name],
                "token_cpu_us": (statistics.median(stream[name]) - per_chat) / TOKENS,
                "added_p50_us": quantile(latency[name], 0.5) - quantile(direct, 0.5),
                "added_p99_us": quantile(latency[name], 0.99) - quantile(direct, 0.99),
            }
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=20000)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--upstream", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.upstream:
        uvloop.run(serve_upstream())
        return
    result = measure(options.requests, options.connections)
    print(f"{'':28}{'gateway':>10}{'bare relay':>12}{'ratio':>8}")
    for row, words in ROWS.items():
        ours, floor = result["ours"][row], result["floor"][row]
        print(f"{words:28}{ours:10.1f}{floor:12.1f}{ours / floor:8.1f}")
    print(f"idle: {result['idle_cpu_percent']:.1f} % of a core, {result['idle_rss_mb']:.0f} MB resident")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
