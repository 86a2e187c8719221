"""What two sides show each other: manifests, revocation lists, and the bodies of packs, fleet and prices. Nothing else.

The overseas control dials, and both ends do the same: each says what it has of its own and hears what the other has.
Tenants and settings leave as digests in a manifest; `Outgoing` chooses what is sent by kind, and has no other source.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

import grpc

from orchestrator.bundles.blobs import WIRE_VERSION, manifest_blob, revocation_blob, signed_of
from orchestrator.bundles.formats import EXPORTED, SECTIONS_MAX, Manifest
from orchestrator.bundles.refusals import BundleRefused
from orchestrator.bundles.streams import MessageStream, StreamEnded, in_thread
from orchestrator.control.truth import Truth
from orchestrator.policy.ids import Digest, SideId
from orchestrator.telemetry.logs import logger
from orchestrator.telemetry.names import Event
from orchestrator.wire.channels import open_channel
from protos.tidegate.v1 import control_pb2 as pb
from protos.tidegate.v1.control_pb2_grpc import ControlStub

if TYPE_CHECKING:
    # Exists in the stubs alone: the generated class is the same for both kinds of channel.
    from protos.tidegate.v1.control_pb2_grpc import ControlAsyncStub

log = logger("orchestrator.control")

BEAT_S = 1.0
SILENCE_S = 3.5
WRITE_S = 5.0
EXCHANGE_S = 3600.0
OFFER_BYTES = 2 * 1024 * 1024
PENDING_BYTES_MAX = 64 * 1024 * 1024
CONVERSATIONS_MAX = 8
BACKOFF_FIRST_S = 0.1
BACKOFF_MOST_S = 2.0


class Outgoing:
    """What one end still has to say on one stream."""

    def __init__(self, truth: Truth) -> None:
        self._truth = truth
        self._sections: set[Digest] = set()
        self._said: set[Digest] = set()

    def due(self) -> bool:
        """Whether there is anything that was not said yet."""
        standing, side = self._truth.standing, self._truth.side
        signed, listed = standing.manifests.get(side), standing.lists.get(side)
        return any(one is not None and one.digest not in self._said for one in (signed, listed))

    def offers(self) -> Iterator[pb.ExchangeOffer]:
        """Return the offers that say it: sections in parts of a bounded size, then manifest and list. Blocks."""
        standing, side = self._truth.standing, self._truth.side
        signed, listed = standing.manifests.get(side), standing.lists.get(side)
        current = self._truth.current
        if signed is not None and current is not None and signed.digest not in self._said:
            if current.digest != signed.digest:
                return  # it is being replaced: the next call says it
            yield from self._section_offers(current.manifest)
        last = self._offer()
        if signed is not None and signed.digest not in self._said:
            last.manifests.append(manifest_blob(signed))
            self._said.add(signed.digest)
        if listed is not None and listed.digest not in self._said:
            last.revocations.append(revocation_blob(listed))
            self._said.add(listed.digest)
        yield last

    def beat(self) -> pb.ExchangeOffer:
        """Return an offer without content."""
        return self._offer()

    def _section_offers(self, manifest: Manifest) -> Iterator[pb.ExchangeOffer]:
        offer = self._offer()
        size_bytes = 0
        for entry in manifest.exported():
            if entry.kind not in EXPORTED or entry.digest in self._sections:
                continue
            body = self._truth.holdings.store.section(entry.digest)
            if body is None:
                continue
            if size_bytes + len(body) > OFFER_BYTES:
                yield offer
                offer, size_bytes = self._offer(), 0
            offer.sections.append(pb.SectionBlob(digest=entry.digest, body=body))
            size_bytes += len(body)
            self._sections.add(entry.digest)
        if offer.sections:
            yield offer

    def _offer(self) -> pb.ExchangeOffer:
        return pb.ExchangeOffer(version=WIRE_VERSION, side=self._truth.side, now_ms=self._truth.now_ms())


class Incoming:
    """What one end hears on one stream. Sections wait, bounded, for the manifest that names them."""

    def __init__(self, truth: Truth) -> None:
        self._truth = truth
        self._pending: dict[Digest, bytes] = {}
        self._pending_bytes = 0
        self._side: SideId | None = None

    async def hear(self, offer: pb.ExchangeOffer) -> None:
        """Take one offer. What is refused is left out and alarmed. Raises StreamEnded when it is no use to go on."""
        if offer.version != WIRE_VERSION:
            raise StreamEnded("the other side speaks another version")
        side = SideId(offer.side)
        if side == self._truth.side or side not in self._truth.holdings.roots.sides or self._side not in (None, side):
            raise StreamEnded("the other end is of no side that we exchange with")
        self._side = side
        for blob in offer.sections:
            self._wait(Digest(blob.digest), blob.body)
        for listed in offer.revocations:
            await self._take(side, "revocations", self._truth.take_list(signed_of(listed)))
        for manifest in offer.manifests:
            if await self._take(side, "manifest", self._truth.take_manifest(signed_of(manifest), dict(self._pending))):
                self._pending.clear()
                self._pending_bytes = 0

    def _wait(self, digest: Digest, body: bytes) -> None:
        self._pending_bytes += len(body)
        self._pending[digest] = body
        if self._pending_bytes > PENDING_BYTES_MAX or len(self._pending) > SECTIONS_MAX:
            raise StreamEnded("the other side sends more sections than a manifest may name")

    async def _take(self, side: SideId, what: str, taking: Coroutine[Any, Any, None]) -> bool:
        try:
            await taking
        except BundleRefused as refusal:
            self._truth.foreign_refused(side, what, refusal)
            return False
        self._truth.foreign_taken(side, what)
        return True


class Exchange:
    """Conversations with controls of other sides: those that dial us, and the one that we dial, if any."""

    def __init__(self, truth: Truth, peer: str | None = None, chance: Callable[[], float] = random.random) -> None:
        self._truth = truth
        self._peer = peer
        self._chance = chance
        self._active = 0

    def state(self) -> str:
        """Return how status calls it: up, down, or none where nobody dials and we dial nobody."""
        if self._active > 0:
            return "up"
        return "none" if self._peer is None else "down"

    def full(self) -> bool:
        """Whether one more conversation would be too many."""
        return self._active >= CONVERSATIONS_MAX

    async def converse(
        self, read: Callable[[], Awaitable[pb.ExchangeOffer]], write: Callable[[pb.ExchangeOffer], Awaitable[None]]
    ) -> None:
        """Speak and hear on one stream until it ends. Raises StreamEnded, and what `read` raises."""
        incoming = Incoming(self._truth)
        speaking = asyncio.create_task(self._speak(write), name="offer to the other side")
        heard = False
        try:
            while not speaking.done():
                offer = await read()
                await incoming.hear(offer)
                if not heard:
                    heard = True
                    self._active += 1
        finally:
            if heard:
                self._active -= 1
            speaking.cancel()
            await asyncio.gather(speaking, return_exceptions=True)
        raise StreamEnded("an offer could not be sent")

    async def dial(self) -> None:
        """Exchange with the peer until cancelled, over one stream after another."""
        if self._peer is None:
            return
        backoff_s = BACKOFF_FIRST_S
        channel = open_channel(self._peer)
        try:
            while True:
                reason = ""
                begun = asyncio.get_running_loop().time()
                try:
                    await self._dial_once(ControlStub(channel))
                except StreamEnded as end:
                    reason = str(end)
                except grpc.aio.AioRpcError as error:
                    reason = error.code().name
                except OSError as failure:
                    reason = f"the disk fails: {failure.strerror}"
                log.info(Event.EXCHANGE_ENDED, detail=reason)
                if asyncio.get_running_loop().time() - begun > SILENCE_S * 2:
                    backoff_s = BACKOFF_FIRST_S
                await asyncio.sleep(backoff_s * (0.5 + self._chance() / 2))
                backoff_s = min(BACKOFF_MOST_S, backoff_s * 2)
        finally:
            await channel.close()

    async def _dial_once(self, stub: ControlAsyncStub) -> None:
        stream: MessageStream[pb.ExchangeOffer, pb.ExchangeOffer] = MessageStream(stub.Exchange(timeout=EXCHANGE_S))
        try:
            await self.converse(lambda: stream.read(SILENCE_S), lambda offer: stream.write(offer, WRITE_S))
        finally:
            await stream.close()

    async def _speak(self, write: Callable[[pb.ExchangeOffer], Awaitable[None]]) -> None:
        outgoing = Outgoing(self._truth)
        while True:
            if outgoing.due():
                for offer in await in_thread(lambda: list(outgoing.offers())):
                    await write(offer)
            else:
                await write(outgoing.beat())
            if outgoing.due():
                continue
            try:
                async with asyncio.timeout(BEAT_S):
                    await self._truth.news()
            except TimeoutError:
                continue
