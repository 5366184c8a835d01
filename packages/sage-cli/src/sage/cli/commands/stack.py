"""`sage up`, `status` and `down`: the stack of this machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sage.cli.output import Talk, columns, emit

if TYPE_CHECKING:
    from sage.common.api import ClassStatus, EngineStatus, Quantiles, ReloadReport, RunInfo, StackStatus
    from sage.common.paths import SagePaths

__all__ = ["Config", "Json", "down", "paths", "reload", "status", "up"]

_WIDEST = 48  # characters of a value

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
    from sage.middleware.recipe import Recipe

    talk: Talk = ctx.obj
    recipe = Recipe(config, model, engine, engine_python)
    settings, where = recipe.settings()
    with stack.interruptible():
        run = stack.start(settings, where, on_progress=talk.say, recipe=recipe.text())
    _print_run(run, stack.client_key(where), as_json)
    talk.say(f"ready (pid {run.pid}); stop it with `sage down`")


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


def reload(ctx: typer.Context, config: Config = None, as_json: Json = False) -> None:
    """Load the configuration again and apply it while requests run."""
    from sage.middleware.stack import admin_client

    talk: Talk = ctx.obj
    report = admin_client(_paths_at_any_rate(config, talk)).reload()
    if as_json:
        emit(report)
    else:
        print(_report_text(report) or "nothing has changed")
    if report.needs_restart:
        talk.warn("Some of it needs a new process: `sage down`, then `sage up`.")


def _report_text(report: ReloadReport) -> str:
    engines = [
        (what, f"engine {name}", "") for what, names in report.engines.model_dump().items() for name in names
    ]
    keys = [
        (what, change.key, f"{_shown(change.before)} → {_shown(change.after)}")
        for what, changes in (("applied", report.applied), ("needs restart", report.needs_restart))
        for change in changes
    ]
    rows = engines + keys
    return columns(("WHAT", "OF", "CHANGE"), rows) if rows else ""


def _shown(value: object) -> str:
    """As it would be written in the file, shortened."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


def down(ctx: typer.Context, config: Config = None) -> None:
    """Let streams finish, then stop the stack."""
    from sage.middleware.stack import stop

    where = _paths_at_any_rate(config, ctx.obj)
    ctx.obj.say("stopped" if stop(where) else f"nothing was running for {where.state}")
