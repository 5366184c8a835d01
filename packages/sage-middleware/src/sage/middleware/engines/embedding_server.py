"""An OpenAI-compatible embedding server: texts of all connections are computed in common batches.

`python -m sage.middleware.engines.embedding_server --model PATH --served-as ID --port N --threads K`.
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
import base64
import logging
import signal
import threading
import time
from collections import deque
from typing import Any, Protocol

import msgspec
import numpy as np

from sage.common.errors import BadRequestError, EngineError, ModelNotFoundError, NotFoundError, SageError
from sage.middleware.engines.batching import Item, Work, cut, patience, plan, take
from sage.middleware.engines.packed import PackedTransformer, can_pack, lay_out
from sage.middleware.engines.server import Exchange, ServerProtocol
from sage.middleware.engines.threads import THREADS_HEADER, Cores, ThreadTeam, pin, usable

__all__ = ["Batcher", "EmbeddingApp", "Model", "load_model", "main"]

_log = logging.getLogger("sage.engines.embedding")
MAX_INPUTS = 2048
_GRAIN = 32768  # elements below which torch uses one thread (at::internal::GRAIN_SIZE)


class Model(Protocol):
    """What computes: texts in, one float32 row and one token count each out."""

    @property
    def dimensions(self) -> int:
        """The length of a vector."""
        ...

    @property
    def pads(self) -> bool:
        """Whether a text costs as much as the longest in its batch."""
        ...

    def encode(self, texts: list[str], threads: int) -> tuple[np.ndarray[Any, Any], list[int]]:
        """Vectors (n by dimensions) and tokens (n), computed with so many threads. From one thread only."""
        ...


class _SentenceTransformers:
    """A sentence-transformers model; nothing is fetched when it is a folder."""

    def __init__(self, path: str, cores: Cores) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        def fork(count: int) -> None:
            torch.zeros(count * _GRAIN + 1).add_(1)

        self._torch = torch
        self._team = ThreadTeam(cores, torch.set_num_threads, fork)
        self._model = SentenceTransformer(path, device=None if torch.cuda.is_available() else "cpu")
        self._model.eval()
        if self._model.device.type == "cpu":
            lay_out(self._model)
        self._packed = PackedTransformer(self._model) if can_pack(self._model) else None
        self.pads = self._packed is None
        self.dimensions: int = int(self._model.get_embedding_dimension() or 0)

    def encode(self, texts: list[str], threads: int) -> tuple[np.ndarray[Any, Any], list[int]]:
        self._team.use(threads)
        features = self._model.preprocess(texts)
        device = self._model.device
        features = {k: v.to(device) if hasattr(v, "to") else v for k, v in features.items()}
        tokens = features["attention_mask"].sum(dim=1).tolist()
        with self._torch.inference_mode():
            if self._packed is None:
                vectors = self._model.forward(features)["sentence_embedding"]
            else:
                vectors = self._packed.forward(features)
        return vectors.float().cpu().numpy(), tokens


def load_model(path: str, cores: Cores) -> Model:
    """Load a sentence-transformers model. Raises NotFoundError when it cannot be loaded."""
    try:
        return _SentenceTransformers(path, cores)
    except (OSError, ValueError, KeyError) as error:
        raise NotFoundError(f"The embedding model {path} cannot be loaded: {error}") from error


class Batcher:
    """The worker thread. `submit` may be called anywhere; callbacks of the work come on the worker thread."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._queue: deque[Work] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._last = (0, 0.0)  # requests and seconds of the last round
        self._thread = threading.Thread(target=self._run, name="embedding", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> None:
        """Queue the texts of one request."""
        with self._wake:
            self._queue.append(work)
            self._wake.notify()

    @property
    def alive(self) -> bool:
        """Whether the worker runs: without it nothing is ever answered."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Requests with texts that are not being computed yet."""
        return sum(not work.cancelled for work in tuple(self._queue))

    def close(self) -> None:
        """Stop after the batch that is being computed."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while items := self._next():
            begun = time.perf_counter()
            for batch in plan(items) if self._model.pads else cut(items):
                self._compute([item for item in batch if not item[0].cancelled])
            self._last = (len({id(work) for work, _ in items}), time.perf_counter() - begun)

    def _next(self) -> list[Item]:
        """Wait for texts; empty when closed."""
        with self._wake:
            while True:
                self._wake.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return []
                self._gather()
                if items := take(self._queue):
                    return items

    def _gather(self) -> None:
        """Clients that wait for their answers ask again at once: let them into one batch instead of two."""
        begun = time.monotonic()
        while not self._closed:
            left = patience(len(self._queue), *self._last) - (time.monotonic() - begun)
            if left <= 0:
                break
            self._wake.wait(left)

    def _compute(self, batch: list[Item]) -> None:
        if not batch:
            return
        try:
            texts = [work.texts[index] for work, index in batch]
            vectors, tokens = self._model.encode(texts, max(work.threads for work, _ in batch))
            rows = list(zip(batch, vectors, tokens, strict=True))
        except Exception as error:  # the model's own errors are of any type; the server goes on
            for work in {work for work, _ in batch}:
                _give_up(work, error)
            return
        for (work, index), vector, count in rows:
            work.vectors[index] = vector
            work.tokens += count
            work.missing -= 1
            if not work.missing:
                _hand_over(work)


def _hand_over(work: Work) -> None:
    """Give a request its vectors. One that cannot take them must not end the only worker."""
    try:
        work.done(work.vectors, work.tokens)
    except Exception as error:
        _give_up(work, error)


def _give_up(work: Work, error: Exception) -> None:
    work.cancelled = True
    try:
        work.failed(error)
    except Exception:
        _log.exception("a failed request could not be told so")


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    """The request, as OpenAI has it."""

    model: str
    input: str | list[Any]
    encoding_format: str = "float"
    dimensions: int | None = None
    user: str | None = None


_BODY = msgspec.json.Decoder(_Body)


class EmbeddingApp:
    """The routes: POST /v1/embeddings, GET /v1/models, GET /health. Built within a running loop."""

    def __init__(self, model: Model, served_as: str, cores: Cores | None = None) -> None:
        self._cores = cores or Cores()
        self._loop = asyncio.get_running_loop()
        self._model = model
        self._served_as = served_as
        self._batcher = Batcher(model)
        self._running = 0

    def handle(self, exchange: Exchange) -> None:
        """Answer one request, now or when its vectors are there."""
        path = (exchange.request.method, exchange.request.path)
        try:
            if path == ("POST", "/v1/embeddings"):
                self._embed(exchange)
            elif path == ("GET", "/health"):
                alive = self._batcher.alive
                report = {"status": "ok" if alive else "the worker has ended", "running": self._running}
                exchange.respond(200 if alive else 503, msgspec.json.encode(report))
            elif path == ("GET", "/v1/models"):
                entry = {"id": self._served_as, "object": "model", "created": 0, "owned_by": "sage"}
                exchange.respond(200, msgspec.json.encode({"object": "list", "data": [entry]}))
            else:
                raise NotFoundError(f"There is no {path[0]} {path[1]}; there is POST /v1/embeddings.")
        except SageError as error:
            _refuse(exchange, error)

    async def warm_up(self) -> None:
        """Run the model once, on the thread that will compute. Raises EngineError when it cannot."""
        over: asyncio.Future[Exception | None] = self._loop.create_future()

        def tell(fault: Exception | None) -> None:
            self._loop.call_soon_threadsafe(over.set_result, fault)

        self._batcher.submit(
            Work(["warm-up"], lambda _vectors, _tokens: tell(None), tell, threads=self._cores.threads)
        )
        if fault := await over:
            raise EngineError(f"The model {self._served_as} failed on its first text: {fault}") from fault

    def close(self) -> None:
        """Stop computing."""
        self._batcher.close()

    def _embed(self, exchange: Exchange) -> None:
        body = self._parse(exchange.request.body)
        texts = [body.input] if isinstance(body.input, str) else body.input

        def done(vectors: list[object], tokens: int) -> None:
            answer = _answer(vectors, tokens, body, self._served_as)
            self._loop.call_soon_threadsafe(self._over, exchange, answer)

        def failed(error: Exception) -> None:
            fault = EngineError(f"The model failed on this batch: {error}")
            self._loop.call_soon_threadsafe(self._over, exchange, fault)

        asked = exchange.request.headers.get(THREADS_HEADER, "")
        work = Work(texts, done, failed, threads=self._cores.asked(asked))
        self._running += 1
        exchange.on_close = lambda: self._cancel(work)
        self._batcher.submit(work)

    def _cancel(self, work: Work) -> None:
        work.cancelled = True
        self._running -= 1

    def _over(self, exchange: Exchange, answer: bytes | SageError) -> None:
        if exchange.closed:
            return
        self._running -= 1
        if isinstance(answer, SageError):
            _refuse(exchange, answer)
        else:
            exchange.respond(200, answer)

    def _parse(self, raw: bytes) -> _Body:
        try:
            body = _BODY.decode(raw)
        except msgspec.DecodeError as error:
            raise BadRequestError(f"The body is not an embeddings request: {error}.") from error
        if body.model != self._served_as:
            raise ModelNotFoundError(
                f"There is no model {body.model!r}; there is {self._served_as!r}.", param="model"
            )
        if body.encoding_format not in ("float", "base64"):
            raise BadRequestError(
                f"encoding_format {body.encoding_format!r} is not one of float, base64.",
                param="encoding_format",
            )
        if body.dimensions is not None and not 1 <= body.dimensions <= self._model.dimensions:
            raise BadRequestError(
                f"dimensions is {body.dimensions}; this model gives 1 to {self._model.dimensions}.",
                param="dimensions",
            )
        _check_texts(body.input)
        return body


def _check_texts(given: str | list[Any]) -> None:
    texts = [given] if isinstance(given, str) else given
    if not 1 <= len(texts) <= MAX_INPUTS:
        raise BadRequestError(f"input has {len(texts)} texts; give 1 to {MAX_INPUTS}.", param="input")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise BadRequestError(
                f"input[{index}] is not a string; token ids are decoded by the gateway.", param="input"
            )
        if not text:
            raise BadRequestError(f"input[{index}] is empty.", param="input")


def _refuse(exchange: Exchange, error: SageError) -> None:
    exchange.respond(error.status, msgspec.json.encode(error.to_openai()))


def _answer(vectors: list[object], tokens: int, body: _Body, model: str) -> bytes:
    rows = np.asarray(vectors, dtype="<f4")
    if body.dimensions is not None and body.dimensions < rows.shape[1]:
        rows = rows[:, : body.dimensions]
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    coded: list[Any]
    if body.encoding_format == "base64":
        coded = [base64.b64encode(row.tobytes()).decode("ascii") for row in rows]
    else:
        coded = rows.tolist()
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(coded)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return msgspec.json.encode({"object": "list", "data": data, "model": model, "usage": usage})


def _cores(text: str) -> tuple[int, ...]:
    return tuple(int(core) for core in text.split(",") if core)


async def _serve(args: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    cores = Cores.of(args.cores, args.threads, args.max_threads, usable())
    pin(cores.own)  # every thread from here on, but for those that the worker makes on lent cores
    app = EmbeddingApp(load_model(args.model, cores), args.served_as, cores)
    await app.warm_up()
    server = await loop.create_server(
        lambda: ServerProtocol(app.handle, lambda _protocol, _opened: None), args.host, args.port
    )
    print(
        f"embedding server: {args.served_as} on {args.host}:{args.port}, {cores.threads} thread(s), "
        f"up to {cores.most} when asked",
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
