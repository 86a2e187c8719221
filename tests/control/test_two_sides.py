"""Two control planes exchange law, fleet and prices; tenants and settings stay at home, and so does each gate."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from orchestrator.bundles.formats import EXPORTED, SectionKind
from orchestrator.bundles.roots import SigningKey
from orchestrator.policy.entities import Entity
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import EdgeId, EntityId, PoolId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Domestic, Effective, Grade, Personal
from orchestrator.policy.permit import permit_route
from orchestrator.wire.channels import open_channel
from protos.tidegate.v1 import control_pb2 as pb
from protos.tidegate.v1.control_pb2_grpc import ControlStub
from tests.bundles.sides import NOW_MS, File, fleet, issue, pack
from tests.control.planes import PROJECT, Plane, until
from tests.values import replace

Peers = tuple[Plane, Plane]


def _sections_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


async def test_each_side_imports_what_the_other_exports(peers: Peers) -> None:
    near, far = peers
    async with far.running(), near.running(), near.followed("sg-edge") as edge:
        await far.publish()
        await near.publish()
        await until(lambda: edge.current is not None and edge.current.fleet.pool(PoolId("cn-pool")), 5, "their pool")
        async with far.followed("cn-pool-scheduler", "scheduler", frozenset({near.side.name})) as scheduler:
            await until(lambda: scheduler.current is not None, 3, "their manifest at their scheduler")
            await until(lambda: scheduler.newest(near.side.name) is not None, 3, "ours at their scheduler")
            assert edge.current is not None
            cited = (near.side.name, edge.current.number, edge.current.digest)
            found = await scheduler.find(*cited)
            assert found is not None
            assert found.law_only
            assert found.fleet.edge(EdgeId("sg-edge")) is not None
        assert (await near.status())["exchange"] == "up"
        assert (await far.status())["exchange"] == "up"


async def test_two_sides_come_to_rest(peers: Peers) -> None:
    """A new number of the one is no reason for a new number of the other."""
    near, far = peers
    async with far.running(), near.running():
        await far.publish()
        await near.publish()

        async def exchanged() -> bool:
            ends = [await near.status(), await far.status()]
            return all(status["imported"] and len(status["pools"]) == 2 for status in ends)

        await until(exchanged, 5, "both know both pools")
        numbers = [(await plane.status())["manifest"]["number"] for plane in peers]
        await asyncio.sleep(2.5)
        assert [(await plane.status())["manifest"]["number"] for plane in peers] == numbers
        assert max(numbers) <= 3


async def test_tenants_and_settings_never_cross(peers: Peers) -> None:
    near, far = peers
    async with far.running(), near.running():
        await far.publish()
        await near.publish()

        async def exchanged() -> bool:
            return bool((await far.status())["imported"]) and len((await near.status())["pools"]) == 2

        await until(exchanged, 5, "both have exchanged")
    at_home, abroad = _sections_of(near.settings.data_dir), _sections_of(far.settings.data_dir)
    # The positive control: what is looked for is there at home, and what may cross has crossed.
    for secret in (b"acme-gmbh", b"acmekey1", b"value_of_time_per_second"):
        assert secret in at_home
    assert b"sg-pool" in abroad
    assert b"cn-pool" in at_home
    for secret in (b"acme-gmbh", b"acmekey1"):
        assert secret not in abroad
    for secret in (b"river-gmbh", b"riverkey1"):
        assert secret in abroad
        assert secret not in at_home
    # Of the other side's settings no more than the manifest's line: ours alone lie here.
    assert at_home.count(b"value_of_time_per_second") == 1


async def test_what_leaves_is_chosen_by_kind(peers: Peers) -> None:
    """Every byte that the far end gets, heard by one who only listens."""
    near, far = peers
    async with near.running():
        await near.publish()
        channel = open_channel(near.address)
        try:
            call = ControlStub(channel).Exchange(timeout=5)
            await call.write(pb.ExchangeOffer(version=1, side=far.side.name))
            heard: list[pb.ExchangeOffer] = []
            while not any(offer.manifests for offer in heard):
                heard.append(await call.read())
            call.cancel()
        finally:
            await channel.close()
    sent = b"".join(blob.body for offer in heard for blob in offer.sections)
    assert b"sg-pool" in sent
    assert b"acme" not in sent
    assert b"slo_first_ms" not in sent
    manifest = next(offer.manifests[0] for offer in heard if offer.manifests)
    assert b"acme" not in manifest.body
    assert b'"kind":"tenants"' in manifest.body
    assert {SectionKind.TENANTS, SectionKind.SETTINGS}.isdisjoint(EXPORTED)


async def test_a_hostile_grant_opens_nothing(peers: Peers) -> None:
    near, far = peers
    hostile: list[File] = [
        *far.side.files,
        (SectionKind.PACK, "de-open", pack("de-open", ["DE"], "OPEN", target=["CN", "DE", "SG"])),
        (SectionKind.PACK, "sg-open", pack("sg-open", ["SG"], "SOPEN", target=["CN", "DE", "SG"])),
    ]
    async with far.running(), near.running(), near.followed("sg-edge") as edge:
        await far.publish(hostile)
        await near.publish()
        await until(lambda: edge.current is not None and edge.current.fleet.pool(PoolId("cn-pool")), 5, "their pool")
        bundle = edge.current
    assert bundle is not None
    grants = {admitted.pack.id: admitted.grants_for for admitted in bundle.law.packs}
    assert grants["de-open"] == frozenset()
    assert grants["sg-open"] == frozenset()
    place, pool = bundle.fleet.edge(EdgeId("sg-edge")), bundle.fleet.pool(PoolId("cn-pool"))
    assert place is not None
    assert pool is not None
    germany = Jurisdiction("DE")
    label = Effective(Personal.NONE, Grade.PUBLIC, Domestic.NO, frozenset({germany}))
    facts = Facts(Entity(EntityId("acme-gmbh"), germany), label)
    verdict = permit_route(bundle.law, facts, place.place, pool.place, bundle.manifest.issued_ms)
    assert not verdict.allowed
    assert {reason.jurisdiction for reason in verdict.reasons} >= {"DE", "SG"}


async def test_what_cannot_stand_beside_ours_is_left_out(peers: Peers) -> None:
    """The other side declares our pool as its own: our operators still publish, and the alarm says why."""
    near, far = peers
    thief: list[File] = [
        (SectionKind.PACK, "cn", pack("cn-import", ["CN"], "CN", target=["CN"])),
        (SectionKind.FLEET, "fleet", fleet("cn-edge", "sg-pool", "CN", "river-cn")),
    ]
    async with far.running(), near.running(), near.followed("sg-edge") as edge:
        await near.publish()
        await far.publish(thief)

        async def alarmed() -> bool:
            return any(alarm.startswith("import_refused") for alarm in (await near.status())["alarms"])

        await until(alarmed, 5, "the alarm")
        number = (await near.publish()).number
        await until(lambda: edge.current is not None and edge.current.number == number, 2, "our manifest")
        assert edge.current is not None
        pool = edge.current.fleet.pool(PoolId("sg-pool"))
        assert pool is not None
        assert pool.side == near.side.name
        await far.publish()
        await until(lambda: edge.current is not None and edge.current.fleet.pool(PoolId("cn-pool")), 5, "their pool")
        await until(lambda: _quiet(near), 3, "the alarm is over")


async def _quiet(plane: Plane) -> bool:
    return (await plane.status())["alarms"] == []


async def test_a_forged_manifest_of_the_other_side_is_refused(peers: Peers) -> None:
    near, far = peers
    async with near.running():
        await near.publish()
        channel = open_channel(near.address)
        try:
            stranger = issue(replace(far.side, key=SigningKey.generate()), 1).signed
            blob = pb.ManifestBlob(
                side=stranger.side,
                number=1,
                digest=stranger.digest,
                body=stranger.body,
                key_id=stranger.key_id,
                signature=stranger.signature,
            )
            call = ControlStub(channel).Exchange(timeout=5)
            await call.write(pb.ExchangeOffer(version=1, side=far.side.name, manifests=[blob], now_ms=NOW_MS))

            async def alarmed() -> bool:
                return any(alarm.startswith("exchange_refused") for alarm in (await near.status())["alarms"])

            await until(alarmed, 3, "the alarm")
            assert (await near.status())["imported"] == []
            call.cancel()
        finally:
            await channel.close()


@pytest.mark.e2e
async def test_two_programs_exchange_and_end_when_told(peers: Peers) -> None:
    near, far = peers
    async with far.as_program() as far_program, near.as_program() as near_program:
        assert (await far.publish()).number == 1
        assert (await near.publish()).number == 1
        async with near.followed("sg-edge") as edge:
            await until(
                lambda: edge.current is not None and edge.current.fleet.pool(PoolId("cn-pool")), 10, "their pool"
            )
    assert (near_program.returncode, far_program.returncode) == (0, 0)
    log = (near.folder / "control.log").read_text()
    assert "side: " in log
    assert "Traceback" not in log


@pytest.mark.e2e
async def test_a_bad_configuration_ends_with_status_2(plane: Plane) -> None:
    config = plane.folder / "control.yaml"
    config.write_text("side: ours\nlistenn: 127.0.0.1:1\n")
    command = [sys.executable, "-m", "orchestrator", "--config", str(config)]
    program = await asyncio.create_subprocess_exec(
        *command, cwd=PROJECT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await asyncio.wait_for(program.communicate(), 20)
    assert program.returncode == 2
    assert b"control.yaml:2: listenn" in errors
    assert b"Traceback" not in errors
