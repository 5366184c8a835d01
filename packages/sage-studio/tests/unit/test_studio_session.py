from __future__ import annotations

from typing import Any

import pytest

from sage.studio.session import Gate


def test_the_token_buys_one_session() -> None:
    gate = Gate()
    session = gate.redeem(gate.token)
    assert session
    assert gate.admits(session)


def test_the_token_works_once() -> None:
    gate = Gate()
    token = gate.token
    session = gate.redeem(token)
    assert gate.redeem(token) is None
    assert gate.admits(session)
    with pytest.raises(ValueError, match="works once"):
        _ = gate.token


@pytest.mark.parametrize("wrong", ["", "x", "é", "a" * 10_000])
def test_a_wrong_token_buys_nothing_and_spends_nothing(wrong: Any) -> None:
    gate = Gate()
    assert gate.redeem(wrong) is None
    assert gate.redeem(gate.token)


@pytest.mark.parametrize("wrong", [None, "", "x", "é"])
def test_nothing_else_is_a_session(wrong: Any) -> None:
    gate = Gate()
    assert not gate.admits(wrong)
    token = gate.token
    assert not gate.admits(token)
    gate.redeem(token)
    assert not gate.admits(wrong)
    assert not gate.admits(token)


def test_gates_are_strangers() -> None:
    one, other = Gate(), Gate()
    assert one.token != other.token
    assert other.redeem(one.token) is None
