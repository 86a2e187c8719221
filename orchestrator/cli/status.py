"""`tidegate status`: how one or both sides stand, as tables for people or as JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.bundles.blobs import WIRE_VERSION
from orchestrator.config.secret import Secret
from orchestrator.evidence.canonical import JsonValue
from orchestrator.wire.channels import open_channel
from protos.tidegate.v1 import control_pb2 as pb
from protos.tidegate.v1.control_pb2_grpc import ControlStub

if TYPE_CHECKING:
    # Exists in the stubs alone: the generated class is the same for both kinds of channel.
    from protos.tidegate.v1.control_pb2_grpc import ControlAsyncStub

STATUS_S = 5.0
SILENT_MS = 5_000
"""A member whose last report is older counts as silent: it reports every second."""


@dataclass(frozen=True, slots=True)
class SideStatus:
    """What one control answered, or why it did not."""

    control: str
    reply: pb.StatusReply | None
    failure: str = ""


async def fetch_status(controls: Sequence[tuple[str, Secret]]) -> tuple[SideStatus, ...]:
    """Ask each control (``host:port`` and its operator token) at once. One that fails is told as failed."""
    return tuple(await asyncio.gather(*(_fetch(control, token) for control, token in controls)))


def status_to_json(sides: Iterable[SideStatus]) -> list[JsonValue]:
    """Return everything for machines."""
    return [_side_to_json(side) for side in sides]


def render_status(sides: Sequence[SideStatus], console: Console) -> None:
    """Print everything for people."""
    console.print(Group(*_tables(sides)))


async def _fetch(control: str, token: Secret) -> SideStatus:
    channel = open_channel(control)
    try:
        stub: ControlAsyncStub = ControlStub(channel)
        request = pb.StatusRequest(version=WIRE_VERSION, token=token.reveal())
        return SideStatus(control, await stub.Status(request, timeout=STATUS_S))
    except grpc.aio.AioRpcError as error:
        return SideStatus(control, None, f"{error.code().name}: {error.details()}")
    finally:
        await channel.close()


def _side_to_json(status: SideStatus) -> JsonValue:
    reply = status.reply
    if reply is None:
        return {"control": status.control, "failure": status.failure}
    return {
        "control": status.control,
        "side": reply.side,
        "registry": reply.registry,
        "registry_age_ms": reply.registry_age_ms,
        "exchange": reply.exchange,
        "manifest": _held(reply.own) if reply.HasField("own") else None,
        "fresh_for_ms": reply.fresh_until_ms - reply.now_ms if reply.HasField("own") else None,
        "revocations": reply.revocations,
        "imported": [_held(held) for held in reply.imported],
        "alarms": list[JsonValue](reply.alarms),
        "edges": [
            {"edge": edge.edge, "side": edge.side, "region": edge.region, "state": _edge_state(reply, edge)}
            for edge in reply.edges
        ],
        "pools": [_pool_to_json(reply, pool) for pool in reply.pools],
        "replicas": [
            {
                "replica": replica.replica,
                "pool": replica.pool,
                "scheduler": member.report.member,
                "state": replica.state,
                "model": replica.model,
                "restarts": replica.restarts,
                "running": replica.running,
                "beat_age_ms": replica.beat_age_ms,
            }
            for member in reply.members
            for replica in member.report.replicas
        ],
        "sessions": [
            {
                "session": session.session,
                "member": member.report.member,
                "peer": session.peer,
                "state": session.state,
                "epoch": session.epoch,
                "streams": session.streams,
                "rtt_ms": session.rtt_ms,
                "skew_ms": session.skew_ms,
            }
            for member in reply.members
            for session in member.report.sessions
        ],
        "members": [_member_to_json(member) for member in reply.members],
    }


def _held(held: pb.HeldManifest) -> JsonValue:
    return {"side": held.side, "number": held.number, "digest": held.digest, "age_ms": held.age_ms}


def _member_to_json(member: pb.MemberStatus) -> JsonValue:
    return {
        "member": member.report.member,
        "role": member.report.role,
        "state": _member_state(member),
        "age_ms": member.age_ms,
        "listen": member.report.listen,
        "draining": member.report.draining,
        "held": [_held(held) for held in member.report.held],
        "alarms": list[JsonValue](member.report.alarms),
    }


def _member_state(member: pb.MemberStatus) -> str:
    if member.age_ms < 0:
        return "elsewhere"
    if member.age_ms > SILENT_MS:
        return "silent"
    return "draining" if member.report.draining else "up"


def _edge_state(reply: pb.StatusReply, edge: pb.DeclaredEdge) -> str:
    if edge.side != reply.side:
        return "other side"
    found = (member for member in reply.members if member.report.member == edge.edge and member.report.role == "edge")
    return next((_member_state(member) for member in found), "absent")


def _pool_to_json(reply: pb.StatusReply, pool: pb.DeclaredPool) -> JsonValue:
    """A pool as declared, with what each member that reports says of it: a scheduler of its own, edges of their way."""
    seen: list[JsonValue] = [
        {
            "by": member.report.member,
            "role": member.report.role,
            "state": state.state,
            "replicas": state.replicas,
            "slots": state.slots,
            "running": state.running,
            "waiting": state.waiting,
            "rtt_ms": state.rtt_ms,
        }
        for member in reply.members
        for state in member.report.pools
        if state.pool == pool.pool
    ]
    return {
        "pool": pool.pool,
        "side": pool.side,
        "region": pool.region,
        "assurance": pool.assurance,
        "drained": pool.drained,
        "seen": seen,
    }


def _tables(sides: Sequence[SideStatus]) -> Iterator[RenderableType]:
    summary = _table("sides", "side", "control", "registry", "exchange", "manifest", "age", "revocations", "alarms")
    for status in sides:
        reply = status.reply
        if reply is None:
            _row(summary, "?", status.control, "", "", status.failure, "", "", "")
            continue
        registry = f"{reply.registry}, {_age(reply.registry_age_ms)}"
        number = str(reply.own.number) if reply.HasField("own") else "none"
        _row(
            summary,
            reply.side,
            status.control,
            registry,
            reply.exchange,
            number,
            _age(reply.own.age_ms) if reply.HasField("own") else "",
            str(reply.revocations),
            "\n".join(reply.alarms),
        )
        for held in reply.imported:
            _row(summary, f"  imports {held.side}", "", "", "", str(held.number), _age(held.age_ms), "", "")
    yield summary
    replies = [status.reply for status in sides if status.reply is not None]
    yield _members_table(replies)
    yield _edges_table(replies)
    yield _pools_table(replies)
    yield _replicas_table(replies)
    yield _sessions_table(replies)


def _members_table(replies: Sequence[pb.StatusReply]) -> Table:
    table = _table("members", "member", "role", "side", "state", "report", "manifests", "alarms")
    for reply in replies:
        for member in reply.members:
            report = member.report
            held = "\n".join(f"{one.side} {one.number}, {_age(one.age_ms)}" for one in report.held)
            age = _age(member.age_ms)
            alarms = "\n".join(report.alarms)
            _row(table, report.member, report.role, reply.side, _member_state(member), age, held, alarms)
    return table


def _edges_table(replies: Sequence[pb.StatusReply]) -> Table:
    table = _table("edges", "edge", "side", "region", "state")
    for reply in replies:
        for edge in reply.edges:
            if edge.side == reply.side:
                _row(table, edge.edge, edge.side, edge.region, _edge_state(reply, edge))
    return table


def _pools_table(replies: Sequence[pb.StatusReply]) -> Table:
    table = _table(
        "pools", "pool", "side", "region", "assurance", "seen by", "state", "replicas", "slots", "run/wait", "rtt"
    )
    for reply in replies:
        for pool in reply.pools:
            seen = [
                (member.report, state)
                for member in reply.members
                for state in member.report.pools
                if state.pool == pool.pool
            ]
            first = (pool.pool, pool.side, pool.region, pool.assurance)
            drained = "drained" if pool.drained else ""
            if not seen and pool.side == reply.side:
                _row(table, *first, "", drained or "no report", "", "", "", "")
            for report, state in seen:
                counts = (str(state.replicas), str(state.slots), f"{state.running}/{state.waiting}")
                _row(table, *first, report.member, drained or state.state, *counts, f"{state.rtt_ms} ms")
    return table


def _replicas_table(replies: Sequence[pb.StatusReply]) -> Table:
    table = _table("replicas", "replica", "pool", "model", "state", "restarts", "running", "beat")
    for reply in replies:
        for member in reply.members:
            for one in member.report.replicas:
                counts = (str(one.restarts), str(one.running), _age(one.beat_age_ms))
                _row(table, one.replica, one.pool, one.model, one.state, *counts)
    return table


def _sessions_table(replies: Sequence[pb.StatusReply]) -> Table:
    table = _table("sessions", "session", "member", "peer", "state", "epoch", "streams", "rtt", "skew")
    for reply in replies:
        for member in reply.members:
            for one in member.report.sessions:
                rest = (one.state, str(one.epoch), str(one.streams), f"{one.rtt_ms} ms", f"{one.skew_ms} ms")
                _row(table, one.session, member.report.member, one.peer, *rest)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _row(table: Table, *cells: str) -> None:
    """Add a row. What others report is text to us, never markup or control characters."""
    table.add_row(*(_shown(cell) for cell in cells))


def _shown(text: str) -> Text:
    """What a member says of itself, as text: no markup, and no control characters for the terminal to obey."""
    return Text("".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text))


def _age(age_ms: int) -> str:
    if age_ms < 0:
        return "unknown"
    if age_ms < 10_000:
        return f"{age_ms / 1000:.1f} s"
    return f"{age_ms // 1000} s" if age_ms < 600_000 else f"{age_ms // 60_000} min"
