"""What keys, limits and usage add to a request in the serving process: no engine, no socket, no store.

    python benchmarks/gateway/accounts.py [--requests 20000] [--runs 20]

One request is what the data plane does of it: find the account, check the model, charge, take the engine's
usage, settle, count. Time is CPU time of this thread, the least of all runs: others on the machine only add.
"""

from __future__ import annotations

import argparse
import time

from sage.common.clock import SystemClock
from sage.common.telemetry import RequestClass
from sage.gateway.accounts import Accounts
from sage.gateway.keys import Principal
from sage.gateway.limits import Limits
from sage.gateway.usage import Meter, SqliteUsageStore
from sage.middleware.control_plane.types import Job
from sage.middleware.engines.port import Route, Usage

JOB = Job("req-1", "tiny", RequestClass.CHAT, "t", frozenset(), 100, 25, 16, stream=True)
USAGE = Usage(25, 16)


def run(accounts: Accounts, principal: Principal, requests: int) -> float:
    """Microseconds for one request."""
    begun = time.thread_time()
    for _ in range(requests):
        visit = accounts.open(principal, Route.CHAT, None)
        if visit.account.limiter is not None:
            visit.headers()
        principal.check_model(JOB.model)
        visit.admit(JOB)
        visit.use(USAGE)
        visit.close(3)
    return (time.thread_time() - begun) / requests * 1e6


def main() -> None:
    """Print the cost for a key without limits and for one with all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    meter = Meter(SqliteUsageStore.__new__(SqliteUsageStore))  # nothing is flushed, so nothing is asked of it
    accounts = Accounts(SystemClock(), meter, lambda _: True)
    accounts.put("free")
    accounts.put("bound", Limits(rpm=10**9, tpm=10**9, concurrent=32, day_tokens=10**12, total_tokens=10**12))
    for name, what in (("free", "no limits"), ("bound", "every limit, with its headers")):
        times = [run(accounts, Principal(name), options.requests) for _ in range(options.runs)]
        print(f"{what}: {min(times):.2f} µs a request")


if __name__ == "__main__":
    main()
