"""Follows the control plane: a task that keeps the newest good bundle, and the last good one while control is gone."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import grpc

from orchestrator.bundles.assemble import Bundle
from orchestrator.bundles.blobs import WIRE_VERSION, Report, held_manifest, member_report, signed_of
from orchestrator.bundles.clock import HighestTime
from orchestrator.bundles.formats import SectionEntry, Signed, open_manifest
from orchestrator.bundles.holdings import Holdings
from orchestrator.bundles.refusals import BundleRefused, RefusalCode
from orchestrator.bundles.revocations import RevocationList
from orchestrator.bundles.streams import MessageStream, StreamEnded, in_thread
from orchestrator.policy.ids import Digest, SideId
from orchestrator.telemetry.logs import logger
from orchestrator.telemetry.names import Event
from orchestrator.wire.channels import open_channel
from protos.tidegate.v1 import control_pb2 as pb
from protos.tidegate.v1.control_pb2_grpc import ControlStub

if TYPE_CHECKING:
    # Exists in the stubs alone: the generated class is the same for both kinds of channel.
    from protos.tidegate.v1.control_pb2_grpc import ControlAsyncStub

log = logger("orchestrator.bundles")
Answer = TypeVar("Answer")

REPORT_S = 1.0
SILENCE_S = 3.5
"""Control sends a beat every second."""
ATTEND_S = 3600.0
"""A stream is renewed after this long, however well it works."""
WRITE_S = 2.0
FETCH_S = 30.0
BACKOFF_FIRST_S = 0.1
BACKOFF_MOST_S = 2.0
SKEW_ALARM_MS = 2_000
FINDING_MAX = 8
"""Searches for cited manifests that wait at once; one more is answered with None."""


@dataclass(frozen=True, slots=True)
class Following:
    """Whom to follow, and as whom."""

    control: str
    """``host:port`` of the side's own control."""
    side: SideId
    member: str
    """The id of this edge or scheduler."""
    law_sides: frozenset[SideId] = frozenset()
    """Other sides whose manifests are held as law alone: for a scheduler, those whose edges send to it."""


@dataclass(slots=True)
class _Alarms:
    """What is wrong now, by kind and, where it matters, side. One sentence each."""

    sentences: dict[tuple[str, str], str] = field(default_factory=dict)

    def set(self, kind: str, sentence: str, side: str = "") -> None:
        if self.sentences.get((kind, side)) != sentence:
            log.warning(Event.ALARM_RAISED, kind=kind, detail=sentence)
        self.sentences[kind, side] = sentence

    def clear(self, kind: str, side: str = "") -> None:
        if self.sentences.pop((kind, side), None) is not None:
            log.info(Event.ALARM_CLEARED, kind=kind)


class BundleFollower:
    """Holds the bundle that counts, and keeps it fresh in a task of its own between `start` and `stop`."""

    def __init__(
        self,
        following: Following,
        holdings: Holdings,
        clock: HighestTime,
        report: Callable[[], Report],
        on_change: Callable[[Bundle], None] | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`report` is asked every second, `on_change` is told each new bundle of a side. Neither may block."""
        self._following = following
        self._holdings = holdings
        self._clock = clock
        self._report = report
        self._on_change = on_change
        self._chance = chance
        self.remembered: Callable[[SideId, int, Digest], Bundle | None] = holdings.remembered
        """Returns the manifest that another program cites where it is at hand, or None: then `find` it."""
        self._alarms = _Alarms()
        self._changing = asyncio.Lock()
        self._report_due = asyncio.Event()
        self._changed = asyncio.Event()
        self._finding: dict[tuple[SideId, int, Digest], asyncio.Task[Bundle | None]] = {}
        self._channel: grpc.aio.Channel | None = None
        self._task: asyncio.Task[None] | None = None
        self.skew_ms = 0
        """Control's clock minus ours, when it was last heard."""
        self.attached = False
        """Whether control was heard on the present stream."""

    @property
    def current(self) -> Bundle | None:
        """The bundle of this side that counts now; None until there is one. Take it once per decision."""
        return self._holdings.bundle(self._following.side)

    def newest(self, side: SideId) -> Bundle | None:
        """Return the newest bundle of another side, as law alone."""
        return self._holdings.bundle(side)

    def revocation_list(self, side: SideId, number: int) -> RevocationList | None:
        """Return a revocation list of the recent past by its number, or None."""
        return self._holdings.list_of(side, number)

    def alarms(self) -> tuple[str, ...]:
        """Return what is wrong now, one sentence each, sorted."""
        found = dict(self._alarms.sentences)
        current = self.current
        now_ms = self._clock.now_ms()
        if current is None:
            found["no_bundle", ""] = "No bundle is held: everything is denied."
        elif now_ms >= current.law.horizons.fresh_until_ms:
            found["not_fresh", ""] = f"Manifest {current.number} of {current.side} is past its first horizon."
        if self._clock.behind_ms() > SKEW_ALARM_MS:
            found["clock_behind", ""] = "The machine's clock is behind the highest time seen."
        return tuple(f"{kind}: {sentence}" for (kind, _), sentence in sorted(found.items()))

    async def start(self) -> None:
        """Take up what is on the disk and begin to follow. Raises OSError when the disk fails."""
        for refusal in await self._work(self._holdings.load):
            self._alarms.set("bundle_unreadable", refusal.sentence)
        self._tell(self._holdings.bundle(side) for side in self._sides())
        self._channel = open_channel(self._following.control)
        self._task = asyncio.create_task(self._run(), name="follow control")

    async def stop(self) -> None:
        """End the task, save the highest time seen. Raises nothing; may be called again."""
        tasks = [task for task in (self._task, *self._finding.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._task = None
        if self._channel is not None:
            await self._channel.close()
            self._channel = None
        await self._save_time()

    async def ready(self, timeout_s: float) -> bool:
        """Wait until there is a bundle of this side; return whether there is."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.current is None:
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def report_now(self) -> None:
        """Send a report at once, not only when the second is over."""
        self._report_due.set()

    async def find(self, side: SideId, number: int, digest: Digest, timeout_ms: int = 500) -> Bundle | None:
        """Return the law of a manifest that another program cites; None when it cannot be had in time.

        One that is not here is fetched from control, checked like every other, and never becomes the one that counts.
        """
        known = self._holdings.remembered(side, number, digest)
        if known is not None:
            return known
        cited = (side, number, digest)
        task = self._finding.get(cited)
        if task is None:
            if len(self._finding) >= FINDING_MAX:
                return None
            task = asyncio.create_task(self._find(side, number, digest, timeout_ms / 1000), name="find a manifest")
            self._finding[cited] = task
            task.add_done_callback(lambda _: self._finding.pop(cited, None))
        await asyncio.wait((task,), timeout=timeout_ms / 1000)
        return task.result() if task.done() and not task.cancelled() else None

    async def _find(self, side: SideId, number: int, digest: Digest, timeout_s: float) -> Bundle | None:
        if side not in (self._following.side, *self._following.law_sides) or self._channel is None:
            return None
        try:
            async with asyncio.timeout(timeout_s):
                kept = await self._work(lambda: self._holdings.past(side, number, digest))
                return kept if kept is not None else await self._fetch_cited(side, number, digest, timeout_s)
        except (TimeoutError, grpc.aio.AioRpcError, StreamEnded, BundleRefused, OSError):
            return None

    async def _fetch_cited(self, side: SideId, number: int, digest: Digest, timeout_s: float) -> Bundle | None:
        request = pb.ManifestRequest(version=WIRE_VERSION, side=side, number=number, digest=digest)
        blob = await self._stub().FetchManifest(request, timeout=timeout_s)
        signed = signed_of(blob)
        if (signed.side, signed.number, signed.digest) != (side, number, digest):
            return None
        manifest = open_manifest(signed, self._holdings.roots, side)
        if self._clock.now_ms() >= manifest.effective_horizons().not_after_ms:
            return None
        bodies: dict[Digest, bytes] = {}

        async def take(entry: SectionEntry, body: bytes) -> None:
            bodies[entry.digest] = body

        await self._fetch(await self._work(lambda: self._holdings.missing_law(manifest)), take, timeout_s)
        return await self._work(lambda: self._holdings.learn(manifest, digest, bodies))

    async def _work(self, work: Callable[[], Answer]) -> Answer:
        """Do something with the holdings, which one thread at a time may touch."""
        async with self._changing:
            return await in_thread(work)

    async def _fetch(
        self, entries: Sequence[SectionEntry], take: Callable[[SectionEntry, bytes], Awaitable[None]], timeout_s: float
    ) -> None:
        """Fetch sections from control, each handed on when it comes. Raises BundleRefused when one is not there."""
        if not entries:
            return
        wanted = {entry.digest: entry for entry in entries}
        request = pb.FetchRequest(version=WIRE_VERSION, digests=list(wanted))
        call = self._stub().FetchSections(request, timeout=timeout_s)
        try:
            async for blob in call:
                entry = wanted.pop(Digest(blob.digest), None)
                if entry is not None:
                    await take(entry, blob.body)
        finally:
            call.cancel()
        for entry in wanted.values():
            raise BundleRefused(RefusalCode.MISSING_SECTION, f"Control does not have section {entry.title}.")

    def _sides(self) -> tuple[SideId, ...]:
        return (self._following.side, *sorted(self._following.law_sides))

    def _stub(self) -> ControlAsyncStub:
        if self._channel is None:
            raise StreamEnded("the follower is stopped")
        return ControlStub(self._channel)

    def _tell(self, bundles: Iterable[Bundle | None]) -> None:
        found = [bundle for bundle in bundles if bundle is not None]
        if not found:
            return
        self._changed.set()
        self._changed = asyncio.Event()
        self._report_due.set()
        for bundle in found:
            if self._on_change is not None:
                self._on_change(bundle)

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(), name="attend control")
            group.create_task(self._keep_time(), name="keep the highest time")

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            self._clock.now_ms()
            if self._clock.due():
                await self._save_time()

    async def _save_time(self) -> None:
        try:
            await in_thread(self._clock.save)
            self._alarms.clear("clock_unsaved")
        except OSError as failure:
            self._alarms.set("clock_unsaved", f"The highest time seen cannot be saved: {failure.strerror}.")

    async def _follow(self) -> None:
        backoff_s = BACKOFF_FIRST_S
        while True:
            reason = ""
            try:
                await self._attend()
            except StreamEnded as end:
                reason = str(end)
            except grpc.aio.AioRpcError as error:
                reason = error.code().name
            except OSError as failure:
                reason = f"the disk fails: {failure.strerror}"
            if self.attached:
                backoff_s = BACKOFF_FIRST_S
            self.attached = False
            self._alarms.set("control_silent", f"Control is not heard: {reason}.")
            await asyncio.sleep(backoff_s * (0.5 + self._chance() / 2))
            backoff_s = min(BACKOFF_MOST_S, backoff_s * 2)

    async def _attend(self) -> None:
        """Follow over one stream until it ends, which it tells with an error."""
        stream: MessageStream[pb.MemberReport, pb.BundleNotice] = MessageStream(self._stub().Attend(timeout=ATTEND_S))
        writer = asyncio.create_task(self._send_reports(stream), name="report to control")
        try:
            while True:
                notice = await stream.read(SILENCE_S)
                if notice.version != WIRE_VERSION:
                    raise StreamEnded("control speaks another version")
                self._heard(notice.now_ms)
                await self._take(notice)
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            await stream.close()

    async def _send_reports(self, stream: MessageStream[pb.MemberReport, pb.BundleNotice]) -> None:
        while True:
            self._report_due.clear()
            now_ms = self._clock.now_ms()
            bundles = [self._holdings.bundle(side) for side in self._sides()]
            held = [held_manifest(bundle, now_ms) for bundle in bundles if bundle is not None]
            report = member_report(self._following.member, self._report(), held, self.alarms())
            await stream.write(report, WRITE_S)
            try:
                async with asyncio.timeout(REPORT_S):
                    await self._report_due.wait()
            except TimeoutError:
                continue

    def _heard(self, now_ms: int) -> None:
        if not self.attached:
            self.attached = True
            self._alarms.clear("control_silent")
            self._report_due.set()
        self.skew_ms = now_ms - self._clock.now_ms()
        if abs(self.skew_ms) > SKEW_ALARM_MS:
            self._alarms.set("clock_skew", "Control's clock and ours differ by more than 2 s.")
        else:
            self._alarms.clear("clock_skew")

    async def _take(self, notice: pb.BundleNotice) -> None:
        news: list[SideId] = []
        for listed in (signed_of(blob) for blob in notice.revocations):
            if listed.side in self._holdings.roots.sides:
                await self._take_list(listed, news)
        for signed in (signed_of(blob) for blob in notice.manifests):
            if signed.side in self._sides():
                await self._take_manifest(signed, news)
        self._tell(self._holdings.bundle(side) for side in dict.fromkeys(news))

    async def _take_list(self, signed: Signed, news: list[SideId]) -> None:
        try:
            if await self._work(lambda: self._holdings.take_list(signed)):
                news += self._sides()
        except BundleRefused as refusal:
            self._alarms.set("revocations_refused", refusal.sentence, signed.side)
        else:
            self._alarms.clear("revocations_refused", signed.side)

    async def _take_manifest(self, signed: Signed, news: list[SideId]) -> None:
        try:
            manifest = await self._work(lambda: self._holdings.check(signed, self._clock.now_ms()))
            if manifest is not None:
                await self._fetch(await self._work(lambda: self._holdings.missing(manifest)), self._keep, FETCH_S)
                await self._work(lambda: self._holdings.accept(manifest, signed, self._clock.now_ms()))
                news.append(signed.side)
        except BundleRefused as refusal:
            self._alarms.set("bundle_refused", f"{refusal.sentence} The last good one counts.", signed.side)
            if refusal.code is RefusalCode.MISSING_SECTION:
                raise StreamEnded("a section was not to be had") from None
        else:
            self._alarms.clear("bundle_refused", signed.side)
            if signed.side == self._following.side:
                self._alarms.clear("bundle_unreadable")

    async def _keep(self, entry: SectionEntry, body: bytes) -> None:
        await self._work(lambda: self._holdings.keep_section(entry, body))
