"""`sage up`, `status` and `down`: the stack of this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sage.cli.output import Talk, columns, emit

if TYPE_CHECKING:
    from sage.common.api import ClassStatus, EngineStatus, Quantiles, RunInfo, StackStatus
    from sage.common.config import SageConfig
    from sage.common.paths import SagePaths

__all__ = ["Config", "Json", "down", "paths", "status", "up"]

Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
Config = Annotated[
    Path | None, typer.Option("--config", help="The configuration file that `sage up` was given.")
]


def paths(config: Path | None = None) -> SagePaths:
    """Where this user's stack lives: the configuration's `state_dir`, else the platform's place."""
    from sage.common.settings import load

    return _place(load(file=config).config.state_dir)


def _paths_at_any_rate(config: Path | None, talk: Talk) -> SagePaths:
    """As `paths`; a mistake in a file that was not named must not keep a user from a stack that runs."""
    from sage.common.errors import ConfigError

    try:
        return paths(config)
    except ConfigError as exc:
        if config is not None:
            raise
        state = os.environ.get("SAGE_STATE_DIR")
        where = _place(Path(state).expanduser() if state else None)
        talk.warn(f"{exc.message}\nThe configuration cannot be used; looking in {where.state}.")
        return where


def _place(state: Path | None) -> SagePaths:
    from dataclasses import replace

    from sage.common.paths import SagePaths

    here = SagePaths.default()
    return replace(here, state=state) if state else here


def up(
    ctx: typer.Context,
    config: Annotated[Path | None, typer.Option(help="A configuration file.")] = None,
    model: Annotated[str | None, typer.Option(help="Hub name or folder of the LLM.")] = None,
    engine: Annotated[
        str | None, typer.Option(help="What runs it: transformers (if not given) or vllm.")
    ] = None,
    engine_python: Annotated[
        Path | None, typer.Option(help="Interpreter of another environment that has this engine.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Start engines and gateway; print what an OpenAI client needs."""
    from sage.middleware import stack

    talk: Talk = ctx.obj
    settings, where = _settings(config, model, engine, engine_python)
    with stack.interruptible():
        run = stack.start(settings, where, on_progress=talk.say)
    _print_run(run, stack.client_key(where), as_json)
    talk.say(f"ready (pid {run.pid}); stop it with `sage down`")


def _settings(
    config: Path | None, model: str | None, engine: str | None, engine_python: Path | None
) -> tuple[SageConfig, SagePaths]:
    """The configuration as given; without engines, or with a `model` to run, the quick one."""
    from sage.common.errors import UsageError
    from sage.common.settings import load
    from sage.middleware.stack import quick_config

    settings = load(file=config).config
    where = _place(settings.state_dir)
    if model is not None or not settings.engines:
        kind = engine or "transformers"
        settings = quick_config(model, kind, where, engine_python=engine_python, base=settings)
    elif engine or engine_python:
        raise UsageError(
            "The configuration names its engines, so --engine and --engine-python say nothing about them.",
            hint="Set `kind` and `python` there, or give --model too: it is then run instead.",
        )
    return settings, where


def _print_run(run: RunInfo, key: str, as_json: bool) -> None:
    if as_json:
        emit({**run.model_dump(mode="json"), "api_key": key})
        return
    print(f"OPENAI_BASE_URL={run.base_url}")
    print(f"OPENAI_API_KEY={key}")


def status(ctx: typer.Context, config: Config = None, as_json: Json = False) -> None:
    """Engines, queues and policy of the running stack."""
    from sage.middleware.stack import admin_client

    found = admin_client(_paths_at_any_rate(config, ctx.obj)).status()
    if as_json:
        emit(found)
        return
    print(_status_text(found))


def _status_text(found: StackStatus) -> str:
    engines = columns(
        ("ENGINE", "KIND", "MODEL", "STATE", "RUNNING", "SERVED", "FAILED", "RESTARTS", "NOTE"),
        [
            (e.name, e.kind, e.model, e.state, _load(e), e.served, e.failed, e.restarts, _note(e))
            for e in found.engines
        ],
    )
    queues = columns(
        ("QUEUE", "WAITING", "OLDEST S", "SHED", "COMPLETED", "FAILED"),
        [
            (q.request_class, q.waiting, f"{q.oldest_s:.2f}", q.shed, q.completed, q.failed)
            for q in found.queues
        ],
    )
    head = f"sage {found.version}, up {found.uptime_s:.0f} s, policy {found.policy}"
    return "\n\n".join((head, engines, queues, *([_goals(found.classes)] if found.classes else [])))


def _goals(classes: list[ClassStatus]) -> str:
    """What became of each class's requests: how many met their goals, which were refused and why."""
    return columns(
        (
            "CLASS",
            "OFFERED",
            "IN TIME",
            "CANCELLED",
            "RETRIES",
            "HEDGES",
            "TTFT P50/P99",
            "TOTAL P50/P99",
            "SHED",
        ),
        [
            (
                c.request_class,
                c.offered,
                "-" if (share := c.attainment()) is None else f"{share:.1%}",
                c.cancelled,
                c.retries,
                c.hedges,
                _spread(c.ttft_s),
                _spread(c.total_s),
                ", ".join(f"{count} {reason}" for reason, count in c.shed.items()) or "0",
            )
            for c in classes
        ],
    )


def _spread(times: Quantiles | None) -> str:
    return "-" if times is None else f"{times.p50 * 1000:.0f}/{times.p99 * 1000:.0f} ms"


def _load(engine: EngineStatus) -> str:
    return f"{engine.running}/{engine.max_running}"


def _note(engine: EngineStatus) -> str:
    return ", ".join(filter(None, ("RANDOM-WEIGHTS" if engine.random_weights else "", engine.detail)))


def down(ctx: typer.Context, config: Config = None) -> None:
    """Let streams finish, then stop the stack."""
    from sage.middleware.stack import stop

    where = _paths_at_any_rate(config, ctx.obj)
    ctx.obj.say("stopped" if stop(where) else f"nothing was running for {where.state}")
