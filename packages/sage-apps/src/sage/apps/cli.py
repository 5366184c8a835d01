"""Ready-made applications: list them, run one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sage.apps.docs_qa import Models
    from sage.common.paths import SagePaths

__all__ = ["APPS", "app"]

APPS = {"docs-qa": "Answer questions about a folder of documents, with sources."}

app = typer.Typer(help="Ready-made applications on the running stack.", no_args_is_help=True)


@app.command("ls")
def list_apps(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """List the applications."""
    if as_json:
        print(json.dumps([{"name": name, "summary": summary} for name, summary in APPS.items()]))
        return
    for name, summary in APPS.items():
        print(f"{name:<10} {summary}")


@app.command("run")
def run_app(
    name: Annotated[str, typer.Argument(help="An application of `sage app ls`.")],
    docs: Annotated[Path, typer.Option(help="Folder of documents.")],
    question: Annotated[list[str], typer.Option(help="What to ask; may be given several times.")],
    model: Annotated[str, typer.Option(help="Model that answers; else the stack's first.")] = "",
    embed_model: Annotated[str, typer.Option(help="Model that embeds; else the stack's first.")] = "",
    config: Annotated[Path | None, typer.Option(help="The configuration that the stack was given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Run an application on the running stack."""
    import asyncio

    from sage.apps.session import Session, to_json
    from sage.apps.talk import Talk
    from sage.common.errors import NotFoundError
    from sage.middleware.operators.connect import connect, stack_paths
    from sage.middleware.operators.documents import find_documents

    if name not in APPS:
        raise NotFoundError(f"There is no application {name!r}; there are: {', '.join(APPS)}.")
    find_documents(docs)
    where = stack_paths(config)
    models, random_weights = _models(model, embed_model, where)

    async def answer() -> list[dict[str, object]]:
        client = connect(paths=where)
        session = Session(models, Talk(data=not as_json), client, random_weights)
        try:
            store = await session.ingest(docs)
            return [to_json(answered) for answered in await session.answer(store, question)]
        finally:
            await client.close()

    answers = asyncio.run(answer())
    if as_json:
        print(json.dumps({"app": name, "answers": answers}, indent=2, ensure_ascii=False))


def _models(chat: str, embed: str, where: SagePaths) -> tuple[Models, bool]:
    """The models to use and whether the first has random weights; asks the stack for what was not given."""
    import os

    from sage.apps.docs_qa import Models
    from sage.common.errors import NotFoundError, UsageError
    from sage.middleware.stack import admin_client

    if os.environ.get("SAGE_BASE_URL"):
        if not (chat and embed):
            raise UsageError("With SAGE_BASE_URL the models have to be named: --model and --embed-model.")
        return Models(chat, embed), False
    engines = admin_client(where).engines().engines
    embedders = [e.model for e in engines if e.task == "embed"]
    generators = [e for e in engines if e.task == "generate"]
    chosen = chat or next((e.model for e in generators), "")
    vectors = embed or next(iter(embedders), "")
    if not (chosen and vectors):
        raise NotFoundError(
            f"The stack has no engine to {'generate' if not chosen else 'embed'} with; it has:"
            f" {', '.join(f'{e.name} ({e.kind}, {e.model})' for e in engines) or 'none'}."
        )
    return Models(chosen, vectors), any(e.random_weights for e in generators if e.model == chosen)
