"""What a chat that is not streamed costs between two sockets in memory, counted: calls, bytecodes, stages.

    python benchmarks/gateway/steps.py [--policy hybrid] [--requests 500]
    valgrind --tool=cachegrind --cache-sim=no python benchmarks/gateway/steps.py --only-run --requests 200

The gate, the data plane, the control plane and the connection to the engine are the real ones; the two
transports are not, and the clock moves by 10 µs each time it is asked, so that every run takes the same
steps. A coroutine that goes on counts as a call. Instructions: what cachegrind counts for 700 requests, less
what it counts for 200, divided by 500.
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
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

time.monotonic = itertools.count(1000.0, 1e-5).__next__  # before anybody has taken it

import uvloop  # noqa: E402
from load import CHAT, request_bytes  # noqa: E402
from upstream import CHAT as ANSWER  # noqa: E402
from upstream import whole  # noqa: E402
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


class Pair:
    """A client and an engine: each answers in the loop's next turn."""

    def __init__(self, gate: Gate, pool: HttpPool, key: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._request, self._answer = request_bytes(80, key, CHAT), whole(ANSWER)
        self._gate, self._engine = gate, Connection(pool)
        gate.connection_made(Wire(self._answered))
        self._engine.connection_made(Wire(self._asked))
        self._engine.idle_since = float("inf")
        pool._open.add(self._engine)
        pool._idle.append(self._engine)

    def _asked(self, _data: bytes) -> None:
        self._loop.call_soon(self._engine.data_received, self._answer)

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
        await asyncio.sleep(0)


@asynccontextmanager
async def opened(policy: str) -> AsyncIterator[Pair]:
    """Both sides of a gateway with one engine, and nothing that listens."""
    url = "http://127.0.0.1:9"
    engine = {"name": "up-0", "kind": "openai", "model": "tiny", "url": url, "max_running": 64}
    config = SageConfig.model_validate({"engines": [engine], "control_plane": {"policy": policy}})
    paths = SagePaths.default()
    with StateDirectory(paths.state) as state:
        async with Services.open(config, paths, state, url) as services:
            front, pool = Front(config, services, SystemClock.now), HttpPool(url)
            spec = engine_kind("openai").spec(config.engines[0])
            services.control_plane.add_engine(HttpEngine(spec, PassThroughDialect(), pool))
            app = Config(data_app(list, list, others=idle_handlers(), met=front.data.watch.met))
            app.load()
            gate = Gate(app, ServerState(), {}, settings=front.data)
            pair = Pair(gate, pool, paths.default_key_file.read_text().strip())
            gc.freeze()
            await pair.run(WARM)
            yield pair


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


async def measure(policy: str, requests: int, only_run: bool) -> dict[str, float]:
    """Steps of one request."""
    found: Counter[tuple[str, str]] = Counter()
    calls: Counter[str] = Counter()
    async with opened(policy) as pair:
        if only_run:
            await pair.run(requests)
            return {}
        sys.settrace(counting(found, calls))
        await pair.run(requests)
        sys.settrace(None)
    told = {"calls": calls["all"], "bytecodes": found.total(), **dict(by_stage(found).most_common())}
    return {name: round(count / requests, 1) for name, count in told.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--policy", default="hybrid")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--only-run", action="store_true", help="count nothing here: cachegrind does")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SAGE_HOME"] = folder
        told = uvloop.run(measure(options.policy, options.requests, options.only_run))
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
