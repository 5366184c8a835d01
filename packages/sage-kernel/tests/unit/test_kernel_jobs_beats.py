"""Who is lost: in virtual time."""

from __future__ import annotations

from sage.common.testing import VirtualClock
from sage.kernel.jobs.beats import Beats, Patience


class Watch:
    """Ticks every half second, as the manager does."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.beats = Beats(Patience(first=20.0, idle=3.5, longest=30.0, stall=1.0))
        self.cpu: dict[str, float] = {}
        self.lost: dict[str, float] = {}

    def run(self, seconds: float, *talking: str, working: tuple[str, ...] = ()) -> None:
        """So long; those that talk say something every second."""
        for half in range(round(seconds * 2)):
            self.clock.advance(0.5)
            now = self.clock.now()
            if half % 2:
                for name in talking:
                    self.beats.heard(name, now)
            for name in working:
                self.cpu[name] = self.cpu.get(name, 0.0) + 0.1
            for name in self.beats.quiet(now):
                self.beats.worked(name, self.cpu.get(name, 0.0), now)
            for name in self.beats.tick(now):
                self.lost.setdefault(name, now)

    def expect(self, *names: str) -> None:
        for name in names:
            self.beats.expect(name, self.clock.now())


def test_who_talks_is_never_lost() -> None:
    watch = Watch()
    watch.expect("a")
    watch.run(1000, "a")
    assert watch.lost == {}


def test_who_falls_silent_is_lost_in_less_than_five_seconds() -> None:
    watch = Watch()
    watch.expect("a", "b")
    watch.run(10, "a", "b")
    watch.run(10, "b")
    assert watch.lost.keys() == {"a"}
    assert 3.5 <= watch.lost["a"] - 10 < 5


def test_who_works_and_cannot_talk_is_not_lost_for_a_while() -> None:
    """As a process that loads a large library."""
    watch = Watch()
    watch.expect("a")
    watch.run(5, "a")
    watch.run(20, working=("a",))
    assert watch.lost == {}
    watch.run(20, working=("a",))
    assert watch.lost == {"a": 35.0}


def test_who_stopped_working_is_lost_soon_after() -> None:
    watch = Watch()
    watch.expect("a")
    watch.run(5, "a")
    watch.run(10, working=("a",))
    watch.run(5)
    assert 15 < watch.lost["a"] <= 19


def test_the_first_word_may_take_longer() -> None:
    watch = Watch()
    watch.expect("a")
    watch.run(19)
    assert watch.lost == {}
    watch.run(2)
    assert watch.lost == {"a": 20.0}


def test_nobody_is_lost_because_we_were_not_there() -> None:
    watch = Watch()
    watch.expect("a")
    watch.run(10, "a")
    watch.clock.advance(600)  # the machine slept, or our own loop did not move
    watch.run(3)
    assert watch.lost == {}
    watch.run(2)
    assert watch.lost.keys() == {"a"}


def test_who_is_forgotten_is_not_lost_and_nobody_minds_a_late_word() -> None:
    watch = Watch()
    watch.expect("a")
    watch.beats.forget("a")
    watch.beats.forget("a")
    watch.beats.heard("a", 1.0)
    watch.beats.worked("a", 1.0, 1.0)
    watch.run(100)
    assert watch.lost == {}
