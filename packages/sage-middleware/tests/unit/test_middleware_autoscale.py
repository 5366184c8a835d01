"""When engines are started and drained: one situation per test, looked at once a second."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import pytest

from sage.common.errors import ConfigError, NotFoundError
from sage.middleware.control_plane.autoscale import (
    AutoscaleOptions,
    Autoscaler,
    Demand,
    DrainEngine,
    Replica,
    Template,
)
from sage.middleware.control_plane.types import StartEngine

OPTIONS = AutoscaleOptions(start_after_s=3, cool_down_s=60, move_after_s=10, sleep_after_s=300)
LLM = Template("llm", "m", "generate", max_replicas=3, start_s=20.0)
EMBED = Template("embed", "e", "embed", max_replicas=2, start_s=4.0)


def up(*names: str, running: int = 0, slots: int = 8) -> tuple[Replica, ...]:
    return tuple(Replica(name, "ready", running, slots) for name in names)


def late(replicas: tuple[Replica, ...], template: str = "llm", **fields: float) -> Demand:
    return Demand(template, replicas, queued=10, attainment=fields.get("attainment", 0.2))


def quiet(replicas: tuple[Replica, ...], template: str = "llm", idle_since: float | None = None) -> Demand:
    return Demand(template, replicas, idle_since=idle_since)


def on_cpu(name: str, task: Literal["generate", "embed"], **bounds: int) -> Template:
    """One core for each replica, out of those of the device `cpu`."""
    low, high = bounds.get("min_replicas", 1), bounds.get("max_replicas", 1)
    return Template(name, name, task, low, high, group="cpu", cores=1)


class Looks:
    """An autoscaler that is asked once a second; keeps what it wanted and when."""

    def __init__(self, *templates: Template, **cores: int) -> None:
        self.scaler = Autoscaler(templates, cores, OPTIONS)
        self.now = 0.0
        self.wanted: list[tuple[float, str]] = []

    def at(self, *demands: Demand, seconds: int = 1) -> list[StartEngine | DrainEngine]:
        intents: list[StartEngine | DrainEngine] = []
        for _ in range(seconds):
            intents = self.scaler.decide(demands, self.now)
            self.wanted += [(self.now, f"{type(one).__name__} {one.name}") for one in intents]
            self.now += 1.0
        return intents


@pytest.mark.parametrize(
    ("pressed", "says"),
    [
        (Demand("llm", up("llm"), queued=5, attainment=0.9), "90% of 5 queued would meet their goals"),
        (Demand("llm", up("llm"), queued=5, backlog_s=3.0, goal_s=2.0), "a backlog of 3.0 s"),
        (Demand("llm", up("llm"), shed=2), "2 request(s) refused"),
    ],
)
def test_pressure_that_lasts_starts_one_more(pressed: Demand, says: str) -> None:
    looks = Looks(LLM)
    assert looks.at(pressed, seconds=3) == []
    (start,) = looks.at(pressed)
    assert isinstance(start, StartEngine)
    assert (start.template, start.name) == ("llm", "llm.2")
    assert says in start.reason


@pytest.mark.parametrize(
    "fine",
    [
        Demand("llm", up("llm"), queued=5, attainment=0.95),
        Demand("llm", up("llm"), queued=5, backlog_s=2.0, goal_s=2.0),
        Demand("llm", up("llm"), queued=5, backlog_s=1e9),
        Demand("llm", up("llm", running=8), backlog_s=3.0, goal_s=2.0),
    ],
)
def test_work_that_will_be_done_in_time_starts_nothing(fine: Demand) -> None:
    looks = Looks(LLM)
    looks.at(fine, seconds=100)
    assert looks.wanted == []


def test_pressure_that_passes_starts_nothing() -> None:
    looks = Looks(LLM)
    for _ in range(50):
        looks.at(late(up("llm")), seconds=1)
        looks.at(quiet(up("llm")), seconds=3)
    assert looks.wanted == []


def test_refusals_in_every_other_look_are_pressure() -> None:
    looks = Looks(LLM)
    for _ in range(10):
        looks.at(Demand("llm", up("llm"), shed=1))
        looks.at(quiet(up("llm")))
    assert looks.wanted[0][1] == "StartEngine llm.2"


def test_a_long_time_without_a_look_is_no_pressure() -> None:
    looks = Looks(LLM)
    looks.at(late(up("llm")))
    looks.now += 1000
    assert looks.at(late(up("llm"))) == []


def test_one_start_at_a_time_up_to_the_maximum() -> None:
    looks = Looks(LLM)
    looks.at(late(up("llm")), seconds=4)
    coming = (*up("llm"), Replica("llm.2", "starting"))
    looks.at(late(coming), seconds=100)
    assert [what for _, what in looks.wanted] == ["StartEngine llm.2"]
    looks.at(late(up("llm", "llm.2")), seconds=10)
    assert [what for _, what in looks.wanted] == ["StartEngine llm.2", "StartEngine llm.3"]
    looks.at(late(up("llm", "llm.2", "llm.3")), seconds=100)
    assert len(looks.wanted) == 2


def test_a_draining_one_counts_as_long_as_it_runs() -> None:
    looks = Looks(LLM)
    replicas = (*up("llm", "llm.2"), Replica("llm.3", "draining", 1, 8))
    looks.at(late(replicas), seconds=20)
    assert looks.wanted == []
    looks.at(late(up("llm", "llm.2")))
    assert [what for _, what in looks.wanted] == ["StartEngine llm.3"]


def test_a_surplus_is_drained_after_the_cool_down_the_least_busy_first() -> None:
    looks = Looks(LLM)
    replicas = (*up("llm", running=0), *up("llm.2", running=2), *up("llm.3", running=1))
    looks.at(quiet(replicas), seconds=61)
    assert looks.wanted == [(60.0, "DrainEngine llm")]
    rest = (replicas[1], replicas[2])
    looks.at(quiet(rest), seconds=61)
    assert looks.wanted[1:] == [(121.0, "DrainEngine llm.3")]


def test_among_equals_the_newest_is_drained() -> None:
    looks = Looks(LLM)
    looks.at(quiet(up("llm", "llm.2", "llm.3")), seconds=61)
    assert looks.wanted == [(60.0, "DrainEngine llm.3")]


def test_what_the_others_have_no_room_for_is_no_surplus() -> None:
    looks = Looks(LLM)
    looks.at(quiet(up("llm", "llm.2", running=3)), seconds=500)
    assert looks.wanted == []


def test_a_drain_that_was_regretted_makes_the_next_one_come_later() -> None:
    looks = Looks(LLM)
    waits = []
    for _ in range(4):
        begun = looks.now
        while not looks.at(quiet(up("llm", "llm.2"))):
            pass
        waits.append(looks.now - begun)
        looks.at(late(up("llm")), seconds=4)
    assert waits[-1] >= 7 * waits[0]
    looks.at(quiet(up("llm")), seconds=3000)
    looks.at(late(up("llm")), seconds=4)  # long after: the drain was right
    begun = looks.now
    while not looks.at(quiet(up("llm", "llm.2"))):
        pass
    assert looks.now - begun <= waits[-1]  # else twice as long


def test_an_engine_that_may_sleep_does_after_a_long_idle_time_and_wakes_when_asked() -> None:
    looks = Looks(Template("llm", "m", "generate", min_replicas=0, max_replicas=1))
    looks.at(quiet(up("llm")), seconds=500)
    assert looks.wanted == []  # it has work
    looks.at(quiet(up("llm"), idle_since=500.0), seconds=299)
    assert looks.wanted == []
    looks.at(quiet(up("llm"), idle_since=500.0), seconds=2)
    assert [what for _, what in looks.wanted] == ["DrainEngine llm"]
    looks.at(quiet(()), seconds=500)
    assert len(looks.wanted) == 1
    (start,) = looks.at(Demand("llm", (), queued=1))
    assert isinstance(start, StartEngine)
    assert "sleeps" in start.reason


def test_a_refused_request_wakes_an_engine_too() -> None:
    looks = Looks(Template("llm", "m", "generate", min_replicas=0))
    assert [one.name for one in looks.at(Demand("llm", (), shed=1))] == ["llm"]


def test_waiting_for_a_wake_up_ends_where_the_deadline_is_before_it() -> None:
    looks = Looks(Template("llm", "m", "generate", min_replicas=0, start_s=20.0))
    scaler = looks.scaler
    assert scaler.retry_after("llm", 30.0, 0.0) is None
    assert scaler.retry_after("llm", None, 0.0) is None
    assert scaler.retry_after("llm", 19.0, 0.0) == 20.0
    looks.at(Demand("llm", (), queued=1))
    assert scaler.retry_after("llm", 19.0, 15.0) == 5.0
    assert scaler.retry_after("llm", 21.0, 15.0) is None
    assert scaler.wake_s("llm", 40.0) == pytest.approx(2.0)  # it takes longer than it should
    looks.at(Demand("llm", up("llm"), queued=1))
    assert scaler.retry_after("llm", 3.0, 2.0) is None


def test_start_times_are_learned_from_every_start() -> None:
    looks = Looks(Template("llm", "m", "generate", min_replicas=0, start_s=20.0))
    looks.at(Demand("llm", (), queued=1))
    looks.at(Demand("llm", (Replica("llm", "starting"),), queued=1), seconds=7)
    looks.at(quiet(up("llm")))
    looks.at(quiet(()))
    assert looks.scaler.wake_s("llm", looks.now) == pytest.approx(8 * 1.5)
    for _ in range(20):  # a restart by the supervisor is a start as well
        looks.at(Demand("llm", (Replica("llm", "starting"),)), seconds=8)
        looks.at(quiet(up("llm")))
    looks.at(quiet(()))
    assert looks.scaler.wake_s("llm", looks.now) == pytest.approx(8, rel=0.05)


def test_a_start_that_was_under_way_at_the_first_look_teaches_nothing() -> None:
    looks = Looks(LLM)
    looks.at(Demand("llm", (Replica("llm", "starting"),)), seconds=2)
    looks.at(quiet(up("llm")))
    looks.at(quiet((Replica("llm", "failed"),)))
    assert looks.scaler.wake_s("llm", looks.now) == 19.0  # started again a second ago


def test_a_start_that_fails_is_tried_again_later_and_later() -> None:
    looks = Looks(Template("llm", "m", "generate", min_replicas=0))
    for _ in range(400):
        wanted = looks.at(Demand("llm", (Replica("llm", "failed"),), queued=1))
        if wanted:
            looks.at(Demand("llm", (Replica("llm", "starting"),), queued=1))
    at = [at for at, _ in looks.wanted]
    gaps = [later - earlier for earlier, later in pairwise(at)]
    assert gaps[:5] == [12.0, 22.0, 42.0, 82.0, 162.0]
    assert looks.scaler.wake_s("llm", looks.now) > 100


def test_an_order_that_nobody_follows_is_given_up() -> None:
    looks = Looks(Template("llm", "m", "generate", min_replicas=0))
    looks.at(Demand("llm", (), queued=1), seconds=30)
    assert [at for at, _ in looks.wanted] == [0.0, 15.0]


def test_what_failed_is_started_again_up_to_the_minimum() -> None:
    looks = Looks(LLM)
    (start,) = looks.at(quiet((Replica("llm", "failed"),)))
    assert start.name == "llm"
    assert "0 of at least 1" in start.reason


def test_cores_move_from_an_idle_embedding_engine_to_a_pressed_llm() -> None:
    llm = on_cpu("llm", "generate", max_replicas=2)
    embed = on_cpu("embed", "embed", min_replicas=0)
    other = on_cpu("other", "generate", min_replicas=0)
    looks = Looks(llm, embed, other, cpu=3)
    idle = (quiet(up("embed"), "embed", 0.0), quiet(up("other"), "other", 0.0))
    looks.at(late(up("llm")), *idle, seconds=61)
    assert looks.wanted == [(60.0, "DrainEngine embed")]  # none of them before it cooled down
    looks.at(late(up("llm")), quiet((Replica("embed", "draining"),), "embed"), idle[1], seconds=5)
    assert len(looks.wanted) == 1
    looks.at(late(up("llm")), quiet((), "embed"), idle[1])
    assert looks.wanted[1:] == [(66.0, "StartEngine llm.2")]


def test_a_busy_engine_and_one_that_must_stay_keep_their_cores() -> None:
    looks = Looks(
        on_cpu("llm", "generate", max_replicas=2),
        on_cpu("embed", "embed"),
        on_cpu("other", "embed", min_replicas=0),
        cpu=3,
    )
    busy = quiet(up("other", running=1), "other")
    looks.at(late(up("llm")), quiet(up("embed"), "embed", 0.0), busy, seconds=500)
    assert looks.wanted == []


def test_a_sleeping_engine_is_woken_though_all_cores_are_taken() -> None:
    looks = Looks(
        on_cpu("llm", "generate"),
        on_cpu("embed", "embed", min_replicas=0),
        cpu=1,
    )
    intents = looks.at(quiet(up("llm", running=4)), Demand("embed", (), queued=1))
    assert [one.name for one in intents] == ["embed"]


def test_the_one_that_is_pressed_longest_gets_the_last_core() -> None:
    first = on_cpu("first", "generate", max_replicas=2)
    second = on_cpu("second", "embed", max_replicas=2)
    looks = Looks(first, second, cpu=3)
    looks.at(quiet(up("first"), "first"), late(up("second"), "second"), seconds=2)
    looks.at(late(up("first"), "first"), late(up("second"), "second"), seconds=4)
    assert [what for _, what in looks.wanted] == ["StartEngine second.2"]


def test_bounds_that_leave_nothing_and_templates_that_are_not_there() -> None:
    for low, high in ((2, 1), (-1, 1), (0, 0)):
        with pytest.raises(ConfigError, match="valid is 0 <= min_replicas <= max_replicas"):
            Template("llm", "m", "generate", min_replicas=low, max_replicas=high)
    with pytest.raises(NotFoundError, match=r"no template 'x'.*there are: llm"):
        Autoscaler([LLM], {}).decide([Demand("x")], 0.0)
