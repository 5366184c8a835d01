"""What is wrong with the names of section `models`: the ones that lead nowhere, in circles, or twice."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping

from sage.common.config import ModelConfig, SageConfig
from sage.common.sources import KeyPath

__all__ = ["name_problems"]

_LONGEST = 256  # characters; what a key's list of models takes
_DEEPEST = 16  # names one after the other


def name_problems(config: SageConfig) -> Iterator[tuple[KeyPath, str]]:
    """Each problem with its place.

    Without engines nothing is said about unknown targets: which engines there will be is not known then.
    """
    engines = {engine.model_id: engine.name for engine in reversed(config.engines)}
    engines |= {f"pipeline/{pipeline.name}": pipeline.name for pipeline in config.pipelines}
    names = Counter(model.name for model in config.models)
    yield from _pipelines(config)
    for index, model in enumerate(config.models):
        place: KeyPath = ("models", index, "name")
        if not model.name.isprintable() or not 0 < len(model.name.strip()) <= len(model.name) <= _LONGEST:
            yield place, f"found {model.name[:60]!r}, valid is printable text of 1 to {_LONGEST} characters"
        if names[model.name] > 1:
            yield place, f'"{model.name}" names {names[model.name]} models; each needs its own name'
        if model.name in engines:
            yield (
                place,
                f'"{model.name}" is the id of engine {engines[model.name]}; give this one another name, '
                "or the engine another served_as",
            )
        if not model.to:
            yield ("models", index, "to"), "found [], valid is a list of one target or more"
        if config.engines:
            yield from _unknown(index, model, {*engines, *names})
    yield from _circles({model.name: (at, model) for at, model in enumerate(config.models)})


def _pipelines(config: SageConfig) -> Iterator[tuple[KeyPath, str]]:
    counts = Counter(pipeline.name for pipeline in config.pipelines)
    for index, pipeline in enumerate(config.pipelines):
        if counts[pipeline.name] > 1:
            words = f'"{pipeline.name}" names {counts[pipeline.name]} pipelines; each needs its own name'
            yield ("pipelines", index, "name"), words


def _references(index: int, model: ModelConfig) -> Iterator[tuple[KeyPath, str]]:
    """Where a name leads, with the place of each."""
    for at, target in enumerate(model.to):
        yield ("models", index, "to", at, "model"), target.model
    for at, name in enumerate(model.fallbacks):
        yield ("models", index, "fallbacks", at), name


def _unknown(index: int, model: ModelConfig, known: set[str]) -> Iterator[tuple[KeyPath, str]]:
    for place, name in _references(index, model):
        if name not in known:
            others = sorted(known - {model.name})
            near = difflib.get_close_matches(name, others, n=1)
            valid = f'the nearest one is "{near[0]}"' if near else f"there are: {', '.join(others)}"
            yield place, f'there is no model "{name}"; {valid}'


def _circles(models: Mapping[str, tuple[int, ModelConfig]]) -> Iterator[tuple[KeyPath, str]]:
    """Each circle once, where the walk along the names meets one that it came from; and chains too long."""
    steps: dict[str, int] = {}  # names from each to the end, of those that were walked

    def walk(name: str, way: tuple[str, ...]) -> Iterator[tuple[KeyPath, str]]:
        longest = 0
        for place, target in _references(*models[name]):
            if target in way:
                circle = " → ".join((*way[way.index(target) :], target))
                yield place, f"{circle} is a circle; a name must end at the model of an engine"
                continue
            if target in models and target not in steps and len(way) < _DEEPEST:
                yield from walk(target, (*way, target))
            longest = max(longest, steps.get(target, _DEEPEST if target in models else 0))
        steps[name] = longest + 1
        if steps[name] == _DEEPEST + 1:
            yield (
                ("models", models[name][0], "to"),
                f"it is more than {_DEEPEST} names from here to an engine's model",
            )

    for name in models:
        if name not in steps:
            yield from walk(name, (name,))
