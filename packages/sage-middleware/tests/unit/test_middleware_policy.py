"""What each shipped policy decides; loading by name."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from msgspec import structs

from sage.common.errors import ConfigError
from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.cost import EmbedCost, LlmCost, LlmPrior
from sage.middleware.control_plane.policy import Choice, Policy, PolicyOptions, Shed, Wait, load_policy
from sage.middleware.control_plane.records import Record
from sage.middleware.testing.policies import FakeView, chat_job, embed_job, embed_spec, waiting_record


def chat(ident: str = "r", sequence: int = 1, **fields: Any) -> Record:
    return waiting_record(chat_job(ident), sequence, **fields)


def chosen(
    policy: Policy | str, views: list[FakeView], record: Record | None = None, now: float = 0.0
) -> str:
    made = load_policy(policy) if isinstance(policy, str) else policy
    choice = made.choose(record or chat(), views, now)
    assert isinstance(choice, Choice)
    assert choice.reason
    return choice.engine


def order(policy: str, records: list[Record]) -> list[str]:
    lane = load_policy(policy).discipline()
    for record in records:
        lane.push(record, record.queued)
    out = []
    while (head := lane.head(0.0)) is not None:
        lane.remove(head)
        out.append(head.job.id)
    return out


def llm(base: float, *, samples: int = 0, seconds: float = 0.0) -> LlmCost:
    """An engine of one iteration in `base` seconds, which has been watched for `samples` answers."""
    cost = LlmCost(prior=LlmPrior((base, base / 100, base / 1000), (base, base / 100, base, base)))
    for _ in range(samples):
        cost.observe_ttft(10, 0, seconds or cost.ttft(10, 0))
    return cost


# ---- loading -----------------------------------------------------------------------------------------------


def test_an_unknown_policy_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(
        ConfigError, match=r"no policy named 'best'; there are adaptive, cost, edf, fair, fifo"
    ):
        load_policy("best")


# ---- placement ---------------------------------------------------------------------------------------------


def test_fifo_fills_the_first_engine_first() -> None:
    views = [FakeView("a", free=0, running=4), FakeView("b", running=3), FakeView("c")]
    assert chosen("fifo", views) == "b"


def test_round_robin_takes_the_longest_unused() -> None:
    views = [FakeView("a", last_dispatch=7), FakeView("b", last_dispatch=3), FakeView("c", last_dispatch=5)]
    assert chosen("round_robin", views) == "b"


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
@pytest.mark.parametrize(
    "policy",
    ["least_load", "power_of_two", "priority", "sjf", "edf", "fair", "adaptive", "prefix_affinity"],
)
def test_the_less_loaded_is_taken(policy: str, first: FakeView, second: FakeView) -> None:
    assert chosen(policy, [first, second]) == "b"


def test_power_of_two_never_takes_the_most_loaded_of_three_and_uses_both_others() -> None:
    policy = load_policy("power_of_two", PolicyOptions(seed=1))
    views = [FakeView("a", running=3), FakeView("b", running=1), FakeView("c", running=2)]
    assert {chosen(policy, views) for _ in range(60)} == {"b", "c"}


def test_another_seed_draws_otherwise() -> None:
    views = [FakeView(name, running=index) for index, name in enumerate("abcdefgh")]
    draws = [
        [chosen(policy, views) for _ in range(20)]
        for policy in (load_policy("power_of_two", PolicyOptions(seed=seed)) for seed in (1, 2))
    ]
    assert draws[0] != draws[1]


class TestPrefixAffinity:
    def test_the_longest_cached_prefix_wins(self) -> None:
        views = [FakeView("a"), FakeView("b", running=1), FakeView("c", running=1)]
        assert chosen("prefix_affinity", views, chat(cached={"b": 64, "c": 128})) == "c"

    def test_among_equal_caches_the_less_loaded_wins(self) -> None:
        views = [FakeView("a"), FakeView("b", running=1, outstanding_tokens=9), FakeView("c", running=1)]
        assert chosen("prefix_affinity", views, chat(cached={"b": 64, "c": 64})) == "c"

    def test_an_engine_over_its_share_is_not_given_more(self) -> None:
        """With the new one 9 run; a quarter more than its share is 1.25 · 9 / 4 = 2.8, rounded up 3."""
        views = [FakeView(name, running=1, max_running=8) for name in "abc"]
        views.append(FakeView("d", running=5, max_running=8))
        assert chosen("prefix_affinity", views, chat(cached={"d": 128})) == "a"
        views[3].running = 1
        assert chosen("prefix_affinity", views, chat(cached={"d": 128})) == "d"

    def test_a_busy_engine_is_not_waited_for(self) -> None:
        views = [FakeView("a", running=2), FakeView("b", free=0, running=4)]
        assert chosen("prefix_affinity", views, chat(cached={"b": 128})) == "a"

    def test_nothing_cached_there_is_nothing_to_prefer(self) -> None:
        views = [FakeView("a", running=2), FakeView("b", running=1)]
        assert chosen("prefix_affinity", views, chat(cached={"gone": 128, "a": 0})) == "b"


class TestCost:
    def test_the_faster_engine_is_cheaper(self) -> None:
        assert chosen("cost", [FakeView("a", llm=llm(0.2)), FakeView("b", llm=llm(0.05))]) == "b"

    def test_one_more_in_a_shared_iteration_is_cheaper_than_an_iteration_alone(self) -> None:
        views = [FakeView("a", llm=llm(0.1)), FakeView("b", running=3, llm=llm(0.1))]
        assert chosen("cost", views) == "b"

    def test_embeddings_are_judged_by_the_embedding_model(self) -> None:
        views = [
            FakeView("a", spec=embed_spec("a"), embed=EmbedCost(prior=(0.02, 0.0001, 0.0001))),
            FakeView("b", spec=embed_spec("b"), embed=EmbedCost(prior=(0.01, 0.0001, 0.0001))),
        ]
        assert chosen("cost", views, waiting_record(embed_job("r"))) == "b"


class TestSiloed:
    def test_each_class_has_engines_of_its_own(self) -> None:
        policy = load_policy("siloed")
        views = [FakeView(f"e{index}") for index in range(4)]
        bulk, single = (waiting_record(embed_job("r", texts=texts)) for texts in (20, 1))
        used: dict[int, set[str]] = {20: set(), 1: set()}
        chosen(policy, views, bulk)
        for number in range(1, 9):
            for texts, record in ((20, bulk), (1, single)):
                name = chosen(policy, views, record)
                used[texts].add(name)
                views[int(name[1])].last_dispatch = 10 * number + texts
        # before the second class was seen, the first one had all of them
        assert used[20] >= {"e0", "e2"}
        assert used[1] == {"e1", "e3"}

    def test_it_does_not_look_at_slots_or_load(self) -> None:
        views = [FakeView("a", free=0, running=400, last_dispatch=3), FakeView("b", last_dispatch=4)]
        assert chosen("siloed", views) == "a"

    def test_more_classes_than_engines_share(self) -> None:
        policy = load_policy("siloed")
        views = [FakeView("a")]
        assert chosen(policy, views, waiting_record(embed_job("r", texts=20))) == "a"
        assert chosen(policy, views, waiting_record(embed_job("r"))) == "a"


# ---- order -------------------------------------------------------------------------------------------------


def of_class(
    ident: str, kind: RequestClass, sequence: int, *, priority: int = 0, arrived: float = 0.0
) -> Record:
    job = structs.replace(chat_job(ident), request_class=kind, priority=priority)
    return waiting_record(job, sequence, arrived=arrived)


class TestPriority:
    def test_class_comes_before_priority_and_priority_before_arrival(self) -> None:
        records = [
            of_class("bulk", RequestClass.EMBED_BULK, 1, priority=1000),
            of_class("batch", RequestClass.BATCH, 2),
            of_class("chat", RequestClass.CHAT, 3, priority=-1000),
            of_class("rerank", RequestClass.RERANK, 4),
            of_class("urgent", RequestClass.CHAT, 5, priority=2),
            of_class("single", RequestClass.EMBED_INTERACTIVE, 6),
        ]
        expected = ["urgent", "rerank", "single", "chat", "bulk", "batch"]
        assert order("priority", records) == expected

    def test_what_has_waited_long_enough_goes_first(self) -> None:
        old = of_class("old", RequestClass.BATCH, 1, priority=-10)
        early = of_class("early", RequestClass.CHAT, 2, priority=10, arrived=20.0)
        late = of_class("late", RequestClass.CHAT, 3, priority=10, arrived=40.0)
        assert order("priority", [late, early, old]) == ["early", "old", "late"]


def test_sjf_takes_the_cheapest_and_lets_the_dear_ones_age() -> None:
    records = [
        chat("dear", 1, cost=5.0),
        chat("cheap", 2, cost=0.1),
        chat("soon", 3, cost=0.1, arrived=48.0),
        chat("later", 4, cost=0.1, arrived=50.0),
    ]
    assert order("sjf", records) == ["cheap", "soon", "dear", "later"]


@pytest.mark.parametrize("policy", ["edf", "slo", "adaptive"])
def test_what_is_due_first_goes_first(policy: str) -> None:
    records = [
        chat("whenever", 1, due=inf),
        chat("late", 2, due=9.0),
        chat("soon", 3, due=1.0),
        chat("much later", 4, due=31.0, arrived=30.0),
    ]
    assert order(policy, records) == ["soon", "late", "whenever", "much later"]


# ---- refusal -----------------------------------------------------------------------------------------------


class TestSlo:
    BUSY = 1

    def views(self, *models: LlmCost, running: int = BUSY) -> list[FakeView]:
        return [FakeView(f"e{index}", running=running, llm=model) for index, model in enumerate(models)]

    def test_the_earliest_predicted_finish_wins_and_is_told(self) -> None:
        views = [FakeView("a", prefill_tokens=500, llm=llm(0.1)), FakeView("b", llm=llm(0.11))]
        choice = load_policy("slo").choose(chat(), views, 0.0)
        assert isinstance(choice, Choice)
        assert choice.engine == "b"
        assert choice.predicted == pytest.approx(views[1].llm.ttft(10, 0))

    def test_cached_tokens_need_no_prefill(self) -> None:
        views = [FakeView("a", llm=llm(0.1)), FakeView("b", llm=llm(0.1), running=1)]
        record = chat(prompt_tokens=1000, cached={"b": 900})
        assert chosen("slo", views, record) == "b"

    def test_an_embedding_engine_is_late_by_what_runs_there(self) -> None:
        views = [FakeView("a", busy_until=7.0), FakeView("b", busy_until=5.0)]
        record = waiting_record(embed_job("r"))
        choice = load_policy("slo").choose(record, views, 4.0)
        assert isinstance(choice, Choice)
        assert choice.engine == "b"
        assert choice.predicted == pytest.approx(1.0 + views[1].embed.seconds(10, 1))

    def test_what_would_be_late_everywhere_is_refused_until_the_queue_is_worked_off(self) -> None:
        shed = load_policy("slo").admit(
            chat(due=0.5), self.views(llm(1.0, samples=5), llm(2.0, samples=5)), 6.0, 0.0
        )
        assert isinstance(shed, Shed)
        assert shed.retry_after == 3.0

    def test_what_waited_too_long_is_refused_before_it_costs_anything(self) -> None:
        shed = load_policy("slo").choose(chat(due=4.0), self.views(llm(0.1, samples=5)), 4.0)
        assert isinstance(shed, Shed)
        assert shed.retry_after == 4.0

    @pytest.mark.parametrize(
        "reason", ["in time on one", "not known yet", "not trusted", "idle", "best effort", "no goal"]
    )
    def test_it_is_not_refused(self, reason: str) -> None:
        slow = llm(1.0, samples=0 if reason == "not known yet" else 5)
        if reason == "not trusted":
            for seconds in (9.0, 0.1) * 60:
                slow.observe_ttft(10, 0, seconds)
            assert not slow.trusted
        other = llm(0.01 if reason == "in time on one" else 1.0, samples=5)
        views = self.views(slow, other, running=int(reason != "idle"))
        record = chat(due=inf if reason == "no goal" else 0.05)
        lenient = frozenset({"tenant"} if reason == "best effort" else ())
        policy = load_policy("slo", PolicyOptions(best_effort=lenient))
        assert policy.admit(record, views, 6.0, 0.0) is None
        assert isinstance(policy.choose(record, views, 0.0), Choice)

    def test_the_two_halves_of_that_test_differ_in_the_reason_alone(self) -> None:
        views = self.views(llm(1.0, samples=5), llm(1.0, samples=5))
        assert isinstance(load_policy("slo").admit(chat(due=0.05), views, 6.0, 0.0), Shed)

    def test_it_waits_for_a_slot_while_there_is_time(self) -> None:
        views = [FakeView("a", free=0, running=4, llm=llm(0.1, samples=5))]
        assert isinstance(load_policy("slo").choose(chat(due=9.0), views, 0.0), Wait)


class TestAdaptive:
    """A goal of 1 s; half of it waiting is pressure."""

    def late(self, arrived: float) -> Record:
        """A request that no engine can serve in time."""
        return chat(due=arrived + 1.0, arrived=arrived, queued=arrived)

    def views(self) -> list[FakeView]:
        return [
            FakeView("a", running=1, llm=llm(5.0, samples=5)),
            FakeView("b", running=2, llm=llm(4.0, samples=5)),
        ]

    def refuses(self, policy: Policy, ahead: float, at: float) -> bool:
        return policy.admit(self.late(at), self.views(), ahead, at) is not None

    def test_calm_it_refuses_nothing_and_looks_at_load_alone(self) -> None:
        policy = load_policy("adaptive")
        assert not self.refuses(policy, 0.8, 0.0)
        assert chosen(policy, self.views(), self.late(0.0)) == "a"

    def test_under_pressure_goals_decide(self) -> None:
        policy = load_policy("adaptive")
        assert self.refuses(policy, 1.2, 0.0)
        in_time = chat(due=inf)
        assert chosen(policy, self.views(), in_time) == "b"

    def test_waiting_is_pressure_too(self) -> None:
        policy = load_policy("adaptive")
        assert isinstance(policy.choose(self.late(0.0), self.views(), 0.6), Shed)

    def test_it_stays_pressed_until_the_pressure_has_been_low_for_a_while(self) -> None:
        policy = load_policy("adaptive")
        assert self.refuses(policy, 1.2, 0.0)
        assert self.refuses(policy, 0.3, 4.0)  # not enough to begin, enough to stay
        assert self.refuses(policy, 0.0, 8.9)
        assert not self.refuses(policy, 0.0, 9.0)
        assert not self.refuses(policy, 0.8, 9.1)

    def test_each_model_has_its_own_mode(self) -> None:
        policy = load_policy("adaptive")
        assert self.refuses(policy, 1.2, 0.0)
        other = waiting_record(chat_job("r", model="other"), due=1.0)
        assert policy.admit(other, self.views(), 0.0, 0.0) is None


def test_fair_charges_what_is_sent_and_settles_what_it_took() -> None:
    policy = load_policy("fair", PolicyOptions(weights={"a": 2.0}))
    lane = policy.discipline()
    records = [waiting_record(chat_job(f"r{n}", tenant="ab"[n % 2]), n, cost=1.0) for n in range(6)]
    for record in records:
        lane.push(record, 0.0)
    out = []
    while (head := lane.head(0.0)) is not None:
        policy.charge(head, head.cost)
        lane.remove(head)
        out.append(head.job.tenant)
    assert out[:3] == ["a", "b", "a"]
    assert [record.charged for record in records] == [1.0] * 6
    policy.settle(records[0], 0.25)
    assert records[0].charged == 0.25


def test_others_charge_nobody() -> None:
    policy = load_policy("least_load")
    record = chat()
    policy.charge(record, 1.0)
    policy.settle(record, 2.0)
    assert record.charged == 0.0


def test_a_simple_policy_sends_one_whole_request_a_call() -> None:
    limits = load_policy("fifo").batch(waiting_record(embed_job("r", texts=20)), FakeView("a"), 0.0)
    assert (limits.texts, limits.tokens, limits.hold_until) == (20, 200, 0.0)
