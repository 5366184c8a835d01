"""Runs one client's checks in that client's own environment: `python run.py openai BASE_URL KEY`.

Prints a JSON object: the name of each check, and null or the traceback of what went wrong.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import sys
import traceback
from pathlib import Path
from typing import Any


def main() -> None:
    name, base_url, key = sys.argv[1:]
    sys.path.append(str(Path(__file__).parent))  # last: a client is imported by its own name
    module = importlib.import_module(f"with_{name}")
    checks: dict[str, Any] = {
        name: check for name, check in vars(module).items() if name.startswith("check_")
    }
    print(json.dumps({name: outcome(check, base_url, key) for name, check in checks.items()}))


def outcome(check: Any, base_url: str, key: str) -> str | None:
    try:
        answer = check(base_url, key)
        if inspect.isawaitable(answer):
            asyncio.run(_await(answer))
    except Exception:
        return traceback.format_exc()
    return None


async def _await(answer: Any) -> None:
    await answer


if __name__ == "__main__":
    main()
