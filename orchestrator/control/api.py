"""The Control service: what members, operators and the other side's control ask of this one."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from orchestrator.bundles.blobs import WIRE_VERSION, held_manifest, manifest_blob, revocation_blob
from orchestrator.bundles.formats import SECTIONS_MAX
from orchestrator.bundles.refusals import BundleRefused
from orchestrator.bundles.store import Held
from orchestrator.bundles.streams import StreamEnded, in_thread
from orchestrator.config.secret import Secret
from orchestrator.control.attendance import Attendance, elsewhere
from orchestrator.control.entries import RegistryError, RegistryUnavailable
from orchestrator.control.exchange import Exchange
from orchestrator.control.publish import Submitted, read_submission
from orchestrator.control.truth import StaleExpectation, Standing, Truth
from orchestrator.control.watch import Watch
from orchestrator.policy.ids import Digest, SideId, is_digest, is_name
from orchestrator.telemetry.logs import logger
from orchestrator.telemetry.names import Event
from protos.tidegate.v1 import control_pb2 as pb
from protos.tidegate.v1.control_pb2_grpc import ControlServicer

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

log = logger("orchestrator.control")

BEAT_S = 1.0
REPORT_SILENCE_S = 10.0
EXCHANGE_SILENCE_S = 3.5
WRITE_S = 5.0
MANIFEST_WAIT_S = 0.45
"""How long a manifest that is not known yet is waited for: it may be on its way from the other side."""
PUBLISH_READ_S = 30.0
PUBLISH_FILES_MAX = SECTIONS_MAX + 1
PUBLISH_BYTES_MAX = 256 * 1024 * 1024
ROLES = frozenset({"edge", "scheduler"})


class ControlService(ControlServicer):
    """One control's answers. Every stream beats, and ends when the other end is silent."""

    def __init__(
        self, truth: Truth, exchange: Exchange, attendance: Attendance, token: Secret, heads: Watch, members: Watch
    ) -> None:
        self._truth = truth
        self._exchange = exchange
        self._attendance = attendance
        self._token = token
        self._heads = heads
        self._members = members
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """Let every stream end, so that members and the other side dial again."""
        self._draining.set()

    async def Attend(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.MemberReport], context: Context
    ) -> None:
        """Hear a member's reports and tell it what counts; a beat every second."""
        first = await self._report(context)
        if first is None:
            return
        if first.version != WIRE_VERSION or not is_name(first.member) or first.role not in ROLES:
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, "a report has version, member and role")
        if not self._attendance.arrive(first):
            await _abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "too many members")
        hearing = asyncio.create_task(self._hear(first.member, context), name="hear a member")
        draining = asyncio.create_task(self._draining.wait(), name="wait for a drain")
        try:
            await self._tell(first.role, context, hearing, draining)
        finally:
            for task in (hearing, draining):
                task.cancel()
            await asyncio.gather(hearing, draining, return_exceptions=True)
            self._attendance.leave(first.member)

    async def FetchSections(self, request: pb.FetchRequest, context: Context) -> AsyncIterator[pb.SectionBlob]:
        """Give the bodies that are here; what is not here is left out."""
        if request.version != WIRE_VERSION or len(request.digests) > SECTIONS_MAX:
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, f"a request names at most {SECTIONS_MAX} digests")
        store = self._truth.holdings.store
        for text in request.digests:
            if not is_digest(text):
                await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, "a request names digests")
            digest = Digest(text)
            body = await in_thread(partial(store.section, digest))
            if body is not None:
                yield pb.SectionBlob(digest=digest, body=body)

    async def FetchManifest(self, request: pb.ManifestRequest, context: Context) -> pb.ManifestBlob:
        """Give a manifest of the recent past of any side; wait shortly for one that is on its way."""
        remaining_s = context.time_remaining()
        wait_s = MANIFEST_WAIT_S if remaining_s is None else min(MANIFEST_WAIT_S, remaining_s - 0.05)
        held = self._find(request)
        try:
            async with asyncio.timeout(max(0.0, wait_s)):
                while held is None:
                    await self._truth.news()
                    held = self._find(request)
        except TimeoutError:
            held = None
        if held is None:
            await _abort(context, grpc.StatusCode.NOT_FOUND, "this manifest is not kept here")
        return manifest_blob(held.signed)

    async def Exchange(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.ExchangeOffer], context: Context
    ) -> None:
        """Exchange manifests and law with the control of another side, which dialled us."""
        if self._exchange.full():
            await _abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "too many exchanges")

        async def read() -> pb.ExchangeOffer:
            offer = await _read(context, EXCHANGE_SILENCE_S)
            if not isinstance(offer, pb.ExchangeOffer) or self._draining.is_set():
                raise StreamEnded("the exchange is over")
            return offer

        async def write(offer: pb.ExchangeOffer) -> None:
            # Not `wait_for`, here and below: in Python 3.11 it may drop a cancellation (see bundles.streams).
            async with asyncio.timeout(WRITE_S):
                await context.write(offer)

        try:
            await self._exchange.converse(read, write)
        except StreamEnded as end:
            log.info(Event.EXCHANGE_ENDED, detail=str(end))
            await _abort(context, grpc.StatusCode.UNAVAILABLE, str(end))
        except OSError:
            await _abort(context, grpc.StatusCode.UNAVAILABLE, "the disk of this control fails")

    async def Publish(self, request_iterator: AsyncIterator[pb.PublishRequest], context: Context) -> pb.PublishReply:
        """Replace this side's sections by the set that an operator sends."""
        expected, files = await self._read_set(context)
        truth = self._truth
        try:
            submission = await in_thread(lambda: read_submission(truth.side, files))
            number, digest = await truth.publish(submission, expected)
        except BundleRefused as refusal:
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, refusal.sentence)
        except StaleExpectation:
            sentence = f"another manifest than {expected} counts now: look at it, then publish again"
            await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, sentence)
        except RegistryError as failure:
            unknown = isinstance(failure, RegistryUnavailable) and failure.may_have_applied
            outcome = "it is not known whether it was published" if unknown else "nothing was published"
            await _abort(context, grpc.StatusCode.UNAVAILABLE, f"etcd does not take it ({failure}): {outcome}")
        except OSError as failure:
            await _abort(context, grpc.StatusCode.UNAVAILABLE, f"the disk of this control fails: {failure.strerror}")
        return pb.PublishReply(number=number, digest=digest)

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusReply:
        """Tell an operator how this side stands."""
        await self._check_token(request.token, context)
        truth, now_ms = self._truth, self._truth.now_ms()
        sides = truth.holdings.roots.sides
        bundles = {side: bundle for side in sides if (bundle := truth.holdings.bundle(side)) is not None}
        own = bundles.get(truth.side)
        age_s = self._heads.age_s(time.monotonic())
        here = self._attendance.status()
        reply = pb.StatusReply(
            version=WIRE_VERSION,
            side=truth.side,
            registry="up" if self._heads.connected else "down",
            registry_age_ms=-1 if age_s == float("inf") else int(age_s * 1000),
            imported=[held_manifest(bundle, now_ms) for side, bundle in sorted(bundles.items()) if side != truth.side],
            members=[*here, *elsewhere(self._members, {status.report.member for status in here})],
            now_ms=now_ms,
            alarms=truth.alarms(),
            exchange=self._exchange.state(),
        )
        if own is not None:
            reply.own.CopyFrom(held_manifest(own, now_ms))
            reply.fresh_until_ms = own.law.horizons.fresh_until_ms
            reply.revocations = own.revocations.number
            drains = own.settings.drains if own.settings is not None else frozenset()
            for edge in own.fleet.edges:
                reply.edges.add(edge=edge.id, side=edge.side, region=edge.region)
            for pool in own.fleet.pools:
                reply.pools.add(
                    pool=pool.id,
                    side=pool.side,
                    region=pool.region,
                    assurance=pool.assurance.value,
                    drained=pool.id in drains,
                )
        return reply

    async def _report(self, context: Context) -> pb.MemberReport | None:
        report = await _read(context, REPORT_SILENCE_S)
        return report if isinstance(report, pb.MemberReport) else None

    async def _hear(self, member: str, context: Context) -> None:
        while True:
            report = await self._report(context)
            if report is None or report.member != member:
                return
            self._attendance.hear(report)

    async def _tell(
        self, role: str, context: Context, hearing: asyncio.Task[None], draining: asyncio.Task[bool]
    ) -> None:
        said: set[Digest] = set()
        while not hearing.done() and not draining.done():
            notice = self._notice(role, said)
            try:
                async with asyncio.timeout(WRITE_S):
                    await context.write(notice)
            except TimeoutError:
                await _abort(context, grpc.StatusCode.DEADLINE_EXCEEDED, "the member does not read")
            if self._fresh(role, said, self._truth.standing):
                continue
            news = asyncio.create_task(self._truth.news(), name="wait for news")
            try:
                await asyncio.wait((news, hearing, draining), timeout=BEAT_S, return_when=asyncio.FIRST_COMPLETED)
            finally:
                news.cancel()
                await asyncio.gather(news, return_exceptions=True)

    def _notice(self, role: str, said: set[Digest]) -> pb.BundleNotice:
        """Return what was not said yet on this stream; a beat when that is nothing."""
        standing = self._truth.standing
        notice = pb.BundleNotice(version=WIRE_VERSION, now_ms=self._truth.now_ms())
        for signed in standing.lists.values():
            if signed.digest not in said:
                notice.revocations.append(revocation_blob(signed))
                said.add(signed.digest)
        for side, signed in standing.manifests.items():
            if signed.digest not in said and self._concerns(role, side):
                notice.manifests.append(manifest_blob(signed))
                said.add(signed.digest)
        return notice

    def _fresh(self, role: str, said: set[Digest], standing: Standing) -> bool:
        lists = any(signed.digest not in said for signed in standing.lists.values())
        return lists or any(
            signed.digest not in said and self._concerns(role, side) for side, signed in standing.manifests.items()
        )

    def _concerns(self, role: str, side: SideId) -> bool:
        """An edge decides by its own side's manifest; a scheduler also by what the other side's edges cite."""
        return role == "scheduler" or side == self._truth.side

    def _find(self, request: pb.ManifestRequest) -> Held | None:
        return self._truth.holdings.store.find(SideId(request.side), request.number, Digest(request.digest))

    async def _read_set(self, context: Context) -> tuple[int, list[Submitted]]:
        expected = 0
        files: list[Submitted] = []
        size_bytes = 0
        first = True
        while True:
            request = await _read(context, PUBLISH_READ_S)
            if request is None and not first:
                return expected, files
            if not isinstance(request, pb.PublishRequest) or request.version != WIRE_VERSION:
                await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, "a set is sent in requests of version 1")
            if first:
                await self._check_token(request.token, context)
                expected, first = request.expected, False
            for file in request.sections:
                files.append(Submitted(file.kind, file.name, file.document))
                size_bytes += len(file.document)
            if len(files) > PUBLISH_FILES_MAX or size_bytes > PUBLISH_BYTES_MAX:
                sentence = f"a set has at most {PUBLISH_FILES_MAX} documents and {PUBLISH_BYTES_MAX} bytes"
                await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, sentence)

    async def _check_token(self, token: str, context: Context) -> None:
        if not hmac.compare_digest(token.encode(), self._token.reveal().encode()):
            await _abort(context, grpc.StatusCode.UNAUTHENTICATED, "the operator token is missing or wrong")


async def _read(context: Context, timeout_s: float) -> object | None:
    """Return the next message, or None when the stream has ended. Aborts when none came in time."""
    try:
        message = await asyncio.wait_for(context.read(), timeout_s)
    except TimeoutError:
        await _abort(context, grpc.StatusCode.DEADLINE_EXCEEDED, "the other end is silent")
    return None if message is grpc.aio.EOF else message


async def _abort(context: Context, code: grpc.StatusCode, sentence: str) -> NoReturn:
    await context.abort(code, sentence)
    raise AssertionError("abort raises")
