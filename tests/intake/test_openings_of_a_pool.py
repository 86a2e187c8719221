"""The openings of the sessions at one pool: never more than there is room, more for who asks more, none twice."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from scheduler.intake.grants import RECENT_S, SHARE_EACH_US, Grants

SECOND_US = 1_000_000
NAMES = ("a", "b", "c", "d")


class Pool:
    """Sessions that are told of their openings, a room, and a clock."""

    def __init__(self, room: int, *sessions: str) -> None:
        self.grants: Grants[str] = Grants()
        self.room = room
        self.live = list(sessions)
        self.turn = 0
        self.now_us = 0

    def openings(self) -> dict[str, int]:
        """What every session is told now."""
        return {
            name: self.grants.openings(name, lambda: self.live, self.room, self.turn, self.now_us) for name in self.live
        }

    def start(self, session: str, count: int = 1) -> None:
        """So many attempts arrive and take their place in the pool."""
        for _ in range(count):
            self.grants.started(session, self.now_us)
            self.grants.arriving -= 1
            self.room = max(0, self.room - 1)

    def end(self, session: str, count: int = 1) -> None:
        for _ in range(count):
            self.grants.ended(session)
            self.room += 1

    def later(self, us: int = 250_000) -> None:
        self.now_us += us
        self.turn += 1


@given(room=st.integers(0, 40), asked=st.lists(st.integers(0, 5), min_size=1, max_size=8), turns=st.integers(0, 5))
def test_all_openings_together_are_the_room_and_never_more(room: int, asked: list[int], turns: int) -> None:
    pool = Pool(0, *(str(number) for number in range(len(asked))))
    for name, count in zip(pool.live, asked, strict=True):
        pool.start(name, count)
    pool.room = room
    for _ in range(turns + 1):
        pool.later()
        told = pool.openings()
        assert sum(told.values()) <= room
        # While nobody asked, or several did, nothing of it is kept back.
        if all(asked) or not any(asked):
            assert sum(told.values()) == room


def test_where_nobody_asked_lately_the_room_is_everybodys() -> None:
    assert Pool(10, "a").openings() == {"a": 10}
    assert Pool(10, "a", "b").openings() == {"a": 5, "b": 5}


def test_who_asks_more_gets_more_and_who_stopped_asking_gets_less() -> None:
    pool = Pool(40, "a", "b", "c")
    pool.start("a", 6)
    pool.start("b", 2)
    pool.later()
    told = pool.openings()
    assert told["a"] > told["b"] > told["c"] > 1, "an edge that wakes up often has more than one request"
    pool.end("a", 6)
    pool.later((RECENT_S + 1) * SECOND_US)
    told = pool.openings()
    assert told["b"] > told["a"] > 1
    assert abs(told["a"] - told["c"]) <= 1


def test_what_a_session_starts_is_not_granted_to_it_again() -> None:
    pool = Pool(2_000, *(str(number) for number in range(1_000)))
    first = pool.openings()["0"]
    assert first == 2
    pool.start("0")
    # Among so many a sharing stands for a while; what was started in it counts all the same.
    pool.now_us += SHARE_EACH_US
    assert pool.openings()["0"] == 1
    pool.start("0")
    assert pool.openings()["0"] == 0
    pool.start("0")
    assert pool.openings()["0"] == 0, "one more than it was granted is no debt"
    pool.later()
    assert pool.openings()["0"] > 0


def test_what_has_arrived_and_is_not_in_the_queue_yet_has_its_place() -> None:
    pool = Pool(3, "a")
    pool.grants.started("a", 0)
    pool.later()
    assert pool.openings() == {"a": 2}
    pool.grants.arriving -= 1
    pool.room -= 1
    pool.later()
    assert pool.openings() == {"a": 2}


def test_too_few_openings_go_round() -> None:
    pool = Pool(1, *NAMES)
    had = []
    for _ in range(len(NAMES)):
        pool.later()
        (name,) = [name for name, count in pool.openings().items() if count]
        had.append(name)
    assert sorted(had) == sorted(NAMES)


def test_a_session_that_is_gone_leaves_its_share_to_the_others() -> None:
    pool = Pool(8, "a", "b")
    pool.start("a")
    pool.start("b")
    pool.later()
    before = pool.openings()["b"]
    pool.live.remove("a")
    pool.grants.closed("a")
    assert pool.openings() == {"b": pool.room}
    assert pool.room > before
    pool.grants.ended("a")


def test_the_first_attempt_of_a_session_in_a_while_is_known() -> None:
    grants: Grants[str] = Grants()
    assert grants.started("a", 0)
    assert not grants.started("a", 1)
    assert grants.started("b", 1)
    grants.ended("a")
    grants.ended("a")
    assert not grants.started("a", (RECENT_S - 1) * SECOND_US)
    grants.ended("a")
    assert grants.started("a", (2 * RECENT_S) * SECOND_US)


def test_of_a_session_that_never_rests_only_the_last_seconds_are_kept() -> None:
    grants: Grants[str] = Grants()
    for second in range(10 * RECENT_S):
        grants.started("a", second * SECOND_US)
        grants.openings("a", list, 10, second, second * SECOND_US)
    assert len(grants._held["a"].starts) == grants._held["a"].count == RECENT_S


class Sessions(RuleBasedStateMachine):
    """Sessions that come, ask, end and go, told of openings at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(12)
        self.running: list[str] = []

    @rule(name=st.sampled_from(NAMES))
    def come(self, name: str) -> None:
        if name not in self.pool.live:
            self.pool.live.append(name)

    @rule(name=st.sampled_from(NAMES))
    def go(self, name: str) -> None:
        if name in self.pool.live:
            self.pool.live.remove(name)
            self.pool.grants.closed(name)

    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        """An attempt within what its session was told, as edges keep to it."""
        may = sorted(name for name, count in self.pool.openings().items() if count)
        if may:
            name = data.draw(st.sampled_from(may))
            self.pool.start(name)
            self.running.append(name)

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if self.running:
            name = data.draw(st.sampled_from(sorted(self.running)))
            self.running.remove(name)
            self.pool.end(name)

    @rule(us=st.sampled_from((1, 300, 2_000_000, 20_000_000)), turns=st.integers(0, 2))
    def wait(self, us: int, turns: int) -> None:
        self.pool.now_us += us
        self.pool.turn += turns

    @invariant()
    def nobody_is_granted_what_is_not_there(self) -> None:
        # Whoever came since is shared with by now; only then are all told of one and the same sharing.
        self.pool.openings()
        assert sum(self.pool.openings().values()) <= self.pool.room


TestSessions = Sessions.TestCase
TestSessions.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
