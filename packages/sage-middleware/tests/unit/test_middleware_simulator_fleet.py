"""Fleets: those that come with the package, files, what is wrong with a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from sage.common.errors import ConfigError, NotFoundError
from sage.middleware.control_plane.simulator.fleet import (
    available_fleets,
    engine_spec,
    load_fleet,
)
from sage.middleware.engines.port import Capability
from sage.middleware.testing.simulated import embed_engine, fleet_of, llm_engine

GOOD = """
name: mine
devices:
  gpu: {interference: 0.2}
engines:
  - {name: llm, kind: llm, count: 2, model: m, group: gpu, a: 0.01, b: 0.001, c: 0.0001}
  - {name: vectors, kind: embedding, model: v, s0: 0.01, s1: 0.0001}
"""


def write(folder: Path, text: str) -> str:
    path = folder / "fleet.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", available_fleets())
def test_the_fleets_of_the_package_load_under_their_names(name: str) -> None:
    fleet = load_fleet(name)
    assert fleet.name == name
    assert fleet.about


def test_there_are_fleets_of_one_machine_and_of_several_gpus() -> None:
    assert {"four_llms", "one_machine_two_cores", "two_gpus_and_cpus"} <= set(available_fleets())


def test_a_file_is_a_fleet_too(tmp_path: Path) -> None:
    fleet = load_fleet(write(tmp_path, GOOD))
    assert [name for name, _ in fleet.instances()] == ["llm0", "llm1", "vectors"]
    assert fleet.devices["gpu"].interference == 0.2


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(NotFoundError, match=r"no fleet 'nowhere'; there are four_llms"):
        load_fleet("nowhere")


def test_every_problem_of_a_file_is_named_with_line_and_key(tmp_path: Path) -> None:
    text = GOOD.replace("a: 0.01", "a: -1").replace("s1:", "s7:")
    with pytest.raises(ConfigError) as caught:
        load_fleet(write(tmp_path, text))
    message = str(caught.value)
    assert "fleet.yaml:6: engines.0.a: Input should be greater than 0; found -1" in message
    assert "engines.1.s1: this key is required and missing" in message
    assert "engines.1.s7: unknown key" in message


def test_an_unknown_kind_says_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="valid are llm, embedding, rerank"):
        load_fleet(write(tmp_path, GOOD.replace("kind: llm", "kind: lm")))


@pytest.mark.parametrize(
    ("engines", "devices", "message"),
    [
        ([llm_engine("a"), embed_engine("a")], {}, "the names a are given to several engines"),
        ([llm_engine("a", count=2), llm_engine("a0")], {}, "the names a0 are given to several engines"),
        ([llm_engine()], {"gpu": {}}, "the devices gpu are the `group` of no engine"),
        ([embed_engine(elastic=True)], {}, "an elastic engine needs `cores`"),
        ([llm_engine(min_replicas=3)], {}, "min_replicas 3 above max_replicas 1"),
        ([], {}, "at least 1"),
    ],
)
def test_what_cannot_work_is_refused(
    engines: list[dict[str, object]], devices: dict[str, dict[str, object]], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        fleet_of(*engines, **devices)


def test_the_core_is_told_what_an_engine_is() -> None:
    (_, llm), (_, embed) = fleet_of(
        llm_engine(chunk=256, kv_tokens=999), embed_engine(kind="rerank", batching="single", cores=2)
    ).instances()
    spec = engine_spec("x", llm, template="llm")
    assert (spec.name, spec.task, spec.chunk, spec.kv_tokens) == ("x", "generate", 256, 999)
    assert (spec.template, spec.batches, spec.managed) == ("llm", True, True)
    spec = engine_spec("y", embed)
    assert (spec.task, spec.cores, spec.batches) == ("rerank", 2, False)
    assert spec.capabilities == {Capability.RERANK}


def test_templates_are_for_fleets_that_may_change() -> None:
    assert fleet_of(llm_engine(), embed_engine()).templates() == ()
    fleet = fleet_of(llm_engine(max_replicas=2), embed_engine(group="cpu", cores=1))
    llm, embed = fleet.templates()
    assert (llm.name, llm.task, llm.max_replicas, llm.start_s) == ("llm", "generate", 2, 5.0)
    assert (embed.task, embed.group, embed.cores) == ("embed", "cpu", 1)
