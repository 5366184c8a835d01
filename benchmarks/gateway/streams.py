"""Many open streams on one worker: errors, and how quickly everything else still answers.

    python benchmarks/gateway/streams.py [--streams 2000] [--seconds 60] [--json FILE]

Every stream gets a token twice a second from an engine that does next to nothing (`upstream.py`) and is read
by a client of its own. Meanwhile the health port and `GET /v1/models` on the data port are asked twenty times
a second, each over a connection of its own; the second goes through the event loop that serves the streams,
so that its time is an upper bound of how late that loop is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import uvloop
from load import CHAT, request_bytes
from servers import Server, ours, upstream

HOLD: Final = (CHAT[0], {**CHAT[1], "stream": True, "user": "hold"})
EVERY_S: Final = 0.05
RAMP: Final = 100  # streams that are opened at once


class Counts:
    """What the streams saw."""

    def __init__(self) -> None:
        self.open = self.tokens = 0
        self.errors: list[str] = []


async def stream(server: Server, counts: Counts, stop: asyncio.Event, began: asyncio.Event) -> None:
    """One stream, read until it is told to stop."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request_bytes(server.port, server.key, HOLD))
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(head.decode("latin-1"))
        counts.open += 1
        began.set()
        while not stop.is_set():
            chunk = await reader.read(65536)
            if not chunk or b'"error"' in chunk:
                raise ConnectionError(f"ended by {chunk[-200:]!r}")
            counts.tokens += chunk.count(b"data: ")
        writer.transport.abort()
    except (OSError, EOFError) as error:
        counts.errors.append(str(error))
        began.set()


async def asked(port: int, path: str, key: str, stop: asyncio.Event) -> list[float]:
    """Seconds of each of many small requests over one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = (f"GET {path} HTTP/1.1", f"host: 127.0.0.1:{port}", f"authorization: Bearer {key}", "\r\n")
    times: list[float] = []
    while not stop.is_set():
        began = time.perf_counter()
        writer.write("\r\n".join(lines).encode())
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0]))
        times.append(time.perf_counter() - began)
        if b"connection: close" in head:
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(EVERY_S)
    writer.close()
    return times


def quantiles(times: list[float]) -> dict[str, float]:
    """In milliseconds."""
    ordered = sorted(times)
    return {
        f"p{share}": round(ordered[min(len(ordered) - 1, len(ordered) * share // 100)] * 1e3, 2)
        for share in (50, 99, 100)
    }


async def measure(server: Server, health: int, streams: int, seconds: float) -> dict[str, Any]:
    counts, stop = Counts(), asyncio.Event()
    tasks: list[asyncio.Task[None]] = []
    before = server.rss()
    for start in range(0, streams, RAMP):
        begun = [asyncio.Event() for _ in range(min(RAMP, streams - start))]
        tasks += [asyncio.create_task(stream(server, counts, stop, event)) for event in begun]
        await asyncio.gather(*(event.wait() for event in begun))
    probes = [
        asyncio.create_task(asked(health, "/healthz", "", stop)),
        asyncio.create_task(asked(server.port, "/v1/models", server.key, stop)),
    ]
    tokens, cpu = counts.tokens, server.cpu()
    await asyncio.sleep(seconds)
    spent, passed, rss = server.cpu() - cpu, counts.tokens - tokens, server.rss()
    stop.set()
    healths, models = await asyncio.gather(*probes)
    await asyncio.gather(*tasks)
    return {
        "streams": counts.open,
        "errors": len(counts.errors),
        "first_error": counts.errors[0] if counts.errors else "",
        "tokens_per_s": round(passed / seconds),
        "cores": round(spent / seconds, 3),
        "cpu_us_per_token": round(spent / max(1, passed) * 1e6, 1),
        "mb_per_1000_streams": round((rss - before) / streams / 1e3, 2),
        "health_ms": quantiles(healths),
        "models_ms": quantiles(models),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    without = {"chat": {"ttft_s": None, "tpot_s": None}}  # two tokens a second would be refused
    with tempfile.TemporaryDirectory() as name, upstream() as up:
        folder = Path(name)
        with ours(up, folder, slos=without) as server:
            run = json.loads((folder / "s" / "run.json").read_text())
            health = int(run["health_url"].rpartition(":")[2])
            found = uvloop.run(measure(server, health, options.streams, options.seconds))
    print(json.dumps(found, indent=1))
    if options.json:
        machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        head = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "python": platform.python_version()}
        options.json.write_text(json.dumps({**head, "seconds": options.seconds, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
