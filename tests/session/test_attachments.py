"""Which session a transport belongs to, and which sessions without a transport are kept."""

from __future__ import annotations

import pytest

from orchestrator.policy.ids import SchedulerId, SessionId
from orchestrator.wire import attachments
from orchestrator.wire.attachments import Attachments, Limits
from orchestrator.wire.frames import CREDIT_BYTES_MIN, Draining, Hello, Welcome
from orchestrator.wire.session_intake import IntakeSession
from tests.session.machines import greeting, sent
from tests.session.world import WALL_MS, made_id, open_frame
from tests.values import replace


def table(limits: Limits | None = None) -> Attachments:
    return Attachments(SchedulerId("site"), "one", limits or Limits())


def of(session: int, epoch: int = 1, *, continues: bool = False) -> Hello:
    return replace(greeting(epoch), session=SessionId(made_id("ses", session)), continues=continues)


def begun(made: Attachments, number: int) -> IntakeSession:
    """A session with one stream."""
    session = made.greeted(of(number))
    assert session is not None
    session.greeted(1, of(number), 0, WALL_MS, ())
    session.received(1, [open_frame(1, number, CREDIT_BYTES_MIN)], 0)
    made.changed(session)
    return session


def detached(made: Attachments, number: int, text: str = "") -> IntakeSession:
    """A session without a transport that holds some text."""
    session = begun(made, number)
    session.lost(0)
    session.tokens(1, text, (), 1)
    assert made.changed(session) == []
    return session


def test_only_a_later_epoch_goes_on_with_a_session() -> None:
    made = table()
    session = begun(made, 1)
    assert made.greeted(of(1)) is None
    assert made.greeted(of(1, 5)) is None, "one that does not go on begins, and this has begun"
    assert made.greeted(of(1, 1, continues=True)) is None
    assert made.greeted(of(1, 2, continues=True)) is session
    assert made.refused == 3


def test_a_session_that_ended_begins_no_more_and_does_not_go_on() -> None:
    made = table()
    session = begun(made, 1)
    session.close("session_lost")
    made.changed(session)
    assert made.greeted(of(1)) is None
    stranger = made.greeted(of(1, 2, continues=True))
    assert stranger is not None
    (answer,) = sent(stranger.greeted(2, of(1, 2, continues=True), 0, WALL_MS, ()))
    assert isinstance(answer, Welcome)
    assert not answer.continued
    assert stranger.is_over()


def test_the_ones_that_ended_are_remembered_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachments, "ENDED_MAX", 2)
    made = table()
    for number in (1, 2, 3):
        session = begun(made, number)
        session.close("session_lost")
        made.changed(session)
    assert made.greeted(of(1)) is not None
    assert made.greeted(of(2)) is made.greeted(of(3)) is None


def test_beyond_the_bound_the_one_that_waits_longest_is_given_up() -> None:
    made = table(Limits(detached_bytes=1_000))
    first, second = detached(made, 1, "x" * 400), detached(made, 2, "x" * 400)
    assert made.held_bytes == 800
    second.tokens(1, "x" * 300, (), 1)
    ((given_up, _),) = made.changed(second)
    assert given_up is first
    assert first.is_over()
    assert made.held_bytes == 700
    made.changed(first)
    assert made.greeted(of(1)) is None


def test_one_that_came_back_is_not_given_up() -> None:
    made = table(Limits(detached_bytes=1_000))
    session = detached(made, 1, "x" * 900)
    hello = of(1, 2, continues=True)
    assert made.greeted(hello) is session
    session.greeted(2, hello, 0, WALL_MS, ())
    assert made.changed(session) == []
    assert made.held_bytes == 0
    assert detached(made, 2, "x" * 900).is_detached()


def test_no_more_than_so_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachments, "DETACHED_MAX", 2)
    made = table()
    first = detached(made, 1)
    detached(made, 2)
    third = begun(made, 3)
    third.lost(0)
    assert [one for one, _ in made.changed(third)] == [first]


def test_a_new_session_of_a_draining_intake_is_told_so() -> None:
    made = table()
    made.drain(500)
    session = made.greeted(of(1))
    assert session is not None
    told = sent(session.greeted(1, of(1), 0, WALL_MS, ()))
    assert [type(frame) for frame in told] == [Welcome, Draining]
