"""The flow of a configured pipeline: from a YAML file, an installed package, or `module:name`."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

from sage.common.config import PipelineConfig
from sage.common.errors import ConfigError, SageError
from sage.kernel.flow import Flow
from sage.kernel.pipeline import load_yaml
from sage.middleware.pipelines.conversation import check_kind

__all__ = ["GROUP", "flow_of"]

GROUP: Final = "sage.models"
"""The entry points of flows: each is a function that gives a `Flow`, called with the pipeline's `params`."""
_YAML: Final = (".yaml", ".yml")


def flow_of(config: PipelineConfig) -> Flow:
    """The flow, checked. Imports code and reads files: not for the loop.

    Raises ConfigError that names the pipeline, with what is wrong with it.
    """
    try:
        flow = _found(config)
        flow.check()
    except SageError as error:
        raise ConfigError(f"Pipeline {config.name}: {error.message}", hint=error.hint) from error
    starts = [node for node in flow.plan.nodes if node.verb == "requests"]
    if not starts:
        raise ConfigError(
            f"Pipeline {config.name}: flow {flow.name!r} answers no requests.",
            hint="Begin it with flow.requests(str) and end it with flow.reply(...).",
        )
    check_kind(config.name, starts[0].fn)
    return flow


def _found(config: PipelineConfig) -> Flow:
    if config.flow.endswith(_YAML):
        if config.params:
            raise ConfigError("a YAML file takes no params; write them into its steps.")
        return load_yaml(Path(config.flow).expanduser(), allow=config.allow)
    if ":" in config.flow:
        return _made(config, _imported(config.flow))
    points = {point.name: point for point in entry_points(group=GROUP)}
    if config.flow not in points:
        raise ConfigError(
            f"there is no flow {config.flow!r}; installed are: {', '.join(sorted(points)) or 'none'}.",
            hint="Name a YAML file, one of these, or module:name of your own.",
        )
    return _made(config, points[config.flow].load())


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"flow {name!r} cannot be imported: {error}.") from error


def _made(config: PipelineConfig, found: Any) -> Flow:
    if callable(found):
        try:
            found = found(**config.params)
        except TypeError as error:
            raise ConfigError(f"flow {config.flow!r} does not take these params: {error}.") from error
    if not isinstance(found, Flow):
        raise ConfigError(f"{config.flow!r} is a {type(found).__name__}, not a Flow or what makes one.")
    return found
