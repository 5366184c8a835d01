"""Every policy that can be loaded, on the conformance suite."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from sage.middleware.control_plane.policy import Policy, PolicyOptions, available_policies, load_policy
from sage.middleware.testing.policies import PolicySuite


@pytest.mark.parametrize("name", available_policies())
class TestAvailable(PolicySuite):
    @pytest.fixture
    def factory(self, name: str) -> Callable[[PolicyOptions], Policy]:
        return partial(load_policy, name)

    def test_it_is_loaded_under_its_own_name(self, name: str) -> None:
        assert load_policy(name).name == name
