"""What a request that is not streamed costs between two sockets in memory, counted: calls, bytecodes, stages.

    python benchmarks/gateway/steps.py [--policy hybrid] [--kind chat] [--clients 1] [--requests 500]
    valgrind --tool=cachegrind --cache-sim=no python benchmarks/gateway/steps.py --only-run --requests 200

The gate, the data plane, the control plane and the connection to the engine are the real ones; the two
transports are not, and the clock moves by 10 µs each time it is asked, so that every run takes the same
steps. A coroutine that goes on counts as a call. Instructions: what cachegrind counts for 700 requests, less
what it counts for 200, divided by 500. Of several clients all ask in one turn of the loop, which is when
embeddings share calls.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, Final

time.monotonic = itertools.count(1000.0, 1e-5).__next__  # before anybody has taken it

import uvloop  # noqa: E402
from load import CHAT, EMBEDDING, Kind, request_bytes  # noqa: E402
from upstream import CHAT as CHAT_ANSWER  # noqa: E402
from upstream import embeddings, whole  # noqa: E402
from uvicorn.config import Config  # noqa: E402
from uvicorn.server import ServerState  # noqa: E402

from sage.common.clock import SystemClock  # noqa: E402
from sage.common.config import SageConfig  # noqa: E402
from sage.common.paths import SagePaths  # noqa: E402
from sage.gateway.app import data_app  # noqa: E402
from sage.gateway.front import Front  # noqa: E402
from sage.gateway.protocol import Gate  # noqa: E402
from sage.gateway.services import Services  # noqa: E402
from sage.gateway.testing import idle_handlers  # noqa: E402
from sage.middleware.engines.adapter import HttpEngine  # noqa: E402
from sage.middleware.engines.connection import Connection  # noqa: E402
from sage.middleware.engines.http import HttpPool  # noqa: E402
from sage.middleware.engines.passthrough import PassThroughDialect  # noqa: E402
from sage.middleware.engines.registry import engine_kind  # noqa: E402
from sage.platform.state import StateDirectory  # noqa: E402

WARM: Final = 300
STAGES: Final = {  # the first that fits "file function"
    "gate": r"protocol|hot|edge|ids|envelopes|heads|requests (reply_to|Pending)",
    "judging the body": r"classify|plain|facts|wishes|dataplane (DataPlane._judge|_headers)|front|keys",
    "key, usage, log": r"accounts|usage|watch|dataplane|untasked",
    "reply and relay": r"relay|reply|media",
    "engine": r"adapter|answer|http|connection|sse|passthrough",
    "driver": r"driver|desk|runner|tickets|upstream Up|router",
    "core, the end": r"core Core._(fini|comp)|estimator (Estimator.fin|usage|_worth)|roster|requests Requ"
    r"|records Record.end|accounting|histogram|regression|(disciplines Accounts|hybrid Hybrid).settle"
    r"|engine_table EngineLoad.give",
    "core, the decision": r"core|estimator|cost|lanes|placement|hybrid|forecast|fifo|base|attempts"
    r"|engine_table|disciplines|chains|admission|batches|prefix|records|breaker",
}


class Wire(asyncio.Transport):
    """One side of a connection: what is written on it goes to `told`."""

    def __init__(self, told: Callable[[bytes], None]) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.write = told  # type: ignore[assignment]

    def is_closing(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is ever kept."""


class Client:
    """One that asks again as soon as it is answered, in the loop's next turn."""

    def __init__(self, gate: Gate, request: bytes) -> None:
        self._loop = asyncio.get_running_loop()
        self._gate, self._request = gate, request
        gate.connection_made(Wire(self._answered))

    def _answered(self, data: bytes) -> None:
        if not data.startswith(b"HTTP/1.1 200"):
            self._over.set_exception(RuntimeError(data.decode()))
            return
        self._left -= 1
        if self._left:
            self._loop.call_soon(self._gate.data_received, self._request)
        else:
            self._over.set_result(None)

    async def run(self, requests: int) -> None:
        """One after the other."""
        self._left, self._over = requests, self._loop.create_future()
        self._gate.data_received(self._request)
        await self._over


class Answerer:
    """One connection to an engine that answers in the loop's next turn."""

    def __init__(self, pool: HttpPool) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = Connection(pool)
        self._connection.connection_made(Wire(self._asked))
        self._connection.idle_since = float("inf")
        pool._open.add(self._connection)
        pool._idle.append(self._connection)

    def _asked(self, data: bytes) -> None:
        if data.startswith(b"POST /v1/embeddings "):
            given = json.loads(data.partition(b"\r\n\r\n")[2])["input"]
            answer = _embedded(len(given) if isinstance(given, list) else 1)
        else:
            answer = _CHATTED
        self._loop.call_soon(self._connection.data_received, answer)


_CHATTED: Final = whole(CHAT_ANSWER)


@cache
def _embedded(texts: int) -> bytes:
    return whole(embeddings(texts))


@asynccontextmanager
async def opened(policy: str, kind: Kind, clients: int) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    """A gateway with one engine, and nothing that listens; what is given runs so many requests of `kind`."""
    url, task = "http://127.0.0.1:9", "generate" if kind is CHAT else "embed"
    engine = {"name": "up-0", "kind": "openai", "model": kind[1]["model"], "task": task}
    engine |= {"url": url, "max_running": 64}
    config = SageConfig.model_validate({"engines": [engine], "control_plane": {"policy": policy}})
    paths = SagePaths.default()
    with StateDirectory(paths.state) as state:
        async with Services.open(config, paths, state, url) as services:
            front, pool = Front(config, services, SystemClock.now), HttpPool(url)
            spec = engine_kind("openai").spec(config.engines[0])
            services.control_plane.add_engine(HttpEngine(spec, PassThroughDialect(), pool))
            app = Config(data_app(list, list, others=idle_handlers(), met=front.data.watch.met))
            app.load()
            key, asking = paths.default_key_file.read_text().strip(), []
            for number in range(clients):
                Answerer(pool)
                gate = Gate(app, ServerState(), {}, settings=front.data)
                asking.append(Client(gate, request_bytes(80, key, kind, number)))

            async def run(requests: int) -> None:
                await asyncio.gather(*(client.run(max(1, requests // clients)) for client in asking))
                await asyncio.sleep(0)

            gc.freeze()
            await run(WARM)
            yield run


def counting(found: Counter[tuple[str, str]], calls: Counter[str]) -> Callable[[FrameType, str, Any], Any]:
    """A tracer that counts bytecodes by file and function, and calls."""

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        name = (Path(frame.f_code.co_filename).stem, frame.f_code.co_qualname)
        if event == "opcode":
            found[name] += 1
        elif event == "call":
            calls["all"] += 1
        return trace

    return trace


def by_stage(found: Counter[tuple[str, str]]) -> Counter[str]:
    """Bytecodes of each stage; `other` is this file's own and the library's."""
    stages: Counter[str] = Counter()
    for (file, function), count in found.items():
        name = f"{file} {function}"
        stages[next((stage for stage, fits in STAGES.items() if re.match(fits, name)), "other")] += count
    return stages


async def measure(options: argparse.Namespace) -> dict[str, float]:
    """Steps of one request."""
    found: Counter[tuple[str, str]] = Counter()
    calls: Counter[str] = Counter()
    requests = options.requests
    kind = CHAT if options.kind == "chat" else EMBEDDING
    async with opened(options.policy, kind, options.clients) as run:
        if options.only_run:
            await run(requests)
            return {}
        sys.settrace(counting(found, calls))
        await run(requests)
        sys.settrace(None)
    if options.functions:
        steps = Counter({f"{file} {name}": count for (file, name), count in found.items()})
    else:
        steps = by_stage(found)
    told = {"calls": calls["all"], "bytecodes": found.total(), **dict(steps.most_common())}
    return {name: round(count / requests, 1) for name, count in told.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--policy", default="hybrid")
    parser.add_argument("--kind", choices=("chat", "embedding"), default="chat")
    parser.add_argument("--clients", type=int, default=1, help="connections that ask at the same time")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--functions", action="store_true", help="tell each function, not the stages")
    parser.add_argument("--only-run", action="store_true", help="count nothing here: cachegrind does")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SAGE_HOME"] = folder
        told = uvloop.run(measure(options))
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
