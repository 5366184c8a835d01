"""A server around one model of sentence-transformers: requests of all connections share batches.

`python -m sage.middleware.engines.embedding_server --model PATH --served-as ID --port N --threads K`.
With `--task rerank` the model is a cross-encoder and gives scores of pairs by `/v1/rerank` and `/v1/score`,
else it embeds texts by `/v1/embeddings`. The model's tokens are told by `/v1/tokenize` and `/v1/detokenize`.
Sockets and JSON are handled on the main thread, the model on one worker thread. A text longer than the
model's window is cut there, as sentence-transformers does; `usage` counts the tokens that were computed.
On a CPU, texts of models that allow it are computed without padding (`packed.PACKABLE`).

A request may ask by `x-sage-threads` for more threads than the server's own, up to `--max-threads`: whoever
sends it knows of cores that are idle. A batch is computed with the most that a request in it asked for. With
`--cores` everything else of this process stays on those.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import Callable
from typing import get_args

import msgspec

from sage.common.errors import EngineError, NotFoundError, SageError
from sage.middleware.engines.asks import FACES, Read, Task
from sage.middleware.engines.batcher import Batcher
from sage.middleware.engines.batching import Work
from sage.middleware.engines.encoders import Model, load_model
from sage.middleware.engines.server import Exchange, ServerProtocol
from sage.middleware.engines.threads import THREADS_HEADER, Cores, pin, usable

__all__ = ["EmbeddingApp", "main"]


class EmbeddingApp:
    """The routes: those of the task, GET /v1/models, GET /health. Built within a running loop."""

    def __init__(
        self, model: Model, served_as: str, cores: Cores | None = None, *, task: Task = "embed"
    ) -> None:
        self._face = FACES[task]
        self._cores = cores or Cores()
        self._loop = asyncio.get_running_loop()
        self._model = model
        self._served_as = served_as
        self._batcher = Batcher(model)
        self._aside = {
            ("POST", "/v1/tokenize"): model.tokens.tokenize,
            ("POST", "/v1/detokenize"): model.tokens.detokenize,
        }
        self._running = 0

    def handle(self, exchange: Exchange) -> None:
        """Answer one request, now or when what it asks for is computed."""
        path = (exchange.request.method, exchange.request.path)
        read = self._face.reads.get(path[1]) if path[0] == "POST" else None
        try:
            if read is not None:
                self._compute(exchange, read)
            elif path in self._aside:
                self._loop.run_in_executor(None, self._tokens, exchange, self._aside[path])
            elif path == ("GET", "/health"):
                alive = self._batcher.alive
                report = {"status": "ok" if alive else "the worker has ended", "running": self._running}
                exchange.respond(200 if alive else 503, msgspec.json.encode(report))
            elif path == ("GET", "/v1/models"):
                entry = {"id": self._served_as, "object": "model", "created": 0, "owned_by": "sage"}
                exchange.respond(200, msgspec.json.encode({"object": "list", "data": [entry]}))
            else:
                known = " and ".join(f"POST {one}" for one in self._face.reads)
                raise NotFoundError(f"There is no {path[0]} {path[1]}; there is {known}.")
        except SageError as error:
            _refuse(exchange, error)

    async def warm_up(self) -> None:
        """Run the model once, on the thread that will compute. Raises EngineError when it cannot."""
        over: asyncio.Future[Exception | None] = self._loop.create_future()

        def tell(fault: Exception | None) -> None:
            self._loop.call_soon_threadsafe(over.set_result, fault)

        self._batcher.submit(
            Work([self._face.sample], lambda _vectors, _tokens: tell(None), tell, threads=self._cores.threads)
        )
        if fault := await over:
            raise EngineError(f"The model {self._served_as} failed on its first text: {fault}") from fault

    def close(self) -> None:
        """Stop computing."""
        self._batcher.close()

    def _compute(self, exchange: Exchange, read: Read) -> None:
        ask = read(exchange.request.body, self._served_as, self._model.dimensions)

        def done(computed: list[object], tokens: int) -> None:
            answer = ask.answer(computed, tokens)
            self._loop.call_soon_threadsafe(self._over, exchange, answer)

        def failed(error: Exception) -> None:
            fault = EngineError(f"The model failed on this batch: {error}")
            self._loop.call_soon_threadsafe(self._over, exchange, fault)

        asked = exchange.request.headers.get(THREADS_HEADER, "")
        work = Work(ask.texts, done, failed, threads=self._cores.asked(asked))
        self._running += 1
        exchange.on_close = lambda: self._cancel(work)
        self._batcher.submit(work)

    def _tokens(self, exchange: Exchange, answer: Callable[[bytes, str], bytes]) -> None:
        """On a thread beside the sockets and the model: a long text takes a while."""
        try:
            found: bytes | SageError = answer(exchange.request.body, self._served_as)
        except SageError as error:
            found = error
        except Exception as error:  # the tokenizer's own errors are of any type
            found = EngineError(f"The tokenizer failed: {error}")
        self._loop.call_soon_threadsafe(_tell, exchange, found)

    def _cancel(self, work: Work) -> None:
        work.cancelled = True
        self._running -= 1

    def _over(self, exchange: Exchange, answer: bytes | SageError) -> None:
        if exchange.closed:
            return
        self._running -= 1
        _tell(exchange, answer)


def _tell(exchange: Exchange, answer: bytes | SageError) -> None:
    if isinstance(answer, SageError):
        _refuse(exchange, answer)
    else:
        exchange.respond(200, answer)


def _refuse(exchange: Exchange, error: SageError) -> None:
    exchange.respond(error.status, msgspec.json.encode(error.to_openai()))


def _cores(text: str) -> tuple[int, ...]:
    return tuple(int(core) for core in text.split(",") if core)


async def _serve(args: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    cores = Cores.of(args.cores, args.threads, args.max_threads, usable())
    pin(cores.own)  # every thread from here on, but for those that the worker makes on lent cores
    app = EmbeddingApp(load_model(args.model, cores, args.task), args.served_as, cores, task=args.task)
    await app.warm_up()
    server = await loop.create_server(
        lambda: ServerProtocol(app.handle, lambda _protocol, _opened: None), args.host, args.port
    )
    print(
        f"embedding server: {args.served_as} ({args.task}) on {args.host}:{args.port}, "
        f"{cores.threads} thread(s), up to {cores.most} when asked",
        flush=True,
    )
    await stop.wait()
    server.close()
    app.close()


def main(argv: list[str] | None = None) -> None:
    """Run the server until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="embedding_server", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="folder or hub name")
    parser.add_argument("--served-as", required=True, help="the id that clients ask for")
    parser.add_argument("--task", choices=get_args(Task), default="embed", help="vectors, or scores of pairs")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=0, help="its own; 0 = one for each of its cores")
    parser.add_argument("--max-threads", type=int, default=0, help="for requests that ask; 0 = its own")
    parser.add_argument("--cores", type=_cores, default=(), help="its own, such as 2,3; empty = not pinned")
    args = parser.parse_args(argv)
    try:
        asyncio.run(_serve(args))
    except SageError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
