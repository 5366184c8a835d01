"""Workloads: streams of requests side by side, written in YAML, ready ones found by name."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator
from heapq import merge
from importlib import resources
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, model_validator

from sage.common.errors import ConfigError, NotFoundError
from sage.middleware.control_plane.simulator.arrivals import Section
from sage.middleware.control_plane.simulator.fleet import Fleet
from sage.middleware.control_plane.simulator.schema import read_checked
from sage.middleware.control_plane.simulator.shapes import Models, Setting
from sage.middleware.control_plane.simulator.streams import Chat, Embed, Generate, Rag
from sage.middleware.control_plane.simulator.traces import Replay
from sage.middleware.control_plane.simulator.types import SimRequest

__all__ = [
    "Workload",
    "available_workloads",
    "json_schema",
    "load_workload",
    "models_of",
    "read_workload",
]

AnyStream = Annotated[Chat | Generate | Embed | Rag | Replay, Field(discriminator="kind")]


class Workload(Section):
    """All of a workload file. `duration_s`: how long arrivals last unless the caller says otherwise."""

    about: str = ""
    duration_s: PositiveFloat = 120.0
    streams: Annotated[tuple[AnyStream, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _titles_differ(self) -> Workload:
        tally = Counter(stream.title for stream in self.streams)
        if twice := [title for title, number in tally.items() if number > 1]:
            raise ValueError(f"several streams are called {', '.join(twice)}; give each its own `name`")
        return self

    def requests(self, setting: Setting) -> Iterator[SimRequest]:
        """All requests by arrival. The same setting gives the same ones.

        Raises ConfigError when the setting has no model for a stream, NotFoundError for an absent trace.
        """
        for stream in self.streams:
            if not stream.model and (lacking := [n for n in stream.needs() if not setting.models.of(n)]):
                wanted = " and ".join(sorted(lacking))
                raise ConfigError(
                    f"The stream {stream.title} needs {wanted}; the fleet has no engine for that.",
                    hint="Take another fleet, or give it such an engine.",
                )
        return merge(*(stream.requests(setting) for stream in self.streams), key=attrgetter("at"))


def models_of(fleet: Fleet) -> Models:
    """The first model of a fleet for each need."""
    first: dict[str, str] = {}
    for engine in fleet.engines:
        first.setdefault(engine.kind, engine.model)
    return Models(first.get("llm", ""), first.get("embedding", ""), first.get("rerank", ""))


def available_workloads() -> dict[str, str]:
    """Names of the workloads that come with the package, sorted, and what each is about."""
    folder = resources.files(__package__) / "ready"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    return {name.removesuffix(".yaml"): _ready(name).about for name in names}


def load_workload(name: str) -> Workload:
    """The workload that comes with the package under `name`, else the YAML file of that path.

    Raises NotFoundError with the names that exist, ConfigError with every problem of a file.
    """
    if (resources.files(__package__) / "ready" / f"{name}.yaml").is_file():
        return _ready(f"{name}.yaml")
    if Path(name).is_file():
        return read_workload(Path(name))
    names = list(available_workloads())
    close = difflib.get_close_matches(name, names, n=1)
    nearest = f"; the nearest is {close[0]}" if close else ""
    raise NotFoundError(
        f"There is no workload {name!r}{nearest}; there are {', '.join(names)}.",
        hint="Name one of them, or the path of a workload's YAML file.",
    )


def read_workload(path: Path) -> Workload:
    """The workload of a YAML file. Raises ConfigError with every problem: place, key, what is valid."""
    return read_checked(path, Workload, "workload")


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a workload file, for editors."""
    schema = Workload.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "SAGE workload"}


def _ready(name: str) -> Workload:
    with resources.as_file(resources.files(__package__) / "ready" / name) as path:
        return read_workload(path)
