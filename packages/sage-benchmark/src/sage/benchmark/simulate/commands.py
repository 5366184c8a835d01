"""`sage bench simulate`, `workloads` and `calibrate`. Data goes to stdout, progress and talk to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from sage.benchmark.simulate.runs import Arm, Done, Task
    from sage.benchmark.simulate.study import Cell, Difference

__all__ = ["register"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Fleet = Annotated[str, typer.Option(help="A fleet that comes with SAGE, or a fleet.yaml.")]
Seeds = Annotated[str, typer.Option(help="0..4, or 1,5,7.")]
DataDir = Annotated[Path | None, typer.Option(envvar="SAGE_DATA_DIR", help="Where public traces lie.")]
Out = Annotated[Path | None, typer.Option(help="Write simulate.json and simulate.html into this folder.")]
_WORTH_SHOWING: Final = 0.05  # adjusted p below which a difference is printed on the terminal


def register(app: typer.Typer) -> None:
    """Add the commands to `sage bench`."""
    app.command("simulate")(simulate)
    app.command("workloads")(workloads)
    app.command("calibrate")(calibrate)


def simulate(
    policy: Annotated[
        str, typer.Option(help="Policies to compare: a,b,c; the first is the baseline.")
    ] = "hybrid",
    trace: Annotated[
        str, typer.Option(help="A workload of `sage bench workloads`, its YAML file, or a recorded trace.")
    ] = "mixed",
    fleet: Fleet = "two_gpus_and_cpus",
    seeds: Seeds = "0..4",
    load: Annotated[str, typer.Option(help="Factors on all rates: 1.0, or 0.6,1.0,1.4.")] = "1.0",
    duration: Annotated[
        float | None, typer.Option(min=0.001, help="Seconds of arrivals, not of ours.")
    ] = None,
    faults: Annotated[
        list[str] | None, typer.Option(help="KIND:ENGINE@SECOND,KEY=NUMBER; repeat it.")
    ] = None,
    what_if: Annotated[
        list[str] | None,
        typer.Option(help="Compare with another fleet, or +ENGINE, -ENGINE, NAME.KEY=VALUE; repeat it."),
    ] = None,
    data_dir: DataDir = None,
    record: Annotated[
        Path | None, typer.Option(help="Write the trace of the run, if it is a single one, to this .ndjson.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Processes; 0 = one for each core.")] = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Compare policies, or fleets, on a simulated fleet under the same arrivals. SIMULATED."""
    from sage.benchmark.simulate import options, runs, study

    arms = _arms(options.parse_policies(policy), fleet, what_if or [])
    struck = options.parse_faults(faults or [], arms[0].fleet)
    some = runs.Task(arms[0], trace, 0, duration=duration, faults=struck, data_dir=data_dir)
    tasks = [
        replace(some, arm=arm, seed=seed, load=factor)
        for factor in options.parse_loads(load)
        for arm in arms
        for seed in options.parse_seeds(seeds)
    ]
    runs.arrivals(tasks[0])  # what cannot be drawn is told before anything runs
    folder = _folder(out)
    if record is not None:
        done = [runs.record(_single(tasks), record)]
    else:
        done = runs.run_all(tasks, jobs=jobs, on_done=_Progress(len(tasks)))
    table, compared = study.cells(done), study.differences(done)
    parameters = {"trace": trace, "fleet": fleet, "policies": policy, "seeds": seeds, "load": load,
                  "duration_s": duration, "faults": faults or [], "what_if": what_if or []}  # fmt: skip
    _report(f"{trace} on {fleet}", done, table, compared, parameters, folder, as_json=as_json)


def _single(tasks: Sequence[Task]) -> Task:
    from sage.common.errors import UsageError

    if len(tasks) > 1:
        raise UsageError(
            f"--record takes a single run and there are {len(tasks)}.",
            hint="Name one policy, one load and one seed, such as --seeds 0.",
        )
    return tasks[0]


def calibrate(
    recorded: Annotated[Path, typer.Argument(help="The NDJSON trace of a live run (`control_plane.trace`).")],
    validate: Annotated[
        list[Path] | None,
        typer.Option(help="Another live run, that nothing is fitted to: its error is told, too; repeat it."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the fleet here; else beside it, as .fleet.yaml.")
    ] = None,
    policy: Annotated[str, typer.Option(help="Of the recorded runs, where a trace does not say.")] = "",
    seeds: Seeds = "0..2",
    as_json: Json = False,
) -> None:
    """Fit a fleet to a recorded run, simulate its load again and print the simulator's error."""
    from sage.benchmark.simulate import calibrate as fitting
    from sage.benchmark.simulate import compare, options

    runs = [compare.read_run(path, policy) for path in (recorded, *(validate or ()))]
    for run in runs:
        if not run.recording.slos:
            _say(f"{run.path} does not say which goals were in force: those of a default server are taken.")
    fitted = fitting.calibrate(runs[0].recording, recorded.stem)
    file = out or recorded.with_suffix(".fleet.yaml")
    fitting.write_fleet(fitted.fleet, file)
    _say(f"fleet: {file}")
    for engine, like in fitted.borrowed.items():
        _say(f"{engine} was seen in {fitted.rows[engine]} usable calls: it is taken to be like {like}.")
    for engine in fitted.left_out:
        _say(f"{engine} was never used and is left out.")
    drawn = options.parse_seeds(seeds)
    roles = ["fitted", *["held out"] * len(runs)]
    found = [compare.compare(run, fitted.fleet, drawn, role) for run, role in zip(runs, roles, strict=False)]
    if as_json:
        typer.echo(json.dumps(compare.to_json(found, fitted)))
        return
    for one in found:
        title = f"{one.run.path.name}, {one.run.policy}: the simulator against the recorded run ({one.role})"
        head = ["class", "metric", "samples", "recorded ms", "simulated ms", "error"]
        rows = (
            [g.group, g.metric, str(g.samples), f"{g.live:.4g}", f"{g.simulated:.4g}", f"{g.error:+.1%}"]
            for g in one.gaps
        )
        _table(title, head, rows)
        typer.echo(f"simulator error, median over {len(one.gaps)} metrics ({one.role}): {one.error:.1%}")


def workloads(
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of a workload file.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the workloads and the fleets that come with SAGE."""
    from sage.middleware.control_plane.simulator.fleet import available_fleets, load_fleet
    from sage.middleware.control_plane.simulator.workloads import available_workloads, json_schema

    if schema:
        typer.echo(json.dumps(json_schema()))
        return
    found = {
        "workloads": available_workloads(),
        "fleets": {name: load_fleet(name).about for name in available_fleets()},
    }
    if as_json:
        typer.echo(json.dumps(found))
        return
    for kind, entries in found.items():
        typer.echo(f"{kind}:")
        for name, about in entries.items():
            typer.echo(f"  {name:<22} {about}")


def _arms(policies: Sequence[str], fleet: str, what_if: Iterable[str]) -> list[Arm]:
    """The fleet with each policy, then each changed fleet with each policy."""
    from sage.benchmark.simulate.options import changed
    from sage.benchmark.simulate.runs import Arm
    from sage.middleware.control_plane.simulator.fleet import load_fleet

    base = load_fleet(fleet)
    arms = [Arm(policy, policy, base) for policy in policies]
    for change in what_if:
        other = changed(base, change)
        arms += [Arm(f"{policy} @ {change}", policy, other) for policy in policies]
    return arms


class _Progress:
    """A line on stderr for each run that is done."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0

    def __call__(self, done: Done) -> None:
        self._done += 1
        task = done.task
        _say(
            f"{self._done}/{self._total} {task.arm.label}, load {task.load:g}, seed {task.seed}: "
            f"{done.requests:,} requests simulated in {done.wall_s:.1f} s"
        )


def _report(
    title: str,
    done: Sequence[Done],
    table: Sequence[Cell],
    compared: Sequence[Difference],
    parameters: dict[str, Any],
    folder: Path | None,
    *,
    as_json: bool,
) -> None:
    from sage.benchmark import environment
    from sage.benchmark.simulate import output

    if folder is not None or as_json:
        content = output.to_json(done, table, compared, parameters, environment.describe())
        if folder is not None:
            output.write(content, output.html(title, done, table, compared), folder)
            _say(f"report: {folder / 'simulate.html'}")
        if as_json:
            typer.echo(json.dumps(content))
            return
    seeds = len({one.task.seed for one in done})
    for load in dict.fromkeys(one.task.load for one in done):
        heading = f"{title}, load {load:g}, {seeds} seeds, mean and 95 % interval"
        _table(heading, ["class", "arm", *(name for _, name in output.COLUMNS)], output.rows(table, load))
    telling = [row for row in compared if row.p < _WORTH_SHOWING]
    if telling:
        head = ["arm", "load", "class", "metric", "difference", "95 % interval", "p (Holm)", "unit"]
        _table(f"against {telling[0].against}, paired over seeds", head, map(output.difference, telling))
    elif compared:
        _say(
            f"No difference from {compared[0].against} has p < {_WORTH_SHOWING} after Holm's adjustment over "
            f"{len(compared)} comparisons; {seeds} seeds cannot give less than {2 / 2**seeds:.2g} for one "
            "alone. All are in the JSON."
        )


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from sage.benchmark.simulate.output import SIMULATED

    table = Table(*head, title=f"[{SIMULATED}] {title}".replace("[", r"\["))
    for row in rows:
        table.add_row(*row)
    console = Console()
    # A pipe has no width of its own: nothing is folded there.
    Console(width=console.width if console.is_terminal else 240).print(table)


def _folder(out: Path | None) -> Path | None:
    from sage.common.errors import UsageError

    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"Results cannot be written to {out}: {error.strerror}.") from None
    return out


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
