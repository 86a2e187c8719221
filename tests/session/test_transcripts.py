"""Conversations to read: what both ends say in the cases that matter, compared byte for byte with `transcripts/`.

After a change that is meant, write them anew and read the difference:
``TIDEGATE_WRITE_TRANSCRIPTS=1 python -m pytest tests/session/test_transcripts.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.ledger.usage import EdgeCounts, PoolCounts
from orchestrator.policy.ids import AttemptId, ReplicaId
from orchestrator.wire import session_edge, session_intake
from orchestrator.wire.attachments import Limits
from orchestrator.wire.frames import (
    Accepted,
    Beat,
    Broken,
    Cancel,
    Credit,
    Done,
    Draining,
    EdgeFrame,
    Held,
    Hello,
    IntakeFrame,
    Load,
    Open,
    Refused,
    Settle,
    Tokens,
    Welcome,
    held_bytes,
)
from orchestrator.wire.session_intake import IntakeSession
from tests.session.world import EdgeNode, Wire, World, made_id, open_frame

FOLDER = Path(__file__).parent / "transcripts"
WRITES = "TIDEGATE_WRITE_TRANSCRIPTS" in os.environ
ONE_WAY_MS = 110
CREDIT_BYTES = 16 * 1024
HEADER = f"""The border takes {ONE_WAY_MS} ms each way. A line stands where something is sent or done, not where
it arrives.
Beats and the reports of loads between them are left out.
"""


class Conversation(World):
    """A session that writes down what is said, with a tenant and an engine that the case plays."""

    def __init__(self, title: str) -> None:
        super().__init__(2 * ONE_WAY_MS * 1_000, Limits(64), skew_ms=3)
        self.lines = [title, "", *HEADER.splitlines(), ""]
        self.reads = True
        self.dark = False
        """Whether new connections let nothing pass either."""
        self.counts: dict[AttemptId, EdgeCounts] = {}
        self.stopped_streams: set[int] = set()
        self.edge = EdgeNode(self, "edge-a")
        self.asked = 0
        self.edge.begin()

    @property
    def session(self) -> IntakeSession:
        """The last session at the intake."""
        return list(self.intake.wires)[-1]

    def at(self, at_ms: int, act: Callable[[], None]) -> None:
        """Do something so long after the connection was made."""
        self.clock.after((at_ms + 2 * ONE_WAY_MS) * 1_000, act)

    def text(self, until_ms: int) -> str:
        """Let time pass and return what was written down."""
        self.clock.run(until_ms * 1_000)
        return "\n".join([*self.lines, ""])

    def note(self, who: str, what: str) -> None:
        self.lines.append(f"{self.clock.now_us // 1_000:6} ms  {who:<16} {what}")

    def ask(self, credit_bytes: int = CREDIT_BYTES) -> None:
        """A tenant asks."""
        self.asked += 1
        stream = self.edge.machine.next_stream
        self.edge.act(self.edge.machine.open(open_frame(stream, self.asked, credit_bytes), self.clock.now_us))

    def cancel(self, stream: int) -> None:
        """The tenant is gone."""
        self.note("tenant", f"leaves {stream}")
        self.edge.act(self.edge.machine.cancel(stream))
        self.settle(stream, AttemptId(made_id("att", stream)))

    def settle(self, stream: int, attempt: AttemptId) -> None:
        """Say what arrived and what was read."""
        self.edge.act(self.edge.machine.settle(stream, self.counts.get(attempt, EdgeCounts())))

    def act(self, what: Callable[[IntakeSession], list[session_intake.Instruction]]) -> None:
        """Carry out what the intake's machine asks for."""
        session = self.session
        self.intake.act(session, what(session))

    def take(self, stream: int) -> None:
        """A replica takes the work."""
        self.act(lambda session: session.accepted(stream, ReplicaId("guizhou-0")))

    def make(self, stream: int, first: int, *words: str) -> None:
        """The engine makes a token of each word."""
        ids = tuple(range(first, first + len(words)))
        self.act(lambda session: session.tokens(stream, "".join(words), ids, len(words)))

    def finish(self, stream: int, reason: str, generated: int) -> None:
        """The engine ends."""
        self.act(lambda session: session.done(stream, reason, PoolCounts(12, 0, generated)))

    def connect(self, edge: EdgeNode) -> Wire:
        wire = super().connect(edge)
        if self.dark:
            wire.up.cut()
            wire.down.cut()
        return wire

    def cut(self) -> None:
        """The connection is reset: nothing that is on its way arrives, and both ends notice."""
        wire = self.edge.wire
        assert wire is not None
        self.note("border", "resets the connection")
        wire.lose()
        self.clock.after(0, lambda: self.edge.lose(wire))
        self.clock.after(0, lambda: self.intake.arrived(wire, None))

    def sent_up(self, edge: EdgeNode, frame: EdgeFrame) -> None:
        if not isinstance(frame, Beat):
            self.note("edge > intake", told(frame))

    def sent_down(self, session: IntakeSession, frame: IntakeFrame) -> None:
        if not isinstance(frame, Beat | Load):
            self.note("intake > edge", told(frame))

    def delivered(self, edge: EdgeNode, instruction: session_edge.Deliver) -> None:
        frame, stream = instruction.frame, instruction.stream
        if isinstance(frame, Tokens):
            received = self.counts.get(frame.attempt, EdgeCounts()).received + frame.count
            self.counts[frame.attempt] = EdgeCounts(received, received if self.reads else 0)
            if self.reads:
                size_bytes = held_bytes(frame.text, frame.ids)
                self.clock.after(0, lambda: edge.act(edge.machine.consumed(stream, size_bytes)))
        self.note("tenant", f"gets {told(frame)}")
        if isinstance(frame, Done | Broken | Refused):
            self.clock.after(0, lambda: self.settle(stream, frame.attempt))

    def edge_detached(self, edge: EdgeNode, reason: str) -> None:
        self.note("edge", f"gives the connection up: {reason}")

    def edge_closed(self, edge: EdgeNode, reason: str) -> None:
        self.note("edge", f"ends the session: {reason}")

    def started(self, session: IntakeSession, opened: Open) -> None:
        self.note("engine", f"is asked for {opened.stream}")

    def stopped(self, session: IntakeSession, instruction: session_intake.Stop) -> None:
        self.stopped_streams.add(instruction.stream)
        self.note("engine", f"is told to stop {instruction.stream}: {instruction.reason}")

    def settled(self, session: IntakeSession, instruction: session_intake.Settled) -> None:
        counts = instruction.counts
        said = "nobody said what arrived" if counts is None else f"{counts.received} received, {counts.delivered} read"
        self.note("intake", f"settles {instruction.stream}: {instruction.sent} sent, {said}")

    def intake_detached(self, session: IntakeSession, reason: str) -> None:
        self.note("intake", f"gives the connection up: {reason}")

    def intake_closed(self, session: IntakeSession, reason: str) -> None:
        self.note("intake", f"ends the session: {reason}")


def told(frame: EdgeFrame | IntakeFrame) -> str:
    """Return one line for a frame."""
    match frame:
        case Hello():
            said = f"Hello, versions {frame.version_min} to {frame.version_max}, epoch {frame.epoch}"
            streams = [*map(held, frame.held), *map(held, frame.settled)]
            return ", ".join([said, *streams])
        case Welcome():
            said = f"Welcome, version {frame.version}, {frame.streams_max} streams, {len(frame.loads)} pool"
            return said + (f", goes on, was asked up to {frame.last_stream}" if frame.continued else "")
        case Open():
            return f"Open {frame.stream}, {frame.credit_bytes} bytes of credit"
        case Credit():
            return f"Credit {frame.stream}, {frame.size_bytes} bytes"
        case Cancel():
            return f"Cancel {frame.stream}"
        case Settle():
            return f"Settle {frame.stream}, {frame.counts.received} received, {frame.counts.delivered} read"
        case Accepted():
            return f"Accepted {frame.stream}, {frame.replica}"
        case Refused():
            return f"Refused {frame.stream}, {frame.code}: {frame.detail}"
        case Tokens():
            said = repr(frame.text) if len(frame.text) < 40 else f"{len(frame.text)} characters"
            return f"Tokens {frame.stream}, {frame.count} from {frame.first}: {said}"
        case Done():
            return f"Done {frame.stream}, {frame.reason}, {counted(frame.counts)}"
        case Broken():
            return f"Broken {frame.stream}, {frame.code}: {frame.detail} ({counted(frame.counts)})"
        case Draining():
            return f"Draining, {frame.grace_ms} ms"
        case Beat() | Load():
            return "-"


def held(one: Held | Settle) -> str:
    """Return what a greeting says of one stream."""
    if isinstance(one, Settle):
        return f"settled {one.stream} with {one.counts.received} received"
    said = f"wants {one.stream} from {one.next_token} up to {one.limit_bytes} bytes, has {one.received_bytes}"
    return said + (", cancelled" if one.cancelled else "") + (", has its end" if one.ended else "")


def counted(counts: PoolCounts) -> str:
    return f"{counts.prompt} prompt, {counts.generated} generated, {counts.sent} sent"


def normal_answer() -> str:
    talk = Conversation("An answer: permitted, queued, made, read and counted on both sides.")
    talk.at(300, talk.ask)
    talk.at(420, lambda: talk.take(1))
    talk.at(600, lambda: talk.make(1, 0, "Good"))
    talk.at(665, lambda: talk.make(1, 1, " morning", ","))
    talk.at(730, lambda: talk.make(1, 3, " Singapore", "."))
    talk.at(731, lambda: talk.finish(1, "stop", 5))
    return talk.text(2_000)


def refused() -> str:
    talk = Conversation("A refusal: nothing was generated, and the edge may place the request again.")
    detail = "The newest law of the pool's side refuses this."
    talk.at(300, talk.ask)
    talk.at(415, lambda: talk.act(lambda session: session.refused(1, "policy_newer", detail, rules=("CN-1",))))
    return talk.text(2_000)


def cancelled() -> str:
    talk = Conversation("A tenant hangs up: the engine is told at once, and what it still makes goes nowhere.")
    talk.at(300, talk.ask)
    talk.at(420, lambda: talk.take(1))
    talk.at(500, lambda: talk.make(1, 0, "Once", " upon"))
    talk.at(700, lambda: talk.cancel(1))
    talk.at(700, lambda: talk.make(1, 2, " a"))
    talk.at(800, lambda: talk.make(1, 3, " time"))
    talk.at(850, lambda: talk.finish(1, "cancelled", 4))
    return talk.text(2_000)


def slow_reader() -> str:
    talk = Conversation("A tenant stops reading: credit runs out, the engine runs ahead, and then its slot is freed.")
    talk.reads = False
    talk.at(300, talk.ask)
    talk.at(420, lambda: talk.take(1))

    def step(number: int) -> None:
        if 1 not in talk.stopped_streams:
            talk.make(1, number, "x" * 1_000)
            talk.clock.after(20_000, lambda: step(number + 1))

    talk.at(500, lambda: step(0))
    return talk.text(5_000)


def begun(title: str) -> Conversation:
    """An answer that has begun, with two of its words read."""
    talk = Conversation(title)
    talk.at(300, talk.ask)
    talk.at(420, lambda: talk.take(1))
    talk.at(600, lambda: talk.make(1, 0, "Once", " upon"))
    return talk


def silent_death() -> str:
    talk = begun("The border goes dark in the middle of an answer: both ends notice, try again, and nothing runs on.")

    def dark() -> None:
        talk.note("border", "lets nothing pass any more")
        wire = talk.edge.wire
        assert wire is not None
        wire.up.cut()
        wire.down.cut()
        talk.dark = True

    talk.at(1_000, dark)
    talk.at(1_100, lambda: talk.make(1, 2, " a", " time"))
    return talk.text(9_000)


def reattached() -> str:
    talk = begun("A connection is reset in the middle of an answer: the answer goes on, without a gap or a repeat.")
    talk.at(1_000, lambda: talk.make(1, 2, " a", " time"))
    talk.at(1_050, talk.cut)
    talk.at(1_200, lambda: talk.make(1, 4, " there", " was"))
    talk.at(2_000, lambda: talk.finish(1, "stop", 6))
    return talk.text(3_000)


def other_instance() -> str:
    talk = begun("An intake is restarted in the middle of an answer: it knows nothing of it, and the edge is told so.")

    def restart() -> None:
        talk.note("intake", "is restarted")
        talk.intake.crash()
        talk.intake.restart()

    talk.at(1_000, restart)
    return talk.text(2_500)


def settlement_lost() -> str:
    talk = begun("A settlement is lost with the connection: the next greeting says it again, and both count alike.")
    talk.at(700, lambda: talk.finish(1, "stop", 2))
    talk.at(820, talk.cut)
    return talk.text(2_000)


def cancel_lost() -> str:
    talk = begun("A cancel is lost with the connection: the next greeting tells of it, and the engine stops.")
    talk.at(1_000, lambda: talk.cancel(1))
    talk.at(1_010, talk.cut)
    talk.at(1_200, lambda: talk.make(1, 2, " a"))
    return talk.text(2_500)


def attempt_lost() -> str:
    talk = Conversation("An attempt is lost with the connection: the intake never saw it, so it is sent again.")
    talk.at(300, talk.ask)
    talk.at(350, talk.cut)
    talk.at(1_200, lambda: talk.take(1))
    talk.at(1_300, lambda: talk.make(1, 0, "Here", "."))
    talk.at(1_301, lambda: talk.finish(1, "stop", 2))
    return talk.text(2_500)


def drained() -> str:
    talk = Conversation("A scheduler stops: what runs may end, what is new is refused, and then the session ends.")
    talk.at(300, talk.ask)
    talk.at(420, lambda: talk.take(1))
    talk.at(600, lambda: talk.make(1, 0, "To"))
    talk.at(610, talk.ask)  # it crosses the news on its way
    talk.at(615, lambda: talk.act(lambda session: session.drain(20_000)))
    talk.at(900, lambda: talk.make(1, 1, " the", " end", "."))
    talk.at(901, lambda: talk.finish(1, "stop", 4))
    talk.at(1_500, lambda: talk.act(lambda session: session.close("draining")))
    return talk.text(2_500)


CASES: dict[str, Callable[[], str]] = {
    "normal-answer": normal_answer,
    "refused": refused,
    "cancelled": cancelled,
    "slow-reader": slow_reader,
    "silent-death": silent_death,
    "reattached": reattached,
    "other-instance": other_instance,
    "settlement-lost": settlement_lost,
    "cancel-lost": cancel_lost,
    "attempt-lost": attempt_lost,
    "drained": drained,
}


@pytest.mark.parametrize("name", CASES)
def test_the_conversation_is_the_one_that_was_written_down(name: str) -> None:
    text, file = CASES[name](), FOLDER / f"{name}.txt"
    if WRITES:
        file.write_bytes(text.encode())
    assert file.read_bytes() == text.encode()


def test_every_conversation_has_its_case() -> None:
    assert {file.stem for file in FOLDER.iterdir()} == CASES.keys()
