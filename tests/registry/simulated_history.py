"""A server of watches, simulated: a history of revisions that is served late, in pieces, twice, or not at all.

It follows etcd's rules: events in the order of history, a reply's header tells the revision of the store and not of its
events, fragments may split a revision, a progress notice comes only when all was sent, an answer to a progress question
may come at any moment (before etcd 3.5.8), and what was compacted is not served.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.control.entries import Change, Entry, Listing, RegistryKey, Revision
from orchestrator.control.watch import Ending, Reply, Step, WatchCursor

FIRST = 2
"""The revision of the first commit; an empty store is at 1."""
WATCH_ID = 0


@dataclass
class History:
    """The truth."""

    commits: list[tuple[Change, ...]] = field(default_factory=list)
    compacted: int = 0
    cluster_id: int = 7

    @property
    def revision(self) -> Revision:
        return Revision(FIRST - 1 + len(self.commits))

    def commit(self, writes: dict[RegistryKey, bytes | None]) -> None:
        revision = Revision(self.revision + 1)
        self.commits.append(
            tuple(
                Change(key, None if value is None else Entry(value, revision), revision)
                for key, value in sorted(writes.items())
            )
        )

    def since(self, revision: int) -> list[Change]:
        return [change for commit in self.commits[max(0, revision - FIRST) :] for change in commit]

    def state(self) -> dict[RegistryKey, Entry]:
        held: dict[RegistryKey, Entry] = {}
        for change in self.since(FIRST):
            apply(held, change)
        return held

    def rewind(self, count: int) -> None:
        """Restore a backup that lacks the last `count` commits."""
        del self.commits[len(self.commits) - count :]
        self.compacted = min(self.compacted, self.revision)


def apply(held: dict[RegistryKey, Entry], change: Change) -> None:
    if change.entry is None:
        held.pop(change.key, None)
    else:
        held[change.key] = change.entry


class Simulation:
    """A cursor before a simulated server, with a consumer that believes nothing but the changes it is handed."""

    def __init__(self, cursor: WatchCursor) -> None:
        self.cursor = cursor
        self.history = History()
        self.connected = False
        self.sent_upto = 0
        """All revisions up to here were sent on the present stream."""
        self.consumer: dict[RegistryKey, Entry] = {}
        self.taken: list[Change] = []
        """Changes handed over since the last listing."""
        self.listed_at = 0
        self.endings: list[Ending] = []
        self.now_s = 0.0

    def connect(self) -> None:
        """List if the cursor needs it, and open a stream."""
        if self.connected:
            return
        start = self.cursor.next_revision
        if start is None:
            listing = Listing(self.history.revision, self.history.cluster_id, self.history.state())
            for change in self.cursor.listed(listing, self.now_s):
                apply(self.consumer, change)
            self.taken.clear()
            self.listed_at = listing.revision
            start = Revision(listing.revision + 1)
        self.cursor.opened()
        self.connected = True
        self.sent_upto = start - 1
        self.reply(created=True)
        if self.connected and start < self.history.compacted:
            self.reply(canceled=True, compacted=True)

    def cut(self) -> None:
        self.connected = False

    def deliver(self, revisions: int, pieces: int, lost: int, again: int = 0) -> None:
        """Send some revisions in some fragments, of which the last few are lost with the connection.

        `again` revisions that were sent before are sent once more in front.
        """
        upto = min(self.sent_upto + revisions, self.history.revision)
        first = max(self.listed_at, self.sent_upto - again) + 1
        changes = [change for change in self.history.since(first) if change.mod_revision <= upto]
        if not self.connected or upto == self.sent_upto or not changes:
            return
        size = max(1, -(-len(changes) // pieces))
        parts = [changes[at : at + size] for at in range(0, len(changes), size)]
        kept = parts[: max(0, len(parts) - lost)]
        for index, part in enumerate(kept):
            self.reply(changes=tuple(part), fragment=index < len(parts) - 1)
        if len(kept) < len(parts):
            self.cut()
        else:
            self.sent_upto = upto

    def notice(self) -> None:
        """A progress notice: only when all was sent."""
        if self.connected and self.sent_upto == self.history.revision:
            self.reply()

    def answer(self) -> None:
        """A progress question and its answer."""
        if self.connected:
            self.cursor.asked(self.now_s)
            self.reply(watch_id=-1)

    def reply(
        self,
        *,
        changes: tuple[Change, ...] = (),
        created: bool = False,
        fragment: bool = False,
        canceled: bool = False,
        compacted: bool = False,
        watch_id: int = WATCH_ID,
    ) -> None:
        step = self.cursor.received(
            Reply(
                revision=self.history.revision,
                cluster_id=self.history.cluster_id,
                watch_id=watch_id,
                changes=changes,
                created=created,
                fragment=fragment,
                canceled=canceled,
                compacted=compacted,
            )
        )
        self.take(step)

    def take(self, step: Step) -> None:
        for change in step.changes:
            apply(self.consumer, change)
        self.taken.extend(step.changes)
        if step.ending is not None:
            self.endings.append(step.ending)
            self.cut()

    def drain(self) -> None:
        """Connect for good and send all that is left."""
        for _ in range(3):
            self.connect()
        self.deliver(len(self.history.commits), 1, 0)

    def check(self) -> None:
        """What must hold at every moment."""
        assert self.consumer == dict(self.cursor.state)
        expected = self.history.since(self.listed_at + 1)
        assert self.taken == expected[: len(self.taken)], "a change was lost, repeated or out of order"
