"""The shipped policies, each on the conformance suite; loading by name."""

from __future__ import annotations

import pytest

from sage.common.errors import ConfigError
from sage.middleware.control_plane.policy import Policy, available_policies, load_policy
from sage.middleware.testing.policies import FakeView, PolicySuite, chat_job


class TestFifo(PolicySuite):
    @pytest.fixture
    def policy(self) -> Policy:
        return load_policy("fifo")


class TestRoundRobin(PolicySuite):
    @pytest.fixture
    def policy(self) -> Policy:
        return load_policy("round_robin")

    def test_the_longest_unused_is_next(self, policy: Policy) -> None:
        views = [
            FakeView("a", last_dispatch=7),
            FakeView("b", last_dispatch=3),
            FakeView("c", last_dispatch=5),
        ]
        choice = policy.choose(views, chat_job("r"), 0.0)
        assert choice is not None
        assert choice.engine == "b"


class TestLeastLoad(PolicySuite):
    @pytest.fixture
    def policy(self) -> Policy:
        return load_policy("least_load")

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            (FakeView("a", running=2), FakeView("b", running=1)),
            (FakeView("a", running=1, outstanding_tokens=3000), FakeView("b", running=2)),
            (FakeView("a", running=2, max_running=4), FakeView("b", running=3, max_running=16)),
            (FakeView("a", running=1, last_dispatch=9), FakeView("b", running=1, last_dispatch=8)),
        ],
        ids=["fewer running", "fewer tokens", "larger", "least recently used"],
    )
    def test_it_takes_the_second(self, policy: Policy, first: FakeView, second: FakeView) -> None:
        choice = policy.choose([first, second], chat_job("r"), 0.0)
        assert choice is not None
        assert choice.engine == "b"


def test_an_unknown_policy_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no policy named 'best'; there are fifo, least_load, round_robin"):
        load_policy("best")


def test_each_available_policy_loads_under_its_own_name() -> None:
    for name in available_policies():
        assert load_policy(name).name == name
