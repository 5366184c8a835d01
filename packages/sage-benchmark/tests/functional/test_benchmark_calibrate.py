"""Calibration against a run whose constants are known: one that the simulator made itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from sage.benchmark.cli import app
from sage.benchmark.simulate.calibrate import calibrate
from sage.benchmark.simulate.compare import gaps, typical_error
from sage.benchmark.simulate.runs import Arm, Task, record
from sage.common.errors import ConfigError, UsageError
from sage.middleware.control_plane.simulator.clients import clients
from sage.middleware.control_plane.simulator.fleet import EmbedEngine, Fleet, LlmEngine, load_fleet
from sage.middleware.control_plane.simulator.recorded import Recording, read_recording
from sage.middleware.control_plane.simulator.replayed import requests
from sage.middleware.control_plane.simulator.types import Client
from sage.middleware.control_plane.simulator.world import simulate
from sage.middleware.control_plane.trace import PolicyChanged
from sage.middleware.testing.simulated import embed_request

# Each constant is a fair part of a call's time: what changes nothing that is seen cannot be found.
FLEET = """
name: known
devices:
  gpu: {interference: 0.4}
engines:
  - {name: llm, kind: llm, model: chat, group: gpu, a: 0.010, b: 0.0012, c: 0.00009, chunk: 1024,
     kv_tokens: 200000, max_running: 32, noise: 0.02}
  - {name: embed, kind: embedding, model: vectors, group: gpu, s0: 0.006, s1: 0.00002, s2: 0.0010,
     batch_tokens: 4096, batch_texts: 64, noise: 0.02}
"""
WORKLOAD = """
duration_s: 80
streams:
  - kind: completion
    arrivals: {process: on_off, rate: 2, on_s: 3, off_s: 3}
    output: {median: 60, most: 300}
  - kind: embed
    arrivals: {process: on_off, rate: 12, on_s: 4, off_s: 4}
    texts: {median: 4, spread: 0.8, most: 40}
    tokens: {median: 80, spread: 1.0, most: 512}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet, a workload, and the trace of one run of both."""
    folder = tmp_path_factory.mktemp("calibrate")
    (folder / "known.yaml").write_text(FLEET)
    (folder / "load.yaml").write_text(WORKLOAD)
    arm = Arm("least_load", "least_load", load_fleet(str(folder / "known.yaml")))
    record(Task(arm, str(folder / "load.yaml"), seed=1), folder / "run.ndjson")
    return folder


@pytest.fixture(scope="module")
def recording(folder: Path) -> Recording:
    return read_recording(folder / "run.ndjson")


@pytest.fixture(scope="module")
def fitted(recording: Recording) -> Fleet:
    return calibrate(recording, "fitted").fleet


def test_the_fit_finds_the_constants_of_the_llm(fitted: Fleet) -> None:
    llm = dict(fitted.instances())["llm"]
    assert isinstance(llm, LlmEngine)
    assert (llm.a, llm.b, llm.c) == pytest.approx((0.010, 0.0012, 0.00009), rel=0.05)
    assert (llm.chunk, llm.kv_tokens, llm.max_running, llm.model) == (1024, 200000, 32, "chat")
    assert llm.prefix_cache


def test_an_engine_that_computes_every_prompt_anew_is_fitted_as_one(recording: Recording) -> None:
    spec = msgspec.structs.replace(recording.engines["llm"], kind="transformers")
    changed = replace(recording, engines={**recording.engines, "llm": spec})
    llm = dict(calibrate(changed, "fitted").fleet.instances())["llm"]
    assert isinstance(llm, LlmEngine)
    assert not llm.prefix_cache


def test_the_fit_finds_the_constants_of_the_embedding_engine(fitted: Fleet) -> None:
    embed = dict(fitted.instances())["embed"]
    assert isinstance(embed, EmbedEngine)
    assert (embed.s0, embed.s1, embed.s2) == pytest.approx((0.006, 0.00002, 0.0010), rel=0.05)
    assert embed.noise == pytest.approx(0.02, abs=0.01)


def test_the_fit_finds_what_they_cost_each_other(fitted: Fleet) -> None:
    assert fitted.devices["gpu"].interference == pytest.approx(0.4, rel=0.05)


def test_the_simulator_is_close_to_the_run_that_it_was_fitted_to(recording: Recording, fitted: Fleet) -> None:
    found = gaps(recording, fitted, "least_load", [0, 1])
    assert sorted(f"{gap.group} {gap.metric}" for gap in found) == [
        "completion tpot_p50", "completion tpot_p99", "completion ttft_p50", "completion ttft_p99",
        "embed_interactive e2e_p50", "embed_interactive e2e_p99",
    ]  # fmt: skip
    assert typical_error(found) < 0.1
    assert all(abs(gap.error) < 0.1 for gap in found if gap.metric in ("tpot_p50", "e2e_p50"))
    wrong = fitted.model_copy(update={"engines": tuple(_slower(engine) for engine in fitted.engines)})
    assert typical_error(gaps(recording, wrong, "least_load", [0])) > 0.3, (
        "a wrong fleet is told from a right one"
    )


def _slower(engine: LlmEngine | EmbedEngine) -> LlmEngine | EmbedEngine:
    names = ("a", "b", "c") if isinstance(engine, LlmEngine) else ("s0", "s1", "s2")
    return engine.model_copy(update={name: 2 * getattr(engine, name) for name in names})


def test_the_command_writes_a_fleet_that_simulates_the_recording(folder: Path) -> None:
    out = folder / "fit.yaml"
    run = CliRunner().invoke(
        app, ["calibrate", str(folder / "run.ndjson"), "--out", str(out), "--seeds", "0"]
    )
    assert run.exit_code == 0, run.output
    assert "[SIMULATED] run.ndjson, least_load: the simulator against the recorded run" in _flat(run.stdout)
    assert "simulator error, median over 6 metrics (fitted)" in run.stdout
    assert "held out" not in run.stdout
    assert "SIMULATED" in out.read_text()
    again = CliRunner().invoke(
        app, ["simulate", "--policy", "fifo", "--trace", str(folder / "run.ndjson"), "--fleet", str(out),
              "--seeds", "0", "--duration", "5", "--jobs", "1", "--json"]
    )  # fmt: skip
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["parameters"]["trace"].endswith("run.ndjson")


def test_the_json_of_the_command_is_labelled(folder: Path) -> None:
    args = [
        "calibrate",
        str(folder / "run.ndjson"),
        "--out",
        str(folder / "x.yaml"),
        "--seeds",
        "0",
        "--json",
    ]
    content: dict[str, Any] = json.loads(CliRunner().invoke(app, args).stdout)
    assert content["label"] == "SIMULATED"
    (run,) = content["runs"]
    assert (run["policy"], run["role"], run["recorded"]) == ("least_load", "fitted", "run.ndjson")
    assert {row["label"] for row in run["errors"]} == {"SIMULATED"}
    assert run["median_error"] >= 0


@pytest.fixture(scope="module")
def other(folder: Path) -> Path:
    """A run of the same fleet that nothing is fitted to: other arrivals."""
    arm = Arm("least_load", "least_load", load_fleet(str(folder / "known.yaml")))
    record(Task(arm, str(folder / "load.yaml"), seed=7), folder / "other.ndjson")
    return folder / "other.ndjson"


def test_a_run_that_was_held_out_is_told_from_that_of_the_fit(folder: Path, other: Path) -> None:
    args = ["calibrate", str(folder / "run.ndjson"), "--validate", str(other), "--seeds", "0",
            "--out", str(folder / "y.yaml")]  # fmt: skip
    content: dict[str, Any] = json.loads(CliRunner().invoke(app, [*args, "--json"]).stdout)
    fit, held_out = content["runs"]
    assert (held_out["role"], held_out["recorded"], held_out["label"]) == (
        "held out",
        "other.ndjson",
        "SIMULATED",
    )
    assert held_out["median_error"] < 0.1
    assert [row["live"] for row in held_out["errors"]] != [row["live"] for row in fit["errors"]]
    assert all(row["samples"] >= 100 for row in held_out["errors"])
    shown = _flat(CliRunner().invoke(app, args).stdout)
    assert "the simulator against the recorded run (held out)" in shown
    assert "simulator error, median over 6 metrics (held out)" in shown


def test_a_run_of_other_engines_validates_nothing(folder: Path, tmp_path: Path) -> None:
    arm = Arm("fifo", "fifo", load_fleet("one_machine_two_cores"))
    record(Task(arm, "two_cores", seed=1, duration=5), tmp_path / "strange.ndjson")
    args = ["calibrate", str(folder / "run.ndjson"), "--validate", str(tmp_path / "strange.ndjson"),
            "--out", str(tmp_path / "z.yaml")]  # fmt: skip
    error = CliRunner().invoke(app, args).exception
    assert isinstance(error, ConfigError)
    assert "the fitted fleet serves chat, vectors" in str(error)


def test_the_fit_finds_how_much_engines_vary(fitted: Fleet) -> None:
    embed = dict(fitted.instances())["embed"]
    assert embed.dispersion is not None
    low, high = embed.dispersion.factors[2], embed.dispersion.factors[-3]
    assert (low, high) == pytest.approx((0.967, 1.033), abs=0.02)  # p5 and p95 of sigma 0.02
    assert embed.dispersion.hold_s == 0.0, "each batch drew its own"


def test_a_storm_is_calibrated_as_a_storm(folder: Path, tmp_path: Path) -> None:
    """Clients that ask again when they were answered: a fleet twice as slow is asked half as often."""
    fleet = load_fleet(str(folder / "known.yaml"))
    pauses = [embed_request(f"s{number}", 0.004, tokens=3200, texts=64) for number in range(400)]
    storm = [
        msgspec.structs.replace(
            embed_request(f"c{client}", client * 0.01, tokens=3200, texts=64),
            client=Client(30.0, iter(pauses[client::4])),
        )
        for client in range(4)
    ]
    lines: list[bytes] = [msgspec.json.encode(PolicyChanged(0.0, "fifo")) + b"\n"]
    encoder = msgspec.json.Encoder()
    simulate(
        "fifo",
        fleet,
        storm,
        seed=3,
        trace=lambda event, acts: lines.append(encoder.encode_lines([event, *acts])),
    )
    path = tmp_path / "storm.ndjson"
    path.write_bytes(b"".join(lines))
    found = read_recording(path)
    assert len(clients(found.requests.values())) == 4
    counts = []
    for factor in (1.0, 2.0):
        slow = [
            engine.model_copy(
                update={"s0": factor * engine.s0, "s1": factor * engine.s1, "s2": factor * engine.s2}
            )
            if isinstance(engine, EmbedEngine)
            else engine
            for engine in fleet.engines
        ]
        again = simulate("fifo", fleet.model_copy(update={"engines": tuple(slow)}), requests(found), seed=0)
        counts.append(len(again.requests))
    assert counts[0] == pytest.approx(len(found.requests), rel=0.05)
    assert counts[1] == pytest.approx(len(found.requests) / 2, rel=0.1)


def test_a_recording_that_says_too_little_is_refused(folder: Path, tmp_path: Path) -> None:
    lines = (folder / "run.ndjson").read_bytes().splitlines(keepends=True)
    short = tmp_path / "short.ndjson"
    short.write_bytes(b"".join(lines[:30]))
    with pytest.raises(ConfigError, match=r"too little about the engine .*: [0-7] usable calls"):
        calibrate(read_recording(short), "short")


def test_an_engine_that_was_never_used_is_left_out(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(FLEET + "  - {name: spare, kind: rerank, model: other, s0: 0.01, s1: 0.0001}\n")
    arm = Arm("fifo", "fifo", load_fleet(str(file)))
    record(Task(arm, str(folder / "load.yaml"), seed=1, duration=20), tmp_path / "run.ndjson")
    found = calibrate(read_recording(tmp_path / "run.ndjson"), "two")
    assert found.left_out == ["spare"]
    assert [name for name, _ in found.fleet.instances()] == ["llm", "embed"]


def test_the_policy_must_be_known_from_somewhere(folder: Path, tmp_path: Path) -> None:
    lines = (folder / "run.ndjson").read_bytes().splitlines(keepends=True)
    bare = tmp_path / "bare.ndjson"
    bare.write_bytes(b"".join(line for line in lines if b"PolicyChanged" not in line))
    result = CliRunner().invoke(app, ["calibrate", str(bare)])
    assert isinstance(result.exception, UsageError)
    assert "--policy" in str(result.exception)


def _flat(text: str) -> str:
    return " ".join(text.split())
