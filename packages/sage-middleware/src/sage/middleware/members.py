"""The engines of a configuration one by one: what they are, which cores they get, which may come and go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from sage.common.api import EngineStatus
from sage.common.config import EngineConfig, SageConfig
from sage.common.errors import ConfigError, SageError
from sage.common.ports import LOOPBACK
from sage.middleware.control_plane.core import Core
from sage.middleware.control_plane.fleet import AutoscaleOptions, Template
from sage.middleware.control_plane.options import CoreOptions, policy_options
from sage.middleware.control_plane.policy import load_policy
from sage.middleware.engines.dialects.interpreter import Interpreter
from sage.middleware.engines.port import Engine, EngineKind, EngineSpec
from sage.middleware.engines.registry import engine_kind
from sage.platform.leases import PortLease, lease_port
from sage.platform.nodes import inventory, share_cores
from sage.platform.service import ServiceSpec, ServiceStatus

__all__ = [
    "ASLEEP",
    "Equipment",
    "Member",
    "Served",
    "core_options",
    "describe",
    "make_core",
    "merge",
    "raise_together",
    "scaling",
    "template_of",
]

ASLEEP: Final = "sleeps until somebody asks for its model"
START_S: Final = {"embedding": 6.0, "transformers": 15.0}  # as long as no start was seen
LONG_START_S: Final = 60.0
KEYS: Final = ("SAGE_API_KEY", "OPENAI_API_KEY")  # of the clients that share our environment


@dataclass(slots=True, eq=False)
class Member:
    """One engine of the pool, whether it runs or not. `engine` is made when its URL is known.

    `base` is the configured engine that it is one more of; None = it is configured itself. `lived`: its
    process has been ready, so that its end is a crash. `asleep`: nobody needs it. `leaving`: it is drained.
    """

    config: EngineConfig
    kind: EngineKind
    spec: EngineSpec
    base: Member | None = None
    url: str = ""
    cores: tuple[int, ...] = ()
    service: ServiceSpec | None = None
    lease: PortLease | None = None  # kept while it is a member: a restart finds its port again
    engine: Engine | None = None
    up: bool = False
    lived: bool = False
    asleep: bool = False
    leaving: bool = False

    def get_cores(self, cores: tuple[int, ...]) -> None:
        """It runs on these from its next start."""
        self.cores = cores
        on_gpu = not self.spec.group
        self.spec = msgspec.structs.replace(self.spec, cores=0 if on_gpu else len(cores))

    def replica(self, name: str) -> Member:
        """One more like it."""
        config = self.config.model_copy(update={"name": name})
        spec = msgspec.structs.replace(self.kind.spec(config), template=self.config.name, managed=True)
        return Member(config, self.kind, spec, base=self)


class Served:
    """A member's connection, with what the pool knows of the engine. Fits `Engine`."""

    def __init__(self, member: Member, engine: Engine) -> None:
        self._member = member
        self._engine = engine
        self.send, self.begin = engine.send, engine.begin  # as they are: one call less in each request

    @property
    def spec(self) -> EngineSpec:
        """As it was last started."""
        return self._member.spec

    async def ready(self) -> bool:
        """See the port."""
        return await self._engine.ready()

    async def close(self) -> None:
        """See the port."""
        await self._engine.close()


def template_of(config: EngineConfig, spec: EngineSpec, cores: int) -> Template:
    """What the autoscaler knows of a configured engine. Raises ConfigError for bounds that leave nothing."""
    start_s = START_S.get(config.kind, LONG_START_S)
    bounds = (config.min_replicas, config.max_replicas)
    return Template(config.name, spec.model, spec.task, *bounds, spec.group, cores, start_s)


def describe(configs: Sequence[EngineConfig], kinds: Callable[[str], EngineKind]) -> list[Member]:
    """All engines that run from the beginning, or sleep. Raises one ConfigError with all that is wrong."""
    members: list[Member] = []
    problems: list[BaseException] = []
    names: set[str] = set()
    for config in configs:
        try:
            kind = kinds(config.kind)
            member = Member(config, kind, kind.spec(config), asleep=config.min_replicas == 0)
            template = template_of(config, member.spec, 0)
            if config.url and (config.min_replicas, config.max_replicas) != (1, 1):
                raise ConfigError(
                    f"Engine {config.name} runs elsewhere and cannot be started or stopped from here.",
                    hint="Leave out min_replicas and max_replicas, or leave out url.",
                )
            members.append(member)
            members += [member.replica(name) for name in list(template.names())[1 : config.min_replicas]]
            own = set(template.names())
        except SageError as exc:
            problems.append(exc)
            own = {config.name}
        problems += [
            ConfigError(f"Two engines are named {name!r}; each needs a name of its own.")
            for name in sorted(own & names)
        ]
        names |= own
    raise_together(problems, ConfigError, "cannot be used")
    return members


class Equipment:
    """Gives members what a start needs: cores, a port, a process to be, a connection."""

    def __init__(self, config: SageConfig, logs: Path) -> None:
        self._config = config
        self._logs = logs

    def plan_cores(self, members: Sequence[Member]) -> None:
        """Share this machine's cores among the engines that run here, asleep or not."""
        local = [member for member in members if not member.config.url]
        shares = share_cores(inventory().cpus, [member.config.cores for member in local])
        for member, share in zip(local, shares, strict=True):
            member.get_cores(share)

    def change(self, config: SageConfig) -> None:
        """What is fitted from now on is fitted for this configuration."""
        self._config = config

    def cores_beside(self, config: EngineConfig, running: Iterable[Member]) -> tuple[int, ...]:
        """Cores for an engine that comes while others run and keep theirs: those with the fewest users.

        As many as it would have got if all had started together.
        """
        local = [one for one in self._config.engines if not one.url]
        shares = share_cores(inventory().cpus, [one.cores for one in local])
        count = next((len(share) for one, share in zip(local, shares, strict=True) if one is config), 1)
        taken = [core for one in running for core in one.cores]
        return share_cores(sorted(inventory().cpus, key=taken.count), [count])[0]

    def cores_like(self, base: Member, running: Iterable[Member]) -> tuple[int, ...]:
        """As many as the configured one got, those with the fewest users; its own first among equals."""
        taken = [core for one in running for core in one.cores]
        cores = sorted(inventory().cpus, key=lambda core: (taken.count(core), core not in base.cores))
        return share_cores(cores, [max(1, len(base.cores))])[0]

    def fit(self, member: Member) -> None:
        """The rest. The port and the connection of an earlier start are used again.

        Looks for model files: not for the loop. Raises SageError with what is missing.
        """
        config = member.config
        port = 0
        if not config.url:
            if member.lease is None:
                ports = self._config.ports
                member.lease = lease_port(ports.llm if config.task == "generate" else ports.embedding)
            port = member.lease.port
        service = member.kind.service(config, port, member.cores)
        if service is not None:
            env = {**no_keys(self._config), **service.env}
            member.service = replace(service, log=self._logs / f"{config.name}.log", env=env)
            member.spec = msgspec.structs.replace(member.spec, managed=True)
        member.url = config.url or f"http://{LOOPBACK}:{port}"
        if member.engine is None:
            member.engine = Served(member, Interpreter(member.kind.connect(config, member.url)))


def no_keys(config: SageConfig) -> dict[str, str]:
    """No process of ours needs the keys that this one has; an empty variable counts as none."""
    return dict.fromkeys((*KEYS, *(one.api_key_env for one in config.engines if one.api_key_env)), "")


def scaling(
    config: SageConfig, kinds: Callable[[str], EngineKind] = engine_kind
) -> tuple[tuple[Template, ...], dict[str, int]]:
    """Which engines may come and go, and how many cores there are for them on each device.

    For `CoreOptions.templates` and `device_cores`. A device has the cores of its engines, without those of
    engines that stay; this machine's own has those that no engine was given as well. Raises ConfigError like
    the pool.
    """
    members = describe(config.engines, kinds)
    Equipment(config, Path()).plan_cores(members)
    moving = {one.config.name for one in members if one.config.min_replicas < one.config.max_replicas}
    templates = tuple(
        template_of(one.config, one.spec, one.spec.cores)
        for one in members
        if one.base is None and one.config.name in moving
    )
    unused = set(inventory().cpus) - {core for one in members for core in one.cores}
    devices: dict[str, set[int]] = {one.group: set() for one in templates if one.group}
    for one in members:
        if one.spec.group in devices:
            devices[one.spec.group] |= set(one.cores) if one.config.group else {*one.cores, *unused}
    for one in members:
        if one.spec.group in devices and (one.base or one).config.name not in moving:
            devices[one.spec.group] -= set(one.cores)
    return templates, {group: len(cores) for group, cores in devices.items()}


def core_options(
    config: SageConfig,
    kinds: Callable[[str], EngineKind] = engine_kind,
    autoscale: AutoscaleOptions | None = None,
) -> CoreOptions:
    """What a core is configured with, engines that come and go included. Raises ConfigError."""
    templates, cores = scaling(config, kinds)
    return msgspec.structs.replace(
        CoreOptions.of(config.control_plane),
        templates=templates,
        device_cores=cores,
        autoscale=autoscale or AutoscaleOptions(),
    )


def make_core(
    config: SageConfig,
    kinds: Callable[[str], EngineKind] = engine_kind,
    autoscale: AutoscaleOptions | None = None,
) -> Core:
    """The core that a configuration asks for, engines that come and go included. Raises ConfigError."""
    options = core_options(config, kinds, autoscale)
    return Core(load_policy(config.control_plane.policy, policy_options(config.control_plane)), options)


def raise_together(problems: Sequence[BaseException], kind: type[SageError], what: str) -> None:
    """Raise one of them as it is, and more of them as one error that names all."""
    for problem in problems:
        if not isinstance(problem, SageError):
            raise problem
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise kind(f"{len(problems)} engines {what}: " + " | ".join(map(str, problems)))


def merge(counted: EngineStatus, member: Member, process: ServiceStatus | None) -> EngineStatus:
    """What the control plane counts, what the pool knows and what the process does, as one status."""
    facts: dict[str, object] = {"url": member.url, "cores": list(member.cores)}
    if process is not None:
        facts |= {"pid": process.pid, "restarts": process.restarts}
        spawning = process.state == "stopped" and counted.state == "starting"
        if process.state != "ready" and not spawning:  # the process knows best why it does not serve
            facts |= {"state": process.state, "detail": process.detail}
    if member.asleep:
        facts |= {"state": "stopped", "detail": ASLEEP}
    elif member.leaving:
        facts |= {"state": "draining"}
    return counted.model_copy(update=facts)
