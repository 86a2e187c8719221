"""What operators see, and what a control refuses to start with."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from orchestrator.bundles.blobs import PoolReport, ReplicaReport, Report, SessionReport, member_report
from orchestrator.bundles.roots import Root, SigningKey
from orchestrator.cli.status import SideStatus, fetch_status, render_status, status_to_json
from orchestrator.config.secret import Secret, SettingsError
from orchestrator.config.settings import load_settings, render_effective
from orchestrator.control.attendance import GONE_KEPT_S, Attendance
from orchestrator.control.members import RegistrySettings
from orchestrator.control.registry import Registry
from orchestrator.control.settings import ControlSettings, identify
from protos.tidegate.v1 import control_pb2 as pb
from tests.bundles.sides import Side
from tests.control.planes import TOKEN, Plane, free_port, until
from tests.etcd_process import EtcdProcess


def scheduler_report() -> pb.MemberReport:
    report = Report(
        "scheduler",
        "run-1",
        pools=(PoolReport("sg-pool", "up", replicas=2, slots=4, running=1, rtt_ms=12),),
        replicas=(ReplicaReport("replica-1", "sg-pool", "up", "demo", restarts=1),),
        sessions=(SessionReport("ses_1", "sg-edge", "open", epoch=3, streams=2),),
        alarms=("strange: [bold red]markup[/] and \x1b[31mcolour",),
    )
    return member_report("sg-pool-scheduler", report, [], ())


def a_reply() -> pb.StatusReply:
    reply = pb.StatusReply(version=1, side="overseas", registry="up", registry_age_ms=20, exchange="up", now_ms=10)
    reply.own.CopyFrom(pb.HeldManifest(side="overseas", number=7, digest="sha256:00", age_ms=61_000))
    reply.edges.add(edge="sg-edge", side="overseas", region="sg-1")
    reply.pools.add(pool="sg-pool", side="overseas", region="sg-1", assurance="two-party")
    reply.pools.add(pool="sg-pool-2", side="overseas", region="sg-1", assurance="two-party", drained=True)
    reply.members.add(report=scheduler_report(), age_ms=300)
    return reply


def test_status_is_shown_as_tables() -> None:
    stream = io.StringIO()
    sides = [SideStatus("127.0.0.1:1", a_reply()), SideStatus("127.0.0.1:2", None, "UNAVAILABLE: nobody")]
    render_status(sides, Console(file=stream, width=200))
    shown = stream.getvalue()
    for word in ("sg-edge", "absent", "replica-1", "ses_1", "drained", "UNAVAILABLE: nobody", "61 s"):
        assert word in shown
    assert "[bold red]markup[/]" in shown
    assert "\x1b" not in shown


def test_status_is_told_to_machines() -> None:
    (side,) = status_to_json([SideStatus("127.0.0.1:1", a_reply())])
    assert isinstance(side, dict)
    assert side["manifest"] == {"side": "overseas", "number": 7, "digest": "sha256:00", "age_ms": 61_000}
    assert side["replicas"][0]["restarts"] == 1  # type: ignore[index,call-overload]
    assert side["pools"][0]["seen"][0]["replicas"] == 2  # type: ignore[index,call-overload]
    assert side["edges"][0]["state"] == "absent"  # type: ignore[index,call-overload]


async def test_a_control_that_is_not_there_is_told_as_failed() -> None:
    (status,) = await fetch_status([(f"127.0.0.1:{free_port()}", Secret(TOKEN))])
    assert status.reply is None
    assert "UNAVAILABLE" in status.failure


async def test_members_stand_in_etcd_while_they_attend(plane: Plane, etcd: EtcdProcess) -> None:
    registry = Registry.open(RegistrySettings((etcd.url,), f"/tidegate/{plane.side.name}/"))
    try:

        async def listed() -> bool:
            return set((await registry.get_prefix("members/")).entries) == {"members/sg-edge"}

        async def empty() -> bool:
            return not (await registry.get_prefix("members/")).entries

        async with plane.running(), plane.followed("sg-edge"):
            await until(listed, 5, "the member is listed")
        await until(empty, 5, "the lease was given up")
    finally:
        await registry.close()


def test_a_member_that_left_is_forgotten_later() -> None:
    now = [100.0]
    attendance = Attendance(lambda: now[0])
    assert attendance.arrive(scheduler_report())
    assert attendance.arrive(scheduler_report())
    attendance.leave("sg-pool-scheduler")
    assert list(attendance.attending()) == ["sg-pool-scheduler"]
    attendance.leave("sg-pool-scheduler")
    assert attendance.attending() == {}
    now[0] += 10
    assert [status.age_ms for status in attendance.status()] == [10_000]
    now[0] += GONE_KEPT_S
    assert attendance.status() == []


def test_a_control_signs_with_a_pinned_root_or_does_not_start(plane: Plane, theirs: Side) -> None:
    assert identify(plane.settings).root.side == plane.side.name
    other = plane.folder / "other.pem"
    SigningKey.generate().write(other)
    with pytest.raises(SettingsError, match="public half"):
        identify(msgspec.structs.replace(plane.settings, root_key_file=other))
    with pytest.raises(SettingsError, match="at most"):
        identify(msgspec.structs.replace(plane.settings, not_after_ms=10**12))
    (plane.folder / "token").write_text("short")
    with pytest.raises(SettingsError, match="16 characters"):
        identify(plane.settings)
    other.chmod(0o644)
    with pytest.raises(SettingsError, match="others cannot read"):
        identify(msgspec.structs.replace(plane.settings, root_key_file=other))


def test_settings_are_read_and_shown(tmp_path: Path, plane: Plane) -> None:
    config = tmp_path / "control.yaml"
    config.write_bytes(msgspec.json.encode(plane.settings, enc_hook=str))
    settings = load_settings(ControlSettings, config, {"TIDEGATE_CONTROL_LISTEN": "127.0.0.1:7"}, "TIDEGATE_CONTROL_")
    assert settings.listen == "127.0.0.1:7"
    assert settings.roots == plane.settings.roots
    assert TOKEN not in render_effective(settings)


@pytest.mark.parametrize(
    ("side", "key", "names"),
    [("Two", "A" * 43 + "=", ["DE"]), ("two", "A", ["DE"]), ("two", "AAAA", ["DE"]), ("two", "A" * 43 + "=", ["ZZ"])],
)
def test_a_root_is_read_strictly(side: str, key: str, names: list[str]) -> None:
    with pytest.raises(ValueError):
        Root.parse(side, key, names)


def test_a_root_may_name_groups() -> None:
    root = Root.parse("overseas", "A" * 43 + "=", ["EEA", "SG"])
    assert {"DE", "FR", "SG"} <= root.jurisdictions
    assert "CN" not in root.jurisdictions


def test_a_signing_key_shows_nothing_of_itself(tmp_path: Path) -> None:
    key = SigningKey.generate()
    key.write(tmp_path / "root.pem")
    text = (tmp_path / "root.pem").read_text()
    assert (tmp_path / "root.pem").stat().st_mode & 0o777 == 0o600
    assert SigningKey.from_pem(text).public_key == key.public_key
    assert text.splitlines()[1] not in repr(key)
    with pytest.raises(FileExistsError):
        key.write(tmp_path / "root.pem")
    with pytest.raises(ValueError, match="Ed25519"):
        SigningKey.from_pem(text.replace("MC4", "MC5"))
