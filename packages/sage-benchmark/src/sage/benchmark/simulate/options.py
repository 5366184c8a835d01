"""What the command line of `sage bench simulate` says, as values: seeds, loads, faults, changed fleets."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec
from pydantic import ValidationError

from sage.common.errors import NotFoundError, UsageError
from sage.middleware.control_plane.policy import available_policies
from sage.middleware.control_plane.simulator.faults import (
    Brownout,
    Fault,
    Hang,
    Kill,
    Mute,
    Refuse,
    Reload,
    Slow,
)
from sage.middleware.control_plane.simulator.fleet import Fleet, available_fleets, load_fleet

__all__ = ["FAULTS", "changed", "parse_faults", "parse_loads", "parse_policies", "parse_seeds"]

FAULTS: Final[dict[str, type[Fault]]] = {
    kind.__name__.lower(): kind for kind in (Brownout, Hang, Kill, Mute, Refuse, Reload, Slow)
}
_FAULT: Final = re.compile(r"(?P<kind>\w+):(?P<engine>[^@]+)@(?P<at>[\d.]+)(?P<rest>(,\w+=[^,]+)*)")
_RANGE: Final = re.compile(r"(\d+)\.\.(\d+)")
_MOST_SEEDS: Final = 1000


def parse_seeds(text: str) -> list[int]:
    """`0..4` is 0 to 4, both included; `1,5,7` those. Raises UsageError."""
    if found := _RANGE.fullmatch(text):
        seeds = list(range(int(found[1]), int(found[2]) + 1))
    else:
        seeds = [int(part) for part in text.split(",")] if re.fullmatch(r"\d+(,\d+)*", text) else []
    if not 0 < len(seeds) <= _MOST_SEEDS or len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds is {text!r}; valid is a range such as 0..4, or a list such as 1,5,7.")
    return seeds


def parse_loads(text: str) -> list[float]:
    """`0.6,1.0,1.4`. Raises UsageError."""
    try:
        loads = [float(part) for part in text.split(",")]
    except ValueError:
        loads = []
    if not loads or not all(0 < load <= 100 for load in loads) or len(set(loads)) < len(loads):
        raise UsageError(f"--load is {text!r}; valid are factors above 0, such as 1.0 or 0.6,1.0,1.4.")
    return loads


def parse_policies(text: str) -> list[str]:
    """`fifo,hybrid`. Raises NotFoundError with the names that exist."""
    names, known = text.split(","), available_policies()
    for name in names:
        if name not in known:
            raise NotFoundError(
                f"There is no policy {name!r}{_nearest(name, known)}; there are {_all(known)}."
            )
    if len(set(names)) < len(names):
        raise UsageError(f"--policy is {text!r}, which names a policy twice.")
    return names


def parse_faults(specs: Iterable[str], fleet: Fleet) -> tuple[Fault, ...]:
    """`kill:ENGINE@SECOND,restart_after=20` and its like. Raises UsageError that says what would be valid."""
    return tuple(_fault(spec, [name for name, _ in fleet.instances()]) for spec in specs)


def _fault(spec: str, engines: list[str]) -> Fault:
    found = _FAULT.fullmatch(spec)
    if not found:
        raise UsageError(
            f"--faults is {spec!r}; valid is KIND:ENGINE@SECOND, with ,KEY=NUMBER for more.",
            hint=f"Kinds are {_all(FAULTS)}.",
        )
    kind = FAULTS.get(found["kind"])
    if kind is None:
        near = _nearest(found["kind"], FAULTS)
        raise UsageError(f"There is no fault {found['kind']!r}{near}; there are {_all(FAULTS)}.")
    if found["engine"] not in engines:
        near = _nearest(found["engine"], engines)
        raise UsageError(
            f"--faults names the engine {found['engine']!r}{near}; the fleet has {_all(engines)}."
        )
    pairs = [pair.split("=") for pair in found["rest"].split(",") if pair]
    keys = [field.name for field in msgspec.structs.fields(kind) if field.name not in ("at", "engine")]
    if unknown := [key for key, _ in pairs if key not in keys]:
        raise UsageError(f"The fault {found['kind']} has no key {unknown[0]!r}; it takes {_all(keys)}.")
    values = {"type": kind.__name__, "at": found["at"], "engine": found["engine"], **dict(pairs)}
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"--faults {spec!r} does not fit: {error}.") from None


def changed(fleet: Fleet, spec: str) -> Fleet:
    """Another fleet: a name or a file, or this one with changes.

    Changes are separated by commas: `+ENGINE` is one more like it, `-ENGINE` is without it, `NAME.KEY=VALUE`
    sets a key of an engine or of a device. Raises UsageError that names what exists.
    """
    if spec in available_fleets() or Path(spec).is_file():
        return load_fleet(spec)
    content = fleet.model_dump(mode="json")
    for change in spec.split(","):
        _change(content, change.strip())
    content["name"] = f"{fleet.name} {spec}"
    try:
        return Fleet.model_validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UsageError(f"--what-if {spec!r} is no fleet: {place}: {first['msg']}.") from None


def _change(content: dict[str, Any], change: str) -> None:
    engines = {engine["name"]: engine for engine in content["engines"]}
    if change[:1] in ("+", "-") and change[1:] in engines:
        engine = engines[change[1:]]
        engine["count"] += 1 if change[0] == "+" else -1
        content["engines"] = [one for one in content["engines"] if one["count"]]
        return
    found = re.fullmatch(r"(?P<name>[^=]+)\.(?P<key>\w+)=(?P<value>.+)", change)
    target = {**content["devices"], **engines}.get(found["name"]) if found else None
    if found is None or target is None:
        names = [*engines, *content["devices"]]
        raise UsageError(
            f"--what-if says {change!r}; valid are +ENGINE, -ENGINE, NAME.KEY=VALUE and another fleet.",
            hint=f"Names are {_all(names)}; fleets are {_all(available_fleets())}.",
        )
    if found["key"] not in target:
        near = _nearest(found["key"], target)
        raise UsageError(f"{found['name']} has no key {found['key']!r}{near}; it has {_all(target)}.")
    try:
        target[found["key"]] = json.loads(found["value"])
    except json.JSONDecodeError:
        target[found["key"]] = found["value"]


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (the nearest is {close[0]})" if close else ""


def _all(names: Iterable[str]) -> str:
    return ", ".join(names)
