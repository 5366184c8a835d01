"""The names of section `models`: what is wrong with them is told at loading, all at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.config import EngineConfig, ModelConfig, SageConfig, TargetConfig, served_name
from sage.common.errors import ConfigError
from sage.common.names import name_problems
from sage.common.settings import load

ENGINES = """\
engines:
  - {name: a, kind: transformers, model: Qwen/qwen}
  - {name: b, kind: transformers, model: random, random_weights: true}
"""


def problems(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "sage.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(cwd=tmp_path, env={})
    lines = str(caught.value).replace(str(tmp_path), "CWD").splitlines()
    return [line.strip() for line in (lines[1:] or lines)]


def names(*entries: tuple[str, list[str], list[str]]) -> SageConfig:
    return SageConfig(
        models=tuple(
            ModelConfig(name=name, to=tuple(TargetConfig(model=one) for one in to), fallbacks=tuple(after))
            for name, to, after in entries
        )
    )


def test_an_alias_a_split_and_fallbacks(tmp_path: Path) -> None:
    text = """\
models:
  - name: gpt-4o-mini
    to: [{model: qwen, weight: 9}, {model: sage-random-llama}]
    fallbacks: [spare]
  - name: spare
    to:
      - model: qwen
"""
    (tmp_path / "sage.yaml").write_text(ENGINES + text)
    loaded = load(cwd=tmp_path, env={})
    first, second = loaded.config.models
    assert [(one.model, one.weight) for one in first.to] == [("qwen", 9.0), ("sage-random-llama", 1.0)]
    assert (first.fallbacks, second.name) == (("spare",), "spare")
    assert loaded.origin["models.0.to.0.weight"].endswith("sage.yaml:6")


def test_everything_that_is_wrong_is_told_at_once_with_its_place(tmp_path: Path) -> None:
    text = """\
models:
  - name: qwen
    to: [{model: sage-random-llama}]
  - name: fast
    to: [{model: qwin}]
    fallbacks: [nothing-like-it]
  - name: fast
    to: [{model: loop}]
  - name: loop
    to: [{model: fast}]
"""
    assert problems(tmp_path, ENGINES + text) == [
        'CWD/sage.yaml:5: models.0.name: "qwen" is the id of engine a; give this one another name, or the '
        "engine another served_as",
        'CWD/sage.yaml:7: models.1.name: "fast" names 2 models; each needs its own name',
        'CWD/sage.yaml:8: models.1.to.0.model: there is no model "qwin"; the nearest one is "qwen"',
        'CWD/sage.yaml:9: models.1.fallbacks.0: there is no model "nothing-like-it"; there are: loop, qwen, '
        "sage-random-llama",
        'CWD/sage.yaml:10: models.2.name: "fast" names 2 models; each needs its own name',
        "CWD/sage.yaml:13: models.3.to.0.model: fast → loop → fast is a circle; a name must end at the model "
        "of an engine",
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("to: [{model: qwen, weight: 0}]", "models.0.to.0.weight: found 0, valid is a number above 0"),
        ("to: [{model: qwen, weight: -1}]", "models.0.to.0.weight: found -1, valid is a number above 0"),
        ("to: []", "models.0.to: found [], valid is a list of one target or more"),
        ("to: [{model: qwen, wieght: 2}]", "the nearest valid key is models.0.to.0.weight"),
        ("to: qwen", 'models.0.to: found "qwen", valid is a list'),
        ("fallbacks: [qwen]", "models.0.to: this key is required and missing"),
    ],
)
def test_what_the_schema_refuses(tmp_path: Path, line: str, said: str) -> None:
    found = problems(tmp_path, f"{ENGINES}models:\n  - name: x\n    {line}\n")
    assert len(found) == 1
    assert said in found[0]


@pytest.mark.parametrize("name", ["", "  ", "a\n", "x" * 257])
def test_a_name_that_no_client_could_ask_for(name: str) -> None:
    (problem,) = name_problems(names((name, ["m"], [])))
    assert problem[0] == ("models", 0, "name")
    assert "printable text of 1 to 256 characters" in problem[1]


def test_without_engines_targets_are_not_judged() -> None:
    assert not list(name_problems(names(("x", ["whatever"], []))))


def test_a_name_of_itself_is_a_circle() -> None:
    (problem,) = name_problems(names(("x", ["m"], ["x"])))
    assert problem == (
        ("models", 0, "fallbacks", 0),
        "x → x is a circle; a name must end at the model of an engine",
    )


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(("count", "wrong"), [(16, False), (17, True), (5000, True)])
def test_a_chain_of_names_has_a_bound(count: int, wrong: bool, backwards: bool) -> None:
    nothing: list[str] = []
    chain = [(f"n{at}", [f"n{at + 1}"], nothing) for at in range(count)]
    found = list(name_problems(names(*(reversed(chain) if backwards else chain))))
    assert bool(found) is wrong
    assert all("more than 16 names" in words for _, words in found)


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdefm"), min_size=1)))
def test_what_is_let_through_always_ends(graph: dict[str, list[str]]) -> None:
    """Follow the names: without a problem every way ends, and with a way that does not there is one."""
    sound = not list(name_problems(names(*((name, to[:1], to[1:]) for name, to in graph.items()))))

    def ends(name: str, way: frozenset[str]) -> bool:
        return name not in way and all(ends(one, way | {name}) for one in graph.get(name, ()))

    assert sound is all(ends(name, frozenset()) for name in graph)


def test_what_a_remote_can_is_of_its_task(tmp_path: Path) -> None:
    text = """\
engines:
  - {name: r, kind: openai, model: m, url: "http://127.0.0.1:1", capabilities: [chat, rerank]}
  - {name: e, kind: embedding, model: n, task: embed, capabilities: [embeddings]}
  - {name: f, kind: openai, model: o, url: "http://127.0.0.1:1", capabilities: [flying]}
"""
    found = problems(tmp_path, text)
    assert len(found) == 1
    assert "engines.2.capabilities.0" in found[0]
    found = problems(tmp_path, text.replace("flying", "tools"))
    assert 'engines.0.capabilities.1: found "rerank", valid with task generate is one of chat,' in found[0]
    assert "engines.1.capabilities: what an engine of kind embedding can is known" in found[1]


def test_vllm_is_asked_for_the_sound_that_it_reads_and_no_more(tmp_path: Path) -> None:
    text = """\
engines:
  - {name: w, kind: vllm, model: m, capabilities: [transcription, translation, chat]}
  - {name: s, kind: vllm, model: n, capabilities: [speech]}
"""
    found = problems(tmp_path, text)
    assert len(found) == 1
    assert 'engines.1.capabilities.0: found "speech", valid with task generate is one of chat,' in found[0]


def test_the_id_that_clients_ask_for() -> None:
    def id_of(**fields: str) -> str:
        return EngineConfig(**{"name": "e", "kind": "openai", "model": "org/m", **fields}).model_id

    assert id_of() == served_name("/some/folder/m/") == "m"
    assert id_of(served_as="mine") == "mine"
    assert id_of(model="random") == "sage-random-llama"
    assert id_of(model="nano") == "sage-nano"


def test_one_provider_with_many_models_without_repeating_it(tmp_path: Path) -> None:
    text = """\
engines:
  - &provider
    name: mini
    kind: openai
    url: https://api.example.com/v1
    api_key_env: PROVIDER_KEY
    model: gpt-4o-mini
  - <<: *provider
    name: large
    model: gpt-4o
    served_as: big
"""
    (tmp_path / "sage.yaml").write_text(text)
    mini, large = load(cwd=tmp_path, env={}).config.engines
    assert (large.url, large.api_key_env, large.kind) == (mini.url, mini.api_key_env, "openai")
    assert (mini.model_id, large.model_id, large.model) == ("gpt-4o-mini", "big", "gpt-4o")
