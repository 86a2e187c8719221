"""What stops does not take the others with it: etcd, control, and a control that says what it should not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from orchestrator.bundles.blobs import manifest_blob
from orchestrator.bundles.formats import SectionKind, Signed
from orchestrator.bundles.roots import SigningKey
from orchestrator.cli.publish import PublishFailed
from orchestrator.policy.ids import Digest
from orchestrator.wire.channels import bind, make_server
from protos.tidegate.v1 import control_pb2 as pb
from protos.tidegate.v1.control_pb2_grpc import ControlServicer, add_ControlServicer_to_server
from tests.bundles.sides import File, Issue, Side, fleet, issue
from tests.control.planes import Plane, until
from tests.etcd_process import EtcdProcess
from tests.values import replace


async def test_a_hung_etcd_stops_publishing_alone(plane: Plane, etcd: EtcdProcess) -> None:
    async with plane.running(), plane.followed("sg-edge") as edge:
        await plane.publish()
        await until(lambda: edge.current is not None, 2, "a manifest")
        etcd.pause()
        with pytest.raises(PublishFailed, match="etcd does not take it") as refused:
            await plane.publish()
        assert refused.value.retry
        await until(lambda: _age_above(plane, 2_000), 6, "the age of what etcd said grows")
        status = await plane.status()
        assert status["manifest"]["number"] == 1
        assert status["registry"] == "down"
        assert edge.attached
        assert edge.current is not None
        assert edge.current.number == 1
        async with plane.followed("sg-edge-2") as late:
            await until(lambda: late.current is not None, 2, "a member that comes now is served")
        etcd.resume()

        async def published() -> bool:
            try:
                return (await plane.publish()).number >= 2
            except PublishFailed:
                return False

        await until(published, 10, "publishing works again")
        await until(lambda: edge.current is not None and edge.current.number >= 2, 2, "members hear")


async def _age_above(plane: Plane, age_ms: int) -> bool:
    return int((await plane.status())["registry_age_ms"]) > age_ms


async def test_a_control_without_etcd_serves_what_is_on_its_disk(plane: Plane, etcd: EtcdProcess) -> None:
    async with plane.running():
        await plane.publish()
    etcd.kill()
    async with plane.running(), plane.followed("sg-edge") as edge:
        await until(lambda: edge.current is not None, 3, "the manifest of the disk")
        with pytest.raises(PublishFailed):
            await plane.publish()
        status = await plane.status()
        assert status["registry_age_ms"] == -1
        assert any(alarm.startswith("registry") for alarm in status["alarms"])
        etcd.start()

        async def published() -> bool:
            try:
                return (await plane.publish()).number == 2
            except PublishFailed:
                return False

        await until(published, 10, "publishing works")


async def test_a_member_starts_from_its_disk_while_control_is_gone(plane: Plane) -> None:
    async with plane.running(), plane.followed("sg-edge") as edge:
        await plane.publish()
        await until(lambda: edge.current is not None, 2, "a manifest")
    async with plane.followed("sg-edge") as edge:
        assert edge.current is not None
        assert edge.current.number == 1
        assert {tenant.id for tenant in edge.current.tenants} == {"acme"}
        await until(lambda: any(alarm.startswith("control_silent") for alarm in edge.alarms()), 2, "the alarm")
        async with plane.running():
            await until(lambda: edge.attached, 5, "it finds control again")
            await plane.publish()
            await until(lambda: edge.current is not None and edge.current.number == 2, 2, "the next manifest")
            assert edge.alarms() == ()


async def test_status_names_members_that_are_gone_as_silent(plane: Plane) -> None:
    async with plane.running():
        await plane.publish()
        async with plane.followed("sg-edge") as edge:
            await until(lambda: edge.attached, 2, "attached")
        status = await plane.status()
        assert [member["member"] for member in status["members"]] == ["sg-edge"]


class Liar(ControlServicer):
    """A control that says what the test tells it to, and nothing when there is nothing."""

    def __init__(self) -> None:
        self.says: Signed | None = None
        self.bodies: dict[Digest, bytes] = {}
        self.beats = True

    def tell(self, issued: Issue, signed: Signed | None = None) -> None:
        self.bodies.update(issued.bodies)
        self.says = signed if signed is not None else issued.signed

    async def Attend(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.MemberReport], context: grpc.aio.ServicerContext
    ) -> None:
        said: Signed | None = None
        while True:
            notice = pb.BundleNotice(version=1, now_ms=0)
            if self.says is not None and self.says is not said:
                said = self.says
                notice.manifests.append(manifest_blob(said))
            if self.beats:
                await context.write(notice)
            await asyncio.sleep(0.05)

    async def FetchSections(  # type: ignore[override]
        self, request: pb.FetchRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.SectionBlob]:
        for digest in request.digests:
            if Digest(digest) in self.bodies:
                yield pb.SectionBlob(digest=digest, body=self.bodies[Digest(digest)])

    async def FetchManifest(  # type: ignore[override]
        self, request: pb.ManifestRequest, context: grpc.aio.ServicerContext
    ) -> pb.ManifestBlob:
        await asyncio.sleep(30)
        return pb.ManifestBlob()


@asynccontextmanager
async def lying(plane: Plane) -> AsyncIterator[Liar]:
    server, liar = make_server(), Liar()
    add_ControlServicer_to_server(liar, server)
    bind(server, plane.address)
    await server.start()
    try:
        yield liar
    finally:
        await server.stop(None)


async def test_a_member_keeps_the_last_good_bundle(plane: Plane, ours: Side) -> None:
    good = issue(ours, 5, issued_ms=_now_ms())
    wrong = [
        issue(replace(ours, key=SigningKey.generate()), 6, issued_ms=_now_ms()),
        issue(ours, 4, issued_ms=_now_ms()),
        issue(ours, 6, issued_ms=_now_ms() - 30 * 86_400_000),
        issue(ours, 6, permit_version=99, issued_ms=_now_ms()),
    ]
    async with lying(plane) as liar, plane.followed("sg-edge") as edge:
        liar.tell(good)
        await until(lambda: edge.current is not None, 3, "the good one")
        for one in wrong:
            liar.tell(one)
            await until(lambda: any(a.startswith("bundle_refused") for a in edge.alarms()), 3, "the refusal")
            assert edge.current is not None
            assert edge.current.digest == good.signed.digest
            liar.tell(good, replace(good.signed))
            await until(lambda: not any(a.startswith("bundle_refused") for a in edge.alarms()), 3, "the end of it")
        # A manifest whose sections are not to be had leaves the last good one, and is tried again.
        late = issue(ours, 7, files=ours.files[:1], issued_ms=_now_ms())
        changed = issue(ours, 8, files=[_renamed()], issued_ms=_now_ms())
        liar.says = changed.signed
        await until(lambda: any("does not have section" in a for a in edge.alarms()), 3, "the missing section")
        assert edge.current is not None
        assert edge.current.number == 5
        liar.tell(late, changed.signed)
        liar.bodies.update(changed.bodies)
        await until(lambda: edge.current is not None and edge.current.number == 8, 5, "the section came")


async def test_a_silent_control_is_noticed(plane: Plane, ours: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.bundles.follow.SILENCE_S", 0.4)
    async with lying(plane) as liar, plane.followed("sg-edge") as edge:
        liar.tell(issue(ours, 1, issued_ms=_now_ms()))
        await until(lambda: edge.attached and edge.current is not None, 3, "attached")
        assert any(alarm.startswith("clock_skew") for alarm in edge.alarms())
        liar.beats = False
        await until(lambda: not edge.attached, 3, "the silence is noticed")
        assert edge.current is not None
        liar.beats = True
        await until(lambda: edge.attached, 5, "it is heard again")


async def test_a_manifest_that_nobody_has_is_not_waited_for_long(plane: Plane, ours: Side) -> None:
    async with lying(plane) as liar, plane.followed("sg-edge") as edge:
        liar.tell(issue(ours, 1, issued_ms=_now_ms()))
        await until(lambda: edge.current is not None, 3, "attached")
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        nobody = Digest("sha256:" + "0" * 64)
        found = await asyncio.gather(*(edge.find(ours.name, 9, nobody, 300) for _ in range(20)))
        assert found == [None] * 20
        assert loop.time() - began_at < 1


async def test_a_cited_manifest_is_fetched(plane: Plane, tmp_path: Path) -> None:
    async with plane.running():
        first = await plane.publish()
        await plane.publish()
        async with plane.followed("sg-edge", folder=tmp_path / "new") as edge:
            await until(lambda: edge.current is not None, 3, "a manifest")
            found = await edge.find(plane.side.name, 1, Digest(first.digest))
            assert found is not None
            assert (found.number, found.law_only) == (1, True)
            assert edge.current is not None
            assert edge.current.number == 2
            assert await edge.find(plane.side.name, 1, edge.current.digest, 300) is None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _renamed() -> File:
    return (SectionKind.FLEET, "fleet", fleet("sg-edge", "sg-pool-9", "SG", "harbour-sg"))
