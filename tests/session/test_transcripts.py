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
from orchestrator.policy.ids import ReplicaId
from orchestrator.wire import session_edge, session_intake
from orchestrator.wire.frames import (
    Accepted,
    Beat,
    Broken,
    Cancel,
    Credit,
    Done,
    Draining,
    EdgeFrame,
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
from orchestrator.wire.session_edge import State
from tests.session.world import Clock, Pair, open_frame

FOLDER = Path(__file__).parent / "transcripts"
WRITES = "TIDEGATE_WRITE_TRANSCRIPTS" in os.environ
ONE_WAY_MS = 110
CREDIT_BYTES = 16 * 1024
HEADER = f"""The border takes {ONE_WAY_MS} ms each way. A line stands where something is sent or done, not where
it arrives.
Beats and the reports of loads between them are left out.
"""


class Conversation(Pair):
    """A session that writes down what is said, with a tenant and an engine that the case plays."""

    def __init__(self, title: str) -> None:
        super().__init__(Clock(), 1, lambda: ONE_WAY_MS * 1_000, skew_ms=3)
        self.lines = [title, "", *HEADER.splitlines(), ""]
        self.reads = True
        self.counts: dict[int, EdgeCounts] = {}
        self.stopped_streams: set[int] = set()
        self.connect()

    def at(self, at_ms: int, act: Callable[[], None]) -> None:
        """Do something later in this conversation."""
        self.clock.after(at_ms * 1_000 - self.clock.now_us, act)

    def text(self, until_ms: int) -> str:
        """Let time pass and return what was written down."""
        self.clock.run(until_ms * 1_000)
        assert (self.edge.state is State.CLOSED) == (self.intake.state is State.CLOSED)
        return "\n".join([*self.lines, ""])

    def note(self, who: str, what: str) -> None:
        self.lines.append(f"{self.clock.now_us // 1_000:6} ms  {who:<16} {what}")

    def ask(self, credit_bytes: int = CREDIT_BYTES) -> None:
        """A tenant asks."""
        stream = self.edge.next_stream()
        self.act_edge(self.edge.open(open_frame(stream, stream, credit_bytes), self.clock.now_us))

    def cancel(self, stream: int) -> None:
        """The tenant is gone."""
        self.note("tenant", f"leaves {stream}")
        self.act_edge(self.edge.cancel(stream))
        self.settle(stream)

    def settle(self, stream: int) -> None:
        """Say what arrived and what was read."""
        self.act_edge(self.edge.settle(stream, self.counts.get(stream, EdgeCounts())))

    def take(self, stream: int) -> None:
        """A replica takes the work."""
        self.act_intake(self.intake.accepted(stream, ReplicaId("guizhou-0")))

    def make(self, stream: int, first: int, *words: str) -> None:
        """The engine makes a token of each word."""
        ids = tuple(range(first, first + len(words)))
        self.act_intake(self.intake.tokens(stream, "".join(words), ids, len(words)))

    def finish(self, stream: int, reason: str, generated: int) -> None:
        """The engine ends."""
        self.act_intake(self.intake.done(stream, reason, PoolCounts(12, 0, generated)))

    def sent_up(self, frame: EdgeFrame) -> None:
        if not isinstance(frame, Beat):
            self.note("edge > intake", told(frame))

    def sent_down(self, frame: IntakeFrame) -> None:
        if not isinstance(frame, Beat | Load):
            self.note("intake > edge", told(frame))

    def delivered(self, instruction: session_edge.Deliver) -> None:
        frame, stream = instruction.frame, instruction.stream
        if isinstance(frame, Tokens):
            received = self.counts.get(stream, EdgeCounts()).received + frame.count
            self.counts[stream] = EdgeCounts(received, received if self.reads else 0)
            if self.reads:
                size_bytes = held_bytes(frame.text, frame.ids)
                self.clock.after(0, lambda: self.act_edge(self.edge.consumed(stream, size_bytes)))
        self.note("tenant", f"gets {told(frame)}")
        if isinstance(frame, Done | Broken | Refused):
            self.clock.after(0, lambda: self.settle(stream))

    def edge_closed(self, reason: str) -> None:
        self.note("edge", f"closes: {reason}")

    def started(self, opened: Open) -> None:
        self.note("engine", f"is asked for {opened.stream}")

    def stopped(self, instruction: session_intake.Stop) -> None:
        self.stopped_streams.add(instruction.stream)
        self.note("engine", f"is told to stop {instruction.stream}: {instruction.reason}")

    def settled(self, instruction: session_intake.Settled) -> None:
        counts = instruction.counts
        said = "nobody said what arrived" if counts is None else f"{counts.received} received, {counts.delivered} read"
        self.note("intake", f"settles {instruction.stream}: {instruction.sent} sent, {said}")

    def intake_closed(self, reason: str) -> None:
        self.note("intake", f"closes: {reason}")


def told(frame: EdgeFrame | IntakeFrame) -> str:
    """Return one line for a frame."""
    match frame:
        case Hello():
            return f"Hello, versions {frame.version_min} to {frame.version_max}, epoch {frame.epoch}"
        case Welcome():
            return f"Welcome, version {frame.version}, {frame.streams_max} streams, {len(frame.loads)} pool"
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
    talk.at(415, lambda: talk.act_intake(talk.intake.refused(1, "policy_newer", detail, rules=("CN-1",))))
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


def session_lost() -> str:
    talk = Conversation("The border goes dark in the middle of an answer: both ends notice, and nothing runs on.")
    talk.at(300, talk.ask)
    talk.at(420, lambda: talk.take(1))
    talk.at(600, lambda: talk.make(1, 0, "Once", " upon"))

    def dark() -> None:
        talk.note("border", "lets nothing pass any more")
        talk.up.cut = talk.down.cut = True

    talk.at(1_000, dark)
    talk.at(1_100, lambda: talk.make(1, 2, " a", " time"))
    return talk.text(8_000)


def drained() -> str:
    talk = Conversation("A scheduler stops: what runs may end, what is new is refused, and then the session ends.")
    talk.at(300, talk.ask)
    talk.at(420, lambda: talk.take(1))
    talk.at(600, lambda: talk.make(1, 0, "To"))
    talk.at(610, talk.ask)  # it crosses the news on its way
    talk.at(615, lambda: talk.act_intake(talk.intake.drain(20_000)))
    talk.at(900, lambda: talk.make(1, 1, " the", " end", "."))
    talk.at(901, lambda: talk.finish(1, "stop", 4))
    talk.at(1_500, lambda: talk.act_intake(talk.intake.lost("draining")))
    return talk.text(2_500)


CASES: dict[str, Callable[[], str]] = {
    "normal-answer": normal_answer,
    "refused": refused,
    "cancelled": cancelled,
    "slow-reader": slow_reader,
    "session-lost": session_lost,
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
