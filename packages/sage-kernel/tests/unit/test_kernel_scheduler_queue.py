"""Jobs over nodes that come and go: whole or waiting, placed again after a loss, never stuck."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sage.common.errors import ConflictError, NotFoundError, OverloadedError, UsageError
from sage.kernel.scheduler import (
    Change,
    InfeasibleError,
    Node,
    Placement,
    Queue,
    Resources,
    Unit,
    available_policies,
    load_policy,
)
from sage.kernel.scheduler.policies import Spread
from sage.kernel.testing.placement import check_capacity


def job(name: str, count: int, cpu: float = 1.0, **fields: Any) -> list[Unit]:
    return [Unit(f"{name}{n}", Resources(cpu), group=name, **fields) for n in range(count)]


def told(changes: Sequence[Change]) -> list[str]:
    """`+unit@node` for a placement, `-unit@node` for a withdrawal."""
    return [f"{'+' if isinstance(one, Placement) else '-'}{one.unit.id}@{one.node}" for one in changes]


def queue_of(*cpus: float, policy: str = "pack") -> Queue:
    return Queue(load_policy(policy), [Node("abcdef"[n], cpu) for n, cpu in enumerate(cpus)])


def test_what_fits_starts_at_once() -> None:
    queue = queue_of(2, 2)
    assert told(queue.submit(Unit("u"))) == ["+u@a"]
    assert set(queue.placed) == {"u"}
    assert queue.waiting == {}


def test_thirteen_operators_on_ten_slots_are_refused_at_submit() -> None:
    queue = queue_of(6, 4)
    before = queue.snapshot
    with pytest.raises(InfeasibleError, match="want cpu 13; 2 nodes have 10"):
        queue.submit(*job("job", 13))
    assert queue.snapshot == before
    assert queue.waiting == {}
    assert len(queue.submit(*job("job", 10))) == 10


def test_two_jobs_that_share_the_slots_do_not_lock_each_other() -> None:
    """Each needs more than half: one at a time holds all that it needs, the other nothing."""
    queue = queue_of(5, 5)
    assert len(queue.submit(*job("one", 7))) == 7
    assert queue.submit(*job("two", 7)) == ()
    assert len(queue.placed) == 7
    assert "3 of 7 units have room; 'two3' waits: no node has free cpu 1" in queue.waiting["two"].reason
    assert queue.release(*[f"one{n}" for n in range(3)]) == ()
    assert len(queue.release("one3")) == 7


def test_a_queue_without_nodes_refuses() -> None:
    with pytest.raises(InfeasibleError, match="there are no nodes"):
        Queue(load_policy("pack")).submit(Unit("u"))


def test_what_is_no_job() -> None:
    queue = queue_of(4)
    for units in ([], [Unit("a"), Unit("b")], [Unit("a", group="g"), Unit("b", group="h")]):
        with pytest.raises(UsageError, match="A job is one unit, or units of one group"):
            queue.submit(*units)
    with pytest.raises(UsageError, match="Two units of job 'g' have the same id"):
        queue.submit(Unit("a", group="g"), Unit("a", group="g"))
    queue.submit(*job("g", 2))
    with pytest.raises(ConflictError, match="Known already: unit 'g0', job 'g'"):
        queue.submit(Unit("g0", group="g"))
    assert set(queue.placed) == {"g0", "g1"}


def test_release_wants_what_is_placed() -> None:
    queue = queue_of(1)
    queue.submit(Unit("u"))
    queue.submit(Unit("v"))
    for unknown in ("v", "w"):
        with pytest.raises(NotFoundError, match=f"'{unknown}' is not placed"):
            queue.release("u", unknown)
    assert set(queue.placed) == {"u"}
    assert told(queue.release("u")) == ["+v@a"]
    with pytest.raises(NotFoundError, match="'u' is not placed"):
        queue.release("u")
    assert queue.release("v") == ()
    assert queue.snapshot == queue_of(1).snapshot
    assert told(queue.submit(Unit("u"))) == ["+u@a"]


def test_cancel_takes_what_waits_and_what_runs() -> None:
    queue = queue_of(2)
    queue.submit(*job("one", 2))
    queue.submit(*job("two", 2))
    queue.submit(*job("three", 1))
    assert queue.cancel("two") == ()
    assert list(queue.waiting) == ["three"]
    assert told(queue.cancel("one")) == ["+three0@a"]
    with pytest.raises(NotFoundError, match="no job 'one'; there are 1 others"):
        queue.cancel("one")


def test_small_jobs_pass_a_large_one_only_so_often() -> None:
    class Impatient(Spread):
        name = "impatient"
        overtaking = 2

    queue = Queue(Impatient(), [Node("a", 2), Node("b", 2)])
    queue.submit(*job("s", 3))
    queue.submit(Unit("large", Resources(2)))
    assert told(queue.submit(Unit("t1"))) == ["+t1@b"]
    assert told(queue.release("s0")) == []
    assert told(queue.submit(Unit("t2"))) == ["+t2@a"]
    assert queue.waiting["large"].reason == "it was overtaken too often; kept free for it: a"
    assert queue.snapshot["a"].closed == "is kept for 'large'"
    held = [unit for unit, one in queue.placed.items() if one.node == "a"]
    assert told(queue.submit(Unit("t3"))) == []
    assert told(queue.release(held[0])) == []
    assert told(queue.release(held[1])) == ["+large@a"]
    assert queue.snapshot["a"].closed == ""
    assert list(queue.waiting) == ["t3"]


def test_nodes_are_not_kept_for_a_job_that_is_cancelled() -> None:
    class Impatient(Spread):
        name = "impatient"
        overtaking = 1

    queue = Queue(Impatient(), [Node("a", 2), Node("b", 2)])
    queue.submit(*job("s", 3))
    queue.submit(Unit("large", Resources(2)))
    queue.submit(Unit("t1"))
    queue.submit(Unit("t2"))
    assert queue.snapshot["a"].closed
    assert told(queue.release(next(u for u, one in queue.placed.items() if one.node == "a"))) == []
    assert told(queue.cancel("large")) == ["+t2@a"]


def test_no_more_jobs_wait_than_may() -> None:
    queue = Queue(load_policy("pack"), [Node("a", 1)], limit=2)
    for name in "uvw":
        queue.submit(Unit(name))
    with pytest.raises(OverloadedError, match="2 jobs wait for room, as many as may"):
        queue.submit(Unit("x"))
    assert list(queue.waiting) == ["v", "w"]
    queue.release("u")
    assert queue.submit(Unit("x")) == ()


@pytest.mark.parametrize("policy", ["pack", "spread"])
def test_wishes_never_keep_a_job_from_starting(policy: str) -> None:
    """To go apart, the small ones would take both nodes and leave none for the large one."""
    disk = {"disk": "nvme"}
    queue = Queue(load_policy(policy), [Node("a", 4, labels=disk), Node("b", 4, labels=disk)])
    small = [Unit(f"s{n}", Resources(1, labels=disk), group="g", spread="s", near=("b",)) for n in range(2)]
    large = Unit("large", Resources(4), group="g")
    assert told(queue.submit(*small, large)) == ["+s0@a", "+s1@a", "+large@b"]
    assert [one.unit for one in queue.placed.values()] == [*small, large]


def test_fifo_never_overtakes() -> None:
    queue = queue_of(2, policy="fifo")
    queue.submit(Unit("u"))
    queue.submit(Unit("large", Resources(2), arrival=1.0))
    assert queue.submit(Unit("small", arrival=2.0)) == ()
    assert queue.waiting["small"].reason == "job 'large' goes first"
    assert told(queue.release("u")) == ["+large@a"]
    assert told(queue.release("large")) == ["+small@a"]


def test_what_a_lost_node_ran_is_placed_again() -> None:
    queue = queue_of(2, 3)
    queue.submit(*job("one", 4))
    assert told(queue.node_down("a")) == ["-one0@a", "-one1@a", "-one2@b", "-one3@b"]
    assert "want cpu 4; 1 node has 3" in queue.waiting["one"].reason
    assert told(queue.node_up(Node("a", 2))) == ["+one0@a", "+one1@a", "+one2@b", "+one3@b"]


def test_only_what_was_lost_moves_where_there_is_room() -> None:
    queue = queue_of(2, 4)
    queue.submit(*job("one", 3))
    changes = queue.node_down("a")
    assert told(changes) == ["-one0@a", "-one1@a", "+one0@b", "+one1@b"]
    assert "node 'a' is down" in changes[0].reason
    queue.release("one0")
    assert queue.node_down("a") == ()


def test_the_least_urgent_makes_way_after_a_loss() -> None:
    """Both lost half and each holds what the other needs: the later one is withdrawn whole."""
    queue = queue_of(4, 4, policy="spread")
    queue.submit(*job("one", 4, arrival=1.0))
    queue.submit(*job("two", 4, arrival=2.0))
    changes = told(queue.node_down("a"))
    assert sorted(changes[4:6]) == ["-two1@b", "-two3@b"]
    assert sorted(changes[6:]) == ["+one0@b", "+one2@b"]
    assert list(queue.waiting) == ["two"]
    assert len(queue.release(*[f"one{n}" for n in range(4)])) == 4


def test_units_that_ended_are_not_placed_again() -> None:
    queue = queue_of(2, 2)
    queue.submit(*job("one", 2))
    queue.release("one0")
    assert told(queue.node_down("a")) == ["-one1@a", "+one1@b"]


def test_a_job_that_cannot_run_for_now_lets_others_pass() -> None:
    """Even under fifo: it would wait for a node that may never come back."""
    queue = queue_of(1, 4, policy="fifo")
    queue.submit(Unit("busy", Resources(4)))
    queue.submit(Unit("large", Resources(3), arrival=1.0))
    queue.node_down("b")
    assert told(queue.submit(Unit("small", arrival=2.0))) == ["+small@a"]
    assert sorted(queue.waiting) == ["busy", "large"]
    assert "fits no node, even an empty one: " in queue.waiting["large"].reason
    assert told(queue.node_up(Node("b", 8))) == ["+busy@b", "+large@b"]


def test_nodes_come_back_change_and_go() -> None:
    queue = queue_of(2)
    assert queue.node_up(Node("a", 2)) == ()
    with pytest.raises(ConflictError, match=r"'a' is up as .*; `node_down` comes before"):
        queue.node_up(Node("a", 4))
    queue.node_down("a")
    with pytest.raises(InfeasibleError, match="1 node is not alive"):
        queue.submit(Unit("u"))
    queue.node_up(Node("a", 4))
    assert told(queue.submit(Unit("u"))) == ["+u@a"]
    assert told(queue.node_gone("a")) == ["-u@a"]
    assert "a" not in queue.snapshot
    with pytest.raises(NotFoundError, match="no node 'a'"):
        queue.node_down("a")
    assert told(queue.node_up(Node("z", 1))) == ["+u@z"]


class QueueMachine(RuleBasedStateMachine):
    """Any events in any order; after each the queue says what a ledger kept from its answers says."""

    @initialize(policy=st.sampled_from(available_policies()), patience=st.sampled_from([0, 1, 3, 100]))
    def start(self, policy: str, patience: int) -> None:
        made = load_policy(policy)

        class Patient(type(made)):  # type: ignore[misc]
            overtaking = patience if made.overtaking else 0

        self.queue = Queue(Patient(), [Node("a", 2, gpus=(100,)), Node("b", 3, gpus=(100, 100))])
        self.jobs: dict[str, list[Unit]] = {}
        self.running: dict[str, str] = {}
        self.count = 0

    def note(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if isinstance(change, Placement):
                assert change.unit.id not in self.running
                self.running[change.unit.id] = change.node
            else:
                assert self.running.pop(change.unit.id) == change.node

    @rule(
        count=st.integers(1, 4),
        cpu=st.sampled_from([0.5, 1, 2, 3]),
        gpu=st.sampled_from([0.0, 0.0, 0.5, 1]),
        priority=st.integers(0, 2),
    )
    def submit(self, count: int, cpu: float, gpu: float, priority: int) -> None:
        self.count += 1
        name = f"j{self.count}"
        units = [
            Unit(f"{name}.{n}", Resources(cpu, gpu), priority, float(self.count), name) for n in range(count)
        ]
        before = self.queue.snapshot
        try:
            self.note(self.queue.submit(*units))
        except InfeasibleError:
            assert self.queue.snapshot == before
            assert name not in self.queue.waiting
        else:
            self.jobs[name] = units

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        unit = data.draw(st.sampled_from(sorted(self.running)))
        del self.running[unit]
        job = unit.partition(".")[0]
        self.jobs[job] = [one for one in self.jobs[job] if one.id != unit]
        if not self.jobs[job]:
            del self.jobs[job]
        self.note(self.queue.release(unit))

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.jobs)))
        for unit in self.jobs.pop(name):
            self.running.pop(unit.id, None)
        self.note(self.queue.cancel(name))

    @rule(name=st.sampled_from("abc"), cpu=st.sampled_from([2, 3, 4]))
    def up(self, name: str, cpu: int) -> None:
        if name in self.queue.snapshot and self.queue.snapshot[name].node.alive:
            return
        self.note(self.queue.node_up(Node(name, cpu, gpus=(100,) * (cpu - 1))))

    @rule(name=st.sampled_from("abc"), gone=st.booleans())
    def down(self, name: str, gone: bool) -> None:
        if name in self.queue.snapshot:
            self.note(self.queue.node_gone(name) if gone else self.queue.node_down(name))

    @invariant()
    def no_more_is_given_than_there_is(self) -> None:
        check_capacity(self.queue.snapshot)

    @invariant()
    def each_job_is_placed_whole_or_waits_whole(self) -> None:
        assert {unit: one.node for unit, one in self.queue.placed.items()} == self.running
        for name, units in self.jobs.items():
            running = [unit.id in self.running for unit in units]
            assert all(running) or not any(running)
            assert any(running) != (name in self.queue.waiting)
        assert set(self.queue.waiting) <= set(self.jobs)
        assert all(wait.reason for wait in self.queue.waiting.values())

    @invariant()
    def something_runs_where_something_could(self) -> None:
        """No dead-lock: with nothing placed, all that waits cannot run on the nodes that are up."""
        if not self.running:
            assert all(
                "an empty one" in w.reason or "together" in w.reason for w in self.queue.waiting.values()
            )

    def teardown(self) -> None:
        """When all that runs ends, all that can run on these nodes has run."""
        while self.running:
            self.release_all()
        self.something_runs_where_something_could()

    def release_all(self) -> None:
        ended = sorted(self.running)
        for unit in ended:
            name = unit.partition(".")[0]
            self.jobs[name] = [one for one in self.jobs[name] if one.id != unit]
        self.running.clear()
        self.note(self.queue.release(*ended))


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_the_same_events_give_the_same_changes() -> None:
    def run() -> list[list[str]]:
        queue, history = queue_of(4, 4, policy="spread"), []
        for number in range(30):
            history.append(told(queue.submit(*job(f"j{number}.", 1 + number % 3, arrival=float(number)))))
            if number % 4 == 3:
                history.append(told(queue.release(min(queue.placed))))
            if number == 15:
                history += [told(queue.node_down("a")), told(queue.node_up(Node("a", 8)))]
        return history

    assert run() == run()


def test_a_job_keeps_its_place_when_it_is_withdrawn() -> None:
    queue = queue_of(2, 2)
    queue.submit(*job("old", 2, arrival=1.0))
    queue.submit(*job("other", 2, arrival=2.0))
    queue.submit(*job("new", 2, arrival=3.0))
    assert [one for one in told(queue.node_down("a")) if one[0] == "+"] == []
    assert list(queue.waiting) == ["old", "new"]
