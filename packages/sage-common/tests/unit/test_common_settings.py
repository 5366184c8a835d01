from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.config import EngineConfig, SageConfig
from sage.common.errors import ConfigError
from sage.common.paths import SagePaths
from sage.common.settings import Loaded, json_schema, load

NO_FLAGS: Mapping[str, object] = {}
ENGINE = "engines:\n  - name: a\n    kind: embedding\n    model: m\n"


class Place:
    """A folder with its own ./sage.yaml, user configuration and --config file."""

    def __init__(self, root: Path) -> None:
        self.cwd, self.user = root / "cwd", root / "config"
        for folder in (self.cwd, self.user):
            folder.mkdir()
        self.paths = SagePaths(state=root / "state", cache=root / "cache", config=self.user)

    def load(
        self,
        flags: Mapping[str, object] = NO_FLAGS,
        *,
        file: Path | None = None,
        env: Mapping[str, str] | None = None,
        **files: str,
    ) -> Loaded:
        for name, text in files.items():
            (getattr(self, name) / "sage.yaml").write_text(text)
        return load(flags, file, cwd=self.cwd, env=env or {}, paths=self.paths)

    def problems(self, text: str, flags: Mapping[str, object] = NO_FLAGS, **env: str) -> str:
        with pytest.raises(ConfigError) as caught:
            self.load(flags, env=env, cwd=text)
        return str(caught.value).replace(str(self.cwd), "CWD")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_without_any_source_all_is_default(place: Place) -> None:
    loaded = place.load()
    assert loaded.config == SageConfig()
    assert set(loaded.origin.values()) == {"default"}
    assert {"state_dir", "gateway.host", "ports.llm", "engines"} <= set(loaded.origin)


def test_each_source_beats_the_next_one_key_by_key(place: Place, tmp_path: Path) -> None:
    file = tmp_path / "other.yaml"
    file.write_text("ports:\n  gateway: 3\n  admin: 3003\n  health: 3002\n  studio: 3001\n")
    loaded = place.load(
        {"ports.gateway": 5},
        file=file,
        env={"SAGE_PORTS__GATEWAY": "4", "SAGE_PORTS__ADMIN": "4003"},
        cwd="ports: {gateway: 2, admin: 2003, health: 2002, ray: 2000}\n",
        user="ports: {gateway: 1, admin: 1003, health: 1002, ray: 1000}\ncontrol_plane: {policy: rr}\n",
    )
    ports = loaded.config.ports
    assert (ports.gateway, ports.admin, ports.health, ports.studio, ports.ray) == (5, 4003, 3002, 3001, 2000)
    assert loaded.config.control_plane.policy == "rr"
    assert loaded.origin["ports.gateway"] == "flag"
    assert loaded.origin["ports.admin"] == "env SAGE_PORTS__ADMIN"
    assert loaded.origin["ports.health"] == f"{file}:4"
    assert loaded.origin["ports.ray"] == f"{place.cwd}/sage.yaml:1"
    assert loaded.origin["control_plane.policy"] == f"{place.user}/sage.yaml:2"
    assert loaded.origin["ports.llm"] == "default"


def test_a_list_is_replaced_as_a_whole_and_its_items_have_origins(place: Place) -> None:
    loaded = place.load(
        cwd=ENGINE, user="engines:\n- {name: x, kind: k, model: m}\n- {name: y, kind: k, model: m}\n"
    )
    assert [engine.name for engine in loaded.config.engines] == ["a"]
    assert loaded.origin["engines.0.kind"] == f"{place.cwd}/sage.yaml:3"
    assert loaded.origin["engines.0.cores"] == "default"
    assert not any(key.startswith("engines.1") for key in loaded.origin)


def test_flags_take_objects_and_text_and_none_means_not_given(place: Place) -> None:
    engine = EngineConfig(name="a", kind="embedding", model="m", args=("--x", "1"))
    loaded = place.load(
        {"engines": [engine], "gateway.host": None, "ports.llm": "[9000, 9001]", "state_dir": Path("/s")}
    )
    assert loaded.config.engines == (engine,)
    assert loaded.config.ports.llm == (9000, 9001)
    assert loaded.config.state_dir == Path("/s")
    assert loaded.origin["gateway.host"] == "default"


def test_environment_reads_lists_and_leaves_text_alone(place: Place) -> None:
    env = {
        "SAGE_PORTS__LLM": "[9000, 9001]",
        "SAGE_CONTROL_PLANE__POLICY": "1.0",
        "SAGE_STATE_DIR": "~/here",
        "SAGE_ENGINES": "[{name: a, kind: k, model: m}]",
        "SAGE_GATEWAY": "{drain_s: 1, max_inputs: 7}",
        "SAGE_GATEWAY__DRAIN_S": "2",
    }
    config = place.load(env=env).config
    assert config.ports.llm == (9000, 9001)
    assert config.control_plane.policy == "1.0"
    assert config.state_dir == Path("~/here").expanduser()
    assert config.engines[0].name == "a"
    assert (config.gateway.drain_s, config.gateway.max_inputs) == (2.0, 7)


@pytest.mark.parametrize(
    "name", ["SAGE_HOME", "SAGE_NATIVE", "SAGE_API_KEY", "SAGE_DATA_DIR", "PATH", "sage_ports__x"]
)
def test_variables_that_are_no_configuration_are_left_alone(place: Place, name: str) -> None:
    assert place.load(env={name: "whatever"}).config == SageConfig()


def test_all_problems_come_at_once_with_place_key_and_what_is_valid(place: Place) -> None:
    text = (
        "gateway:\n  hots: 1\n  drain_s: soon\nports:\n  gateway: '8888'\nengines:\n- {kind: k, model: m}\n"
    )
    said = place.problems(text, {"gatway.host": "x"}, SAGE_FOO__BAR="1")
    assert said.splitlines()[0] == "The configuration has 6 problems:"
    for line in (
        "CWD/sage.yaml:2: gateway.hots: unknown key; the nearest valid key is gateway.host",
        'CWD/sage.yaml:3: gateway.drain_s: found "soon", valid is a number',
        'CWD/sage.yaml:5: ports.gateway: found "8888", valid is a whole number',
        "CWD/sage.yaml:7: engines.0.name: this key is required and missing",
        "env SAGE_FOO__BAR: foo: unknown key; valid keys are state_dir, ports,",
        "flag: gatway: unknown key; the nearest valid key is gateway",
    ):
        assert line in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host: x\n", "CWD/sage.yaml:1: host: unknown key; the nearest valid key is gateway.host"),
        ("ports: {llm: [1]}\n", "CWD/sage.yaml:1: ports.llm.1: the list ends too early"),
        ("ports: {llm: [1, 2, 3]}\n", "valid is a list of at most 2"),
        ("ports: {llm: 7}\n", "CWD/sage.yaml:1: ports.llm: found 7, valid is a list"),
        ("ports: {gateway: true}\n", "found true, valid is a whole number"),
        ("ports: {gateway: 70000}\n", "found 70000, valid is a number up to 65535"),
        ("ports: {gateway: -1}\n", "found -1, valid is a number from 0 up"),
        ("gateway: 5\n", "CWD/sage.yaml:1: gateway: found 5, valid is a mapping of keys to values"),
        ("gateway: {host: 5}\n", "found 5, valid is text"),
        ("gateway: {drain_s: .inf}\n", "valid is a finite number"),
        ("gateway: {max_inputs: 0}\n", "found 0, valid is a number above 0"),
        ("gateway: {max_inputs: 1.5}\n", "found 1.5, valid is a whole number"),
        (
            ENGINE + "    task: rank\n",
            "CWD/sage.yaml:5: engines.0.task: found \"rank\", valid is 'generate', 'embed' or 'rerank'",
        ),
        (ENGINE + "    random_weights: 3\n", "found 3, valid is true or false"),
        (
            ENGINE + "    modle: x\n",
            "CWD/sage.yaml:5: engines.0.modle: unknown key; the nearest valid key is engines.0.model",
        ),
        ("gateway:\n  host: a\n  host: b\n", 'CWD/sage.yaml:3: found duplicate key "host"'),
        ("a: [1\n", "CWD/sage.yaml:2: expected ',' or ']'"),
        ("- 1\n", "CWD/sage.yaml:1: found list, valid is a mapping"),
        ("a: !!python/object/apply:os.system [x]\n", "CWD/sage.yaml:1: could not determine a constructor"),
        ("a: &x [*x]\n", "nested deeper than 32 levels"),
        ("a: " + "[" * 3000 + "\n", "is nested deeper than 32 levels"),
        ("a: \0\n", "special characters are not allowed"),
    ],
)
def test_one_problem_is_one_line(place: Place, text: str, expected: str) -> None:
    said = place.problems(text)
    assert expected in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            ENGINE + "  - {name: a, kind: k, model: m}\n",
            'CWD/sage.yaml:5: engines.1.name: "a" names 2 engines',
        ),
        ("ports: {llm: [5, 4]}\n", "CWD/sage.yaml:1: ports.llm: the range 5 to 4 is empty"),
        ("ports: {admin: 8888}\n", "ports.admin: port 8888 is taken by ports.gateway"),
        ("gateway: {host: 0.0.0.0}\n", 'gateway.host: found "0.0.0.0", valid is a loopback address'),
        ("gateway: {host: example.org}\n", 'found "example.org", valid is a loopback address'),
        (
            "engines: [{name: a, kind: openai, model: m}]\n",
            "engines.0.url: an engine of kind openai needs the base URL",
        ),
        ("engines: [{name: a, kind: openai, model: m, url: ftp://x}]\n", 'found "ftp://x", valid is http://'),
        ("engines: [{name: ../a, kind: k, model: m}]\n", 'found "../a", valid are letters'),
        (
            "engines: [{name: a, kind: k, model: m, min_replicas: 2}]\n",
            "engines.0.min_replicas: 2 is more than max_replicas, which is 1",
        ),
        ("control_plane: {tenants: [{name: 'a b'}]}\n", 'control_plane.tenants.0.name: found "a b"'),
        (
            "control_plane: {tenants: [{name: a}, {name: a}]}\n",
            'control_plane.tenants.1.name: "a" names 2 tenants',
        ),
        ("control_plane: {exploration: 0.9}\n", "control_plane.exploration"),
    ],
)
def test_what_cannot_work_is_refused(place: Place, text: str, expected: str) -> None:
    assert expected in place.problems(text)


def test_a_goal_that_is_set_leaves_the_others_of_its_class(place: Place) -> None:
    goals = place.load(cwd="control_plane: {slos: {chat: {ttft_s: 1}, rerank: {total_s: null}}}\n")
    slos = goals.config.control_plane.slos
    assert (slos.chat.ttft_s, slos.chat.tpot_s, slos.rerank.total_s) == (1.0, 0.1, None)
    assert goals.origin["control_plane.slos.chat.tpot_s"] == "default"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.4.5", "::1", "[::1]", "localhost"])
def test_loopback_hosts_are_accepted(place: Place, host: str) -> None:
    assert place.load({"gateway.host": host}).config.gateway.host == host


def test_port_zero_may_be_asked_for_twice(place: Place) -> None:
    assert place.load({"ports.gateway": 0, "ports.admin": 0}).config.ports.admin == 0


def test_an_empty_file_and_an_empty_section_change_nothing(place: Place) -> None:
    assert place.load(cwd="# nothing\n", user="gateway:\nengines:\n").config == SageConfig()


def test_anchors_and_merge_keys_have_an_origin(place: Place) -> None:
    text = "engines:\n  - &a {name: a, kind: k, model: m}\n  - <<: *a\n    name: b\n"
    loaded = place.load(cwd=text)
    assert [(engine.name, engine.model) for engine in loaded.config.engines] == [("a", "m"), ("b", "m")]
    assert loaded.origin["engines.1.model"].endswith("sage.yaml:3")


def test_a_file_that_was_asked_for_must_be_there_and_be_text(place: Place, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Cannot read the configuration .*none.yaml: No such file"):
        place.load(file=tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        place.load(file=tmp_path / "bytes.yaml")
    (tmp_path / "big.yaml").write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(ConfigError, match="valid is up to 1048576"):
        place.load(file=tmp_path / "big.yaml")


def test_a_broken_value_in_the_environment_names_the_variable(place: Place) -> None:
    with pytest.raises(ConfigError, match=r"env SAGE_PORTS__LLM: '\[1' is not a YAML value"):
        place.load(env={"SAGE_PORTS__LLM": "[1"})


def test_sources_are_found_without_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SAGE_GATEWAY__MAX_INPUTS", "9")
    (tmp_path / "sage.yaml").write_text("gateway: {drain_s: 3}\n")
    gateway = load().config.gateway
    assert (gateway.max_inputs, gateway.drain_s) == (9, 3.0)


def test_the_json_schema_accepts_what_load_accepts(place: Place) -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(
        {"ports": {"llm": [8001, 8002]}, "engines": [{"name": "a", "kind": "k", "model": "m"}]}, schema
    )
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"gateway": {"hots": 1}}, schema)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_KEYS = st.sampled_from(
    ["gateway", "gateway.host", "ports.llm", "engines", "engines.0", "x", "", "a.b", "ports..x"]
)


@given(st.dictionaries(_KEYS, _JSON, max_size=3))
def test_whatever_comes_in_is_a_configuration_or_a_config_error(flags: dict[str, object]) -> None:
    nowhere = Path("/nonexistent")
    paths = SagePaths(state=nowhere, cache=nowhere, config=nowhere)
    with contextlib.suppress(ConfigError):
        assert isinstance(load(flags, cwd=nowhere, env={}, paths=paths).config, SageConfig)
