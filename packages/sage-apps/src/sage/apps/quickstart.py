"""The main job of a fresh machine: engines, two pipelines, cited answers."""

from __future__ import annotations

import os
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command", "process_start"]


class LlmEngine(StrEnum):
    """Engines that can generate."""

    transformers = "transformers"
    vllm = "vllm"


def command(
    docs: Annotated[
        Path | None, typer.Option(help="Folder of documents to ask about; else the project's ./docs.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Hub name or folder of the LLM; else the small one that comes along.")
    ] = None,
    engine: Annotated[LlmEngine, typer.Option(help="What runs the LLM.")] = LlmEngine.transformers,
    engine_python: Annotated[
        Path | None, typer.Option(help="Interpreter of another environment that has this engine.")
    ] = None,
    question: Annotated[
        list[str] | None, typer.Option(help="Ask this instead; may be given several times.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack up.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    own_docs: Annotated[Path, typer.Option(hidden=True, help="The project's own documents.")] = Path("docs"),
) -> None:
    """Start engines and gateway, index documents, answer three questions, show who served what, stop.

    Exit code 0 only if every step really worked.
    """
    from sage.apps.first_run import FirstRun, Options, as_document, next_steps
    from sage.apps.own_stack import own_stack
    from sage.apps.talk import Talk
    from sage.middleware.operators.documents import find_documents

    talk = Talk(data=not as_json)
    options = Options(docs, tuple(question or ()), keep, process_start(), own_docs)
    find_documents(docs or own_docs)  # before a stale stack is stopped
    with own_stack(
        model, engine.value, keep=keep, on_progress=talk.say, engine_python=engine_python
    ) as stack:
        outcome = FirstRun(stack, options, talk).run()
    if as_json:
        print(as_document(outcome))
    for line in next_steps(keep, outcome.base_url, stack.paths.default_key_file):
        talk.say(line)


def process_start() -> float:
    """When this process began, in Unix seconds; a script that became it by `exec` began it."""
    try:
        stat = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:  # not Linux
        import psutil

        return psutil.Process().create_time()
    # By the clock that it is noted with: the Unix time of the boot is known to the second only.
    began = int(stat.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - began)
