"""`sage bench simulate` and `workloads` as commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sage.benchmark.cli import app
from sage.common.errors import ConfigError, NotFoundError, SageError, UsageError

SHORT = ["--trace", "two_cores", "--fleet", "one_machine_two_cores", "--duration", "6"]


def simulate(*args: str) -> Any:
    return CliRunner().invoke(app, ["simulate", *SHORT, "--jobs", "1", *args])


def content(*args: str) -> dict[str, Any]:
    result = simulate(*args, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def metric(found: dict[str, Any], arm: str, name: str, group: str = "all", load: float = 1.0) -> float:
    rows = [row for row in found["metrics"] if (row["arm"], row["metric"], row["group"], row["load"]) == (
        arm, name, group, load)]  # fmt: skip
    return float(rows[0]["value"])


def test_policies_are_compared_in_a_labelled_table(tmp_path: Path) -> None:
    result = simulate("--policy", "fifo,least_load", "--seeds", "0..1", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "[SIMULATED] two_cores on one_machine_two_cores, load 1, 2 seeds" in result.stdout
    for word in ("fifo", "least_load", "embed_interactive", "attainment", "TTFT p99 ms"):
        assert word in result.stdout
    assert "4/4 least_load, load 1, seed 1" in result.stderr
    written = json.loads((tmp_path / "simulate.json").read_text())
    assert written["label"] == "SIMULATED"
    assert {"hardware", "versions", "git"} == set(written["environment"])
    assert len(written["runs"]) == 4
    assert "[SIMULATED]" in (tmp_path / "simulate.html").read_text()


def test_the_same_command_gives_the_same_figures() -> None:
    first, second = (content("--policy", "fifo", "--seeds", "0") for _ in range(2))
    assert first["metrics"] == second["metrics"]
    assert first["metrics"] != content("--policy", "fifo", "--seeds", "1")["metrics"]


def test_several_processes_give_what_one_gives() -> None:
    one = content("--policy", "fifo", "--seeds", "0..1")
    two = content("--policy", "fifo", "--seeds", "0..1", "--jobs", "2")
    assert one["metrics"] == two["metrics"]


def test_loads_are_run_one_by_one() -> None:
    found = content("--policy", "fifo", "--seeds", "0", "--load", "0.5,20")
    assert {row["load"] for row in found["metrics"]} == {0.5, 20.0}
    calm, busy = (metric(found, "fifo", "ttft_p99", "chat", load) for load in (0.5, 20.0))
    assert busy > 2 * calm


def test_what_if_is_an_arm_of_its_own() -> None:
    found = content("--policy", "fifo", "--seeds", "0", "--load", "3", "--what-if", "llm.a=0.001,llm.b=0")
    arm = "fifo @ llm.a=0.001,llm.b=0"
    quick, slow = (metric(found, one, "tpot_p50", "chat", 3.0) for one in (arm, "fifo"))
    assert quick < slow / 2
    assert {row["arm"] for row in found["comparisons"]} == {arm}


def test_a_fault_costs_attainment() -> None:
    calm = metric(content("--policy", "fifo", "--seeds", "0"), "fifo", "attainment")
    struck = content("--policy", "fifo", "--seeds", "0", "--faults", "kill:llm@2")
    assert metric(struck, "fifo", "attainment") < calm


def test_an_own_workload_is_read_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "load.yaml"
    file.write_text("streams:\n  - {kind: embed, arrivals: {process: burst, size: 3, every_s: 1}}\n")
    found = content("--policy", "fifo", "--seeds", "0", "--trace", str(file), "--duration", "2")
    assert found["runs"][0]["outcomes"] == {"embed_interactive": {"done": 6}}


def test_public_traces_are_read_by_their_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6,50,5\n2023-11-16 18:15:47.6,60,6\n"
    )
    (tmp_path / "m.jsonl").write_text(
        '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}\n'
    )
    for name, count in (("a.csv", 2), ("m.jsonl", 1)):
        found = content("--policy", "fifo", "--seeds", "0", "--trace", str(tmp_path / name))
        assert found["runs"][0]["outcomes"] == {"chat": {"done": count}}


@pytest.mark.parametrize(
    ("args", "error", "words"),
    [
        (["--policy", "ffo"], NotFoundError, "nearest is fifo"),
        (["--trace", "two_core"], NotFoundError, "nearest is two_cores; there are"),
        (["--fleet", "nowhere"], NotFoundError, "there are four_llms"),
        (["--seeds", "x"], UsageError, "0..4"),
        (["--load", "0"], UsageError, "above 0"),
        (["--faults", "kill:nobody@1"], UsageError, "the fleet has llm, embed"),
        (["--what-if", "+nobody"], UsageError, "Names are llm, embed"),
        (["--trace", "rag_chains"], ConfigError, "needs rerank"),
        (["--trace", "azure_conversation"], NotFoundError, "--data-dir"),
        (["--duration", "0.001", "--seeds", "0"], SageError, "--duration"),
        (["--record", "x.ndjson", "--seeds", "0..1"], UsageError, "single run"),
        (["--record", "/nowhere/x.ndjson", "--seeds", "0"], UsageError, "cannot be written"),
    ],
)
def test_what_cannot_be_simulated_says_what_could(
    args: list[str], error: type[Exception], words: str
) -> None:
    result = simulate("--policy", "fifo", *args)
    assert isinstance(result.exception, error), result.output
    assert words in str(result.exception)


def test_a_recording_needs_its_own_models(tmp_path: Path) -> None:
    trace = tmp_path / "run.ndjson"
    assert simulate("--policy", "fifo", "--seeds", "0", "--record", str(trace)).exit_code == 0
    assert json.loads(trace.read_bytes().splitlines()[0]) == {
        "type": "PolicyChanged",
        "at": 0.0,
        "policy": "fifo",
    }
    assert json.loads(trace.read_bytes().splitlines()[1])["type"] == "Goals"
    result = simulate("--policy", "fifo", "--seeds", "0", "--trace", str(trace), "--fleet", "four_llms")
    assert isinstance(result.exception, ConfigError)
    assert "the fleet four_llms serves chat-8b" in str(result.exception)
    assert "calibrate" in str(result.exception)


def test_a_recording_replays_at_another_pace(tmp_path: Path) -> None:
    trace = tmp_path / "run.ndjson"
    simulate("--policy", "fifo", "--seeds", "0", "--record", str(trace))
    plain = content("--policy", "fifo", "--seeds", "0", "--trace", str(trace))
    cut = content("--policy", "fifo", "--seeds", "0", "--trace", str(trace), "--load", "0.5")
    issued = [sum(sum(o.values()) for o in f["runs"][0]["outcomes"].values()) for f in (plain, cut)]
    assert issued[0] > issued[1] > 0


def test_workloads_and_fleets_are_listed_with_what_they_are() -> None:
    listed = CliRunner().invoke(app, ["workloads"]).stdout
    assert "ingestion_storm" in listed
    assert "two_gpus_and_cpus" in listed
    found = json.loads(CliRunner().invoke(app, ["workloads", "--json"]).stdout)
    assert set(found) == {"workloads", "fleets"}
    assert all(about for part in found.values() for about in part.values())
    assert "streams" in json.loads(CliRunner().invoke(app, ["workloads", "--schema"]).stdout)["properties"]


def test_the_default_policy_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from sage.benchmark.cli import app; app()", "simulate", *SHORT]
    done = subprocess.run(
        [*command, "--seeds", "0", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {run["policy"] for run in json.loads(done.stdout)["runs"]} == {"hybrid"}
