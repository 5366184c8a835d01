"""The conformance suite of the policy port: subclass it in a test module and give it the fixture `policy`."""

from __future__ import annotations

from dataclasses import dataclass

from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.core import Core, Limits
from sage.middleware.control_plane.policy import Policy
from sage.middleware.control_plane.types import Arrived, Dispatch, EngineUp, Finished, Job
from sage.middleware.engines.port import Capability, EngineSpec, Usage

__all__ = ["FakeView", "PolicySuite", "chat_job", "chat_spec"]


@dataclass(frozen=True, slots=True)
class FakeView:
    """An engine as a policy sees it. Fits `EngineView`."""

    name: str
    running: int = 0
    free: int = 1
    max_running: int = 4
    outstanding_tokens: int = 0
    last_dispatch: int = 0


def chat_job(ident: str, *, model: str = "m", tokens: int = 10) -> Job:
    """A chat request that needs nothing special."""
    return Job(ident, model, RequestClass.CHAT, "tenant", frozenset((Capability.CHAT,)), 40, tokens, None)


def chat_spec(name: str, *, model: str = "m", max_running: int = 4) -> EngineSpec:
    """An engine that can only chat."""
    return EngineSpec(name, "memory", model, frozenset((Capability.CHAT,)), max_running)


class PolicySuite:
    """What every policy keeps to."""

    def test_it_has_a_name(self, policy: Policy) -> None:
        """The name under which it is configured."""
        assert policy.name
        assert policy.name == policy.name.lower()

    def test_it_chooses_a_free_engine_and_says_why(self, policy: Policy) -> None:
        """Whatever the position of the free one."""
        for at in range(3):
            views = [FakeView(f"e{index}", free=int(index == at), running=3) for index in range(3)]
            choice = policy.choose(views, chat_job("r"), 0.0)
            assert choice is not None
            assert choice.engine == f"e{at}"
            assert choice.reason

    def test_it_waits_when_none_is_free(self, policy: Policy) -> None:
        """A full engine is never chosen."""
        assert policy.choose([FakeView("e0", free=0, running=4)], chat_job("r"), 0.0) is None

    def test_the_same_situation_gives_the_same_choice(self, policy: Policy) -> None:
        """Views that are equal in all but name are told apart by their order or their turn, not by chance."""
        views = [FakeView(f"e{index}", last_dispatch=index) for index in range(4)]
        choices = {policy.choose(views, chat_job("r"), 0.0) for _ in range(1)}
        assert len(choices) == 1

    def test_everything_is_served(self, policy: Policy) -> None:
        """Under a core: 200 requests over three unequal engines, none is lost and none waits without need."""
        core = Core(policy, Limits(), 16)
        for index in range(3):
            core.handle(EngineUp(0.0, chat_spec(f"e{index}", max_running=index + 1)))
        running: list[str] = []
        served = 0
        for number in range(200):
            actions = core.handle(Arrived(float(number), chat_job(f"r{number}", tokens=1 + number % 7)))
            running += [action.id for action in actions if isinstance(action, Dispatch)]
            if len(running) == 6:
                actions = core.handle(Finished(float(number), running.pop(0), Usage()))
                served += 1
                running += [action.id for action in actions if isinstance(action, Dispatch)]
        while running:
            actions = core.handle(Finished(200.0, running.pop(0), Usage()))
            served += 1
            running += [action.id for action in actions if isinstance(action, Dispatch)]
        assert served == 200
        assert core.live == 0
