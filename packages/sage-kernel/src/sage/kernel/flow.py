"""Building a plan: `Flow`. Building never runs anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from sage.kernel import portable
from sage.kernel.drawing import mermaid
from sage.kernel.plan import Builder, Plan, PlanError, Port
from sage.kernel.ports import Source
from sage.kernel.registry import Registry, default_registry
from sage.kernel.rules import problems
from sage.kernel.serial import from_dict, to_dict
from sage.kernel.stream import Stream

__all__ = ["Flow"]

T = TypeVar("T")


class Flow:
    """A dataflow under construction; `plan` is what it has built so far, and never changes afterwards.

    >>> flow = Flow("double")
    >>> flow.source([1, 2, 3]).map(lambda x: 2 * x).sink(print)
    >>> flow.check()
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._builder = Builder(name)

    @property
    def plan(self) -> Plan:
        """The immutable plan."""
        return self._builder.plan()

    def source(self, source: Source[T], *, name: str = "") -> Stream[T]:
        """Read records from an iterable, an async iterable, or a function that makes one for each run."""
        return Stream(self, Port(self._builder.add("source", (), source, name)))

    def requests(self, kind: type[T], *, name: str = "") -> Stream[T]:
        """Receive one `kind` per request: the flow becomes a service, see `LocalEnvironment.submit`."""
        return Stream(self, Port(self._builder.add("requests", (), kind, name)))

    def reply(self, stream: Stream[Any], *, name: str = "") -> None:
        """Answer each request with what arrives here."""
        self._builder.add("reply", (self._own(stream),), None, name)

    def check(self, registry: Registry | None = None) -> None:
        """Raise one `PlanError` that lists every problem; named operators are looked up, none is made."""
        plan = self.plan
        registry = registry or default_registry()
        found = [*problems(plan), *registry.problems(plan), *portable.problems(plan, registry)]
        if found:
            raise PlanError(self.name, found)

    def explain(self) -> str:
        """The plan as a Mermaid flowchart."""
        return mermaid(self.plan)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data; raises `PlanError` naming every operator that cannot travel."""
        return to_dict(self.plan)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, allow: Iterable[str] = (), where: str = "") -> Flow:
        """Build a flow from plain data, the form `to_dict` and YAML pipelines have.

        Code named `module:qualname` is imported only if `allow` holds that name, or `module:*`; `where` names
        the document in errors.
        """
        plan = from_dict(data, allow=tuple(allow), where=where)
        flow = cls(plan.name)
        flow._builder.nodes.extend(plan.nodes)
        return flow

    def _anew(self, name: str) -> Flow:
        return Flow(name)

    def _own(self, stream: Stream[Any]) -> Port:
        if stream.flow is not self:
            raise PlanError(self.name, [f"a stream of flow {stream.flow.name!r} is used here"])
        return stream.port
