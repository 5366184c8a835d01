"""Record the metrics of a real run: python packages/sage-gateway/tests/data/record.py > run.txt

A stack of its own (a random-weight model and MiniLM) gets chats, embeddings, a batch, a job, requests that
are over a bound and some whose deadline is too near. Each line of the output is a series and its values, one
for each scrape; `_` where it was not there yet.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from sage.common.config import EngineConfig, ModelConfig, TargetConfig
from sage.common.jobs import JobSpec
from sage.common.paths import SagePaths
from sage.middleware import stack
from sage.platform.state import read_secret

SCRAPES: Final = 8
EVERY_S: Final = 4.0
NAME: Final = "assistant"  # falls back, as its model is never served


def post(url: str, key: str, body: Mapping[str, Any], **headers: str) -> Any:
    """The answer, read to its end; an error is an answer."""
    request = urllib.request.Request(url, json.dumps(body).encode(), method="POST")  # noqa: S310
    for name, value in {
        "Authorization": f"Bearer {key}",
        "Content-Type": "application/json",
        **headers,
    }.items():
        request.add_header(name.replace("_", "-"), value)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return answer.read()
    except urllib.error.HTTPError as error:
        return error.read()


class Unwilling(BaseHTTPRequestHandler):
    """An engine that is ready, and refuses whatever it is asked."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(200)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._answer(429)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


def batch(base: str, key: str, line: Mapping[str, Any]) -> None:
    """Hand in a batch of one line."""
    text = json.dumps({"custom_id": "1", "method": "POST", "url": "/v1/embeddings", "body": line})
    field = "--edge\r\ncontent-disposition: form-data; name="
    form = f'{field}"purpose"\r\n\r\nbatch\r\n{field}"file"; filename="in"\r\n\r\n{text}\r\n--edge--\r\n'
    request = urllib.request.Request(f"{base}/files", form.encode(), method="POST")  # noqa: S310
    request.add_header("Authorization", f"Bearer {key}")
    request.add_header("Content-Type", "multipart/form-data; boundary=edge")
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        file = json.load(answer)["id"]
    asked = {"input_file_id": file, "endpoint": "/v1/embeddings", "completion_window": "24h"}
    post(f"{base}/batches", key, asked)


def job(paths: SagePaths, folder: Path) -> None:
    """Begin to index more than can be done meanwhile."""
    (folder / "texts").mkdir()
    for number in range(400):
        (folder / "texts" / f"{number}.md").write_text(f"Text {number} says something of its own. " * 500)
    steps: list[dict[str, Any]] = [
        {"source": {"use": "documents", "with": {"folder": "texts"}}},
        {"flatmap": {"use": "split", "with": {"size": 800}}},
        {"map_batch": {"use": "embed", "with": {"model": "all-MiniLM-L6-v2"}, "batch": {"size": 8}}},
        {"sink": {"use": "index", "with": {"folder": "index"}}},
    ]
    plan = {"name": "index", "steps": steps}
    stack.job_client(paths).submit(JobSpec(plan=plan, every=5.0, folder=str(folder.absolute())))


def load(base: str, admin: str, key: str, token: str, stop: threading.Event) -> None:
    """Ask for what is refused, then for all that is served until told to stop."""
    made = json.loads(post(f"{admin}/admin/v1/keys", token, {"name": "limited", "rpm": 1}))
    says = {
        "model": "sage-random-llama",
        "messages": [{"role": "user", "content": "Say something."}],
        "max_tokens": 16,
    }
    texts = {"model": "all-MiniLM-L6-v2", "input": ["one", "two"]}
    for _ in range(3):  # what a good run has few of
        post(f"{base}/embeddings", made["secret"], texts)
        post(f"{base}/chat/completions", key, {**says, "n": 9})
        post(f"{base}/embeddings", key, texts, x_sage_deadline_ms="1")
        post(f"{base}/chat/completions", key, says, x_sage_deadline_ms="1")
        post(f"{base}/chat/completions", key, {**says, "model": NAME})
    batch(base, key, texts)
    while not stop.is_set():
        post(f"{base}/chat/completions", key, {**says, "stream": True})
        post(f"{base}/chat/completions", key, says)
        post(f"{base}/embeddings", key, texts)
        post(f"{base}/embeddings", key, {**texts, "input": ["a text"] * 20})


def scrape(admin: str, token: str) -> dict[str, str]:
    """Series to value."""
    request = urllib.request.Request(f"{admin}/metrics", headers={"Authorization": f"Bearer {token}"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        lines = answer.read().decode().splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


def record(paths: SagePaths) -> list[dict[str, str]]:
    """Start, load, scrape, stop."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Unwilling)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    config = stack.quick_config("random", "transformers", paths)
    other = EngineConfig(name="elsewhere", kind="openai", model="unwilling", url=url)
    name = ModelConfig(name=NAME, to=(TargetConfig(model="unwilling"),), fallbacks=("sage-random-llama",))
    config = config.model_copy(update={"engines": (*config.engines, other), "models": (name,)})
    run = stack.start(config, paths, on_progress=lambda line: print(line, file=sys.stderr))
    base, key, token = run.base_url, stack.client_key(paths), read_secret(paths.admin_token_file)
    stop = threading.Event()
    worker = threading.Thread(target=load, args=(base, run.admin_url, key, token, stop), daemon=True)
    found = []
    try:
        worker.start()
        job(paths, Path.cwd())
        for _ in range(SCRAPES):
            time.sleep(EVERY_S)
            found.append(scrape(run.admin_url, token))
    finally:
        stop.set()
        worker.join()
        stack.stop(paths)
    return found


def main() -> None:
    """Print the series."""
    with tempfile.TemporaryDirectory() as home, contextlib.chdir(home):
        scrapes = record(SagePaths(*(Path(home) / name for name in ("state", "cache", "config"))))
    for series in sorted({name for one in scrapes for name in one}):
        print(series, *(one.get(series, "_") for one in scrapes))


if __name__ == "__main__":
    main()
