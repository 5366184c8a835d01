"""From one configuration to another: what is applied, what needs a restart, which engines change. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from sage.common.config import EngineConfig, ModelConfig, SageConfig, TargetConfig, TenantConfig
from sage.gateway.reconfigure import plan
from sage.middleware.live_pool import in_place


def config(**sections: Any) -> SageConfig:
    return SageConfig.model_validate(sections)


def engine(name: str, **fields: Any) -> EngineConfig:
    return EngineConfig(**{"name": name, "kind": "transformers", "model": "m", **fields})


def test_nothing_changes() -> None:
    todo = plan(config(engines=[engine("a")]), config(engines=[engine("a")]))
    assert todo.report.model_dump() == plan(config(), config()).report.model_dump()
    assert not todo.keys
    assert todo.config == config(engines=[engine("a")])


def test_what_is_applied_is_told_with_both_values() -> None:
    alias = ModelConfig(name="x", to=(TargetConfig(model="m"),))
    new = config(
        gateway={"allowed_hosts": ["sage.example"], "drain_s": 5},
        control_plane={"policy": "fifo", "slos": {"chat": {"ttft_s": 1}}, "tenants": [{"name": "t"}]},
        models=[alias],
    )
    todo = plan(config(), new)
    changes = {change.key: (change.before, change.after) for change in todo.report.applied}
    assert changes == {
        "gateway.allowed_hosts": (["127.0.0.1", "localhost", "[::1]"], ["sage.example"]),
        "gateway.drain_s": (30.0, 5.0),
        "control_plane.policy": ("hybrid", "fifo"),
        "control_plane.slos.chat.ttft_s": (2.0, 1.0),
        "control_plane.tenants": ([], [TenantConfig(name="t").model_dump()]),
        "models": ([], [alias.model_dump(mode="json")]),
    }
    assert todo.report.needs_restart == []
    assert todo.config == new


def test_what_needs_a_restart_is_told_and_left_as_it_was() -> None:
    old = config(ports={"gateway": 1000})
    new = config(
        state_dir="/elsewhere",
        ports={"gateway": 2000, "llm": [3000, 3001]},
        gateway={"host": "127.0.0.2", "drain_s": 5},
        control_plane={"trace": "/t.ndjson"},
    )
    todo = plan(old, new)
    assert {change.key: (change.before, change.after) for change in todo.report.needs_restart} == {
        "state_dir": (None, "/elsewhere"),
        "ports.gateway": (1000, 2000),
        "ports.llm": ([8001, 8089], [3000, 3001]),
        "gateway.host": ("127.0.0.1", "127.0.0.2"),
        "control_plane.trace": (None, "/t.ndjson"),
    }
    assert todo.keys == {"gateway.drain_s"}
    assert todo.config == config(ports={"gateway": 1000}, gateway={"drain_s": 5})


def test_engines_by_their_names() -> None:
    old = config(engines=[engine("stays"), engine("goes"), engine("grows"), engine("turns"), engine("moved")])
    new = config(
        engines=[
            engine("moved"),
            engine("turns", args=("--x",)),
            engine("grows", max_running=64),
            engine("stays"),
            engine("comes"),
        ]
    )
    assert plan(old, new).report.engines.model_dump() == {
        "added": ["comes"],
        "removed": ["goes"],
        "replaced": ["turns"],
        "changed": ["grows"],
    }


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({}, {"max_running": 2, "kv_tokens": 7, "start_timeout_s": 1}, True),
        ({"kind": "vllm"}, {"kind": "vllm", "max_running": 2}, False),  # its command line says so too
        ({"kind": "openai", "url": "http://a"}, {"kind": "openai", "url": "http://b"}, False),
        ({}, {"max_replicas": 3}, True),
        ({"min_replicas": 0}, {"min_replicas": 0, "max_replicas": 3}, True),
        ({"min_replicas": 0}, {}, False),  # it may sleep, and nobody would wake it
        ({}, {"cores": 2}, False),
        ({}, {"served_as": "other"}, False),
    ],
)
def test_what_an_engine_can_become_as_it_is(
    before: dict[str, Any], after: dict[str, Any], expected: bool
) -> None:
    assert in_place(engine("e", **before), engine("e", **after)) is expected


def test_every_key_is_either_applied_or_needs_a_restart() -> None:
    """Also one that is added to the schema later: it is told, never half applied."""

    def keys(section: BaseModel, prefix: str = "") -> Iterator[str]:
        for name in type(section).model_fields:
            value = getattr(section, name)
            if isinstance(value, BaseModel):
                yield from keys(value, f"{prefix}{name}.")
            elif prefix + name != "engines":
                yield prefix + name

    others: dict[str, Any] = {
        "ports": dict.fromkeys(("gateway", "health", "admin", "studio", "ray"), 7),
        "gateway": {"max_body_bytes": 1, "max_inputs": 1, "host": "127.0.0.9"},
    }
    todo = plan(config(), config(**others))
    told = [*todo.report.applied, *todo.report.needs_restart]
    assert {change.key for change in told} == {
        *(f"ports.{name}" for name in others["ports"]),
        *(f"gateway.{name}" for name in others["gateway"]),
    }
    assert {change.key for change in told} <= set(keys(config()))


VALUES = st.fixed_dictionaries(
    {},
    optional={
        "ports": st.fixed_dictionaries({}, optional={"gateway": st.integers(0, 9), "ray": st.integers(0, 9)}),
        "gateway": st.fixed_dictionaries(
            {}, optional={"drain_s": st.integers(1, 9), "host": st.sampled_from(["127.0.0.1", "::1"])}
        ),
        "control_plane": st.fixed_dictionaries({}, optional={"policy": st.sampled_from(["fifo", "edf"])}),
        "engines": st.lists(
            st.builds(engine, st.sampled_from("abc"), cores=st.integers(0, 1)), unique_by=lambda one: one.name
        ),
    },
)


@given(VALUES, VALUES)
def test_the_way_there_is_whole(before: dict[str, Any], after: dict[str, Any]) -> None:
    old, new = config(**before), config(**after)
    todo = plan(old, new)
    again = plan(todo.config, new)  # nothing is left to do but what needs a restart
    assert not again.keys
    assert again.report.needs_restart == todo.report.needs_restart
    assert again.report.engines.model_dump() == plan(new, new).report.engines.model_dump()
    assert (todo.config == new) is (not todo.report.needs_restart)
    named = todo.report.engines
    assert {one.name for one in todo.config.engines} == (
        {one.name for one in old.engines} - set(named.removed) | set(named.added)
    )
