"""Publishing: numbers rise, members hear at once, and what is wrong is refused with a sentence."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import grpc
import msgspec
import pytest

from orchestrator.bundles.blobs import WIRE_VERSION
from orchestrator.bundles.formats import SectionKind
from orchestrator.cli.publish import PublishFailed, load_directory, publish
from orchestrator.cli.status import fetch_status
from orchestrator.config.secret import Secret
from orchestrator.control.settings import ControlSettings
from orchestrator.files.document import FileError
from orchestrator.wire.channels import open_channel
from protos.tidegate.v1 import control_pb2 as pb
from protos.tidegate.v1.control_pb2_grpc import ControlStub
from tests.bundles.sides import Side, fleet, pack, tenants
from tests.control.planes import TOKEN, Plane, make_plane, until
from tests.etcd_process import EtcdProcess
from tests.values import replace


async def test_numbers_rise_and_members_hear_within_a_second(plane: Plane) -> None:
    async with plane.running(), plane.followed("sg-edge") as edge:
        assert edge.current is None
        first = await plane.publish()
        assert first.number == 1
        await until(lambda: edge.current is not None, 1, "the first manifest is heard")
        loop = asyncio.get_running_loop()
        second = await plane.publish()
        assert second.number == 2
        told_at = loop.time()
        await until(lambda: edge.current is not None and edge.current.number == 2, 1, "the second is heard")
        assert loop.time() - told_at < 1
        assert edge.current is not None
        assert edge.current.digest == second.digest
        assert {tenant.id for tenant in edge.current.tenants} == {"acme"}
        assert edge.current.settings is not None
        assert edge.alarms() == ()


async def test_status_names_members_manifests_and_what_is_declared(plane: Plane) -> None:
    async with plane.running(), plane.followed("sg-edge") as edge:
        await plane.publish()
        await until(lambda: edge.current is not None, 2, "a manifest")

        async def reported() -> bool:
            members = (await plane.status())["members"]
            return bool(members) and bool(members[0]["held"])

        await until(reported, 3, "the report names the manifest")
        status = await plane.status()
        assert status["side"] == plane.side.name
        assert status["manifest"]["number"] == 1
        assert status["registry"] == "up"
        assert status["registry_age_ms"] < 2_000
        assert [(edge["edge"], edge["state"]) for edge in status["edges"]] == [("sg-edge", "up")]
        assert [pool["pool"] for pool in status["pools"]] == ["sg-pool"]
        assert status["members"][0]["held"][0]["number"] == 1
        assert 0 < status["fresh_for_ms"] <= 900_000
        assert status["alarms"] == []


async def test_a_wrong_token_opens_nothing(plane: Plane) -> None:
    async with plane.running():
        with pytest.raises(PublishFailed, match="token") as refused:
            await publish(plane.address, Secret("another-token-of-tests"), plane.write())
        assert not refused.value.retry
        (status,) = await fetch_status([(plane.address, Secret(""))])
        assert status.reply is None
        assert "UNAUTHENTICATED" in status.failure


async def test_what_control_refuses_changes_nothing(plane: Plane) -> None:
    twice = [*plane.side.files, (SectionKind.TENANTS, "again", tenants("acme"))]
    elsewhere = [(SectionKind.FLEET, "fleet", fleet("cn-edge", "cn-pool", "CN", "river-cn"))]
    async with plane.running():
        await plane.publish()
        with pytest.raises(PublishFailed, match="two of tenant acme"):
            await plane.publish(twice)
        with pytest.raises(PublishFailed, match="soil"):
            await plane.publish(elsewhere)
        with pytest.raises(PublishFailed, match="another manifest than 7"):
            await plane.publish(expected=7)
        assert (await plane.publish(expected=1)).number == 2


async def test_a_manifest_is_issued_again_before_it_is_no_longer_fresh(
    tmp_path: Path, etcd: EtcdProcess, ours: Side
) -> None:
    plane = make_plane(tmp_path / "short", etcd.url, ours, [], fresh_ms=2_000)
    async with plane.running(), plane.followed("sg-edge") as edge:
        await plane.publish()
        await until(lambda: edge.current is not None and edge.current.number >= 3, 6, "two further issues")
        assert edge.current is not None
        assert {tenant.id for tenant in edge.current.tenants} == {"acme"}
        assert edge.alarms() == ()


async def test_revocations_reach_members_at_once(plane: Plane) -> None:
    async with plane.running(), plane.followed("sg-edge") as edge:
        await plane.publish()
        await until(lambda: edge.current is not None, 2, "a manifest")
        await plane.publish(revocations={"tenants": ["acme"]})
        await until(lambda: edge.current is not None and "acme" in edge.current.revoked.tenants, 1, "the revocation")
        assert edge.current is not None
        assert edge.current.revocations.number == 1
        await plane.publish()
        await until(lambda: edge.current is not None and edge.current.number == 3, 1, "the next manifest")
        assert "acme" in edge.current.revoked.tenants
        assert edge.revocation_list(plane.side.name, 0) is not None
        await plane.publish(revocations={})
        await until(lambda: edge.current is not None and not edge.current.revoked.tenants, 1, "the empty list")
        assert edge.current.revocations.number == 2


async def test_a_restart_keeps_the_numbers(plane: Plane) -> None:
    async with plane.running():
        assert (await plane.publish()).number == 1
    async with plane.running():
        assert (await plane.status())["manifest"]["number"] == 1
        assert (await plane.publish()).number == 2


async def test_an_empty_disk_takes_up_what_etcd_holds(plane: Plane) -> None:
    async with plane.running():
        await plane.publish(revocations={"pools": ["sg-pool"]})
        published = await plane.publish()
    bare = replace(plane, settings=msgspec.structs.replace(plane.settings, data_dir=plane.folder / "data-2"))
    async with bare.running(), bare.followed("sg-edge") as edge:
        await until(lambda: edge.current is not None, 3, "the manifest of etcd")
        assert edge.current is not None
        assert edge.current.digest == published.digest
        assert edge.current.revoked.pools == {"sg-pool"}
        assert (await bare.publish()).number == 3


async def test_an_etcd_that_was_emptied_takes_up_what_control_holds(plane: Plane, tmp_path: Path) -> None:
    with EtcdProcess(tmp_path / "etcd-1") as first:
        before = replace(plane, settings=_with_etcd(plane, first.url))
        async with before.running():
            published = await before.publish()
            await before.publish()
    assert published.number == 1
    with EtcdProcess(tmp_path / "etcd-2") as second:
        after = replace(plane, settings=_with_etcd(plane, second.url))
        async with after.running():
            assert (await after.publish()).number == 3


def test_a_folder_is_read_strictly(plane: Plane) -> None:
    folder = plane.write()
    assert {(file.kind, file.name) for file in load_directory(folder)} == {
        ("pack", "eu"),
        ("fleet", "fleet"),
        ("prices", "prices"),
        ("settings", "settings"),
        ("tenants", "tenants"),
    }
    text = (folder / "packs" / "eu.yaml").read_text()
    (folder / "packs" / "eu.yaml").write_text(text.replace('"effect": "grant"', '"effect": "gift"'))
    with pytest.raises(FileError) as refused:
        load_directory(folder)
    assert refused.value.file.endswith("packs/eu.yaml")
    assert refused.value.line > 0
    assert refused.value.field == "rules[0].effect"
    (folder / "packs" / "eu.yaml").write_text(text)
    (folder / "pakcs").mkdir()
    with pytest.raises(FileError, match="packs, tenants"):
        load_directory(folder)
    (folder / "pakcs").rmdir()
    (folder / "tenant.yaml").write_text("version: 1\n")
    with pytest.raises(FileError, match=r"tenants\.yaml"):
        load_directory(folder)


async def test_documents_are_checked_again_by_control(plane: Plane) -> None:
    """A client that checks nothing gains nothing, and no value comes back in an error."""
    wrong = json.dumps({**pack("eu", ["EEA"], "EU", target=["DE"]), "mode": "perhaps"})
    async with plane.running():
        channel = open_channel(plane.address)
        try:
            for kind, document in (("pack", wrong), ("pack", "[1]"), ("magic", "{}"), ("pack", '{"a":1,"a":2}')):
                file = pb.SectionFile(kind=kind, name="eu", document=document.encode())
                request = pb.PublishRequest(version=WIRE_VERSION, token=TOKEN, sections=[file])
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await ControlStub(channel).Publish(iter([request]), timeout=5)
                assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert "perhaps" not in str(refused.value.details())
        finally:
            await channel.close()


def _with_etcd(plane: Plane, url: str) -> ControlSettings:
    etcd = msgspec.structs.replace(plane.settings.etcd, endpoints=(url,))
    return msgspec.structs.replace(plane.settings, etcd=etcd)
