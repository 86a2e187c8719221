"""Signed bytes, sections and member reports between values and protobuf. What is read here is checked elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.bundles.assemble import Bundle
from orchestrator.bundles.formats import Signed
from orchestrator.policy.ids import Digest, KeyId, SideId
from protos.tidegate.v1 import control_pb2 as pb

WIRE_VERSION = 1


@dataclass(frozen=True, slots=True)
class PoolReport:
    """How a member sees a pool."""

    pool: str
    state: str
    """up, down, draining or not_reachable"""
    replicas: int = 0
    slots: int = 0
    running: int = 0
    waiting: int = 0
    rtt_ms: int = 0


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """How a scheduler sees one of its replicas."""

    replica: str
    pool: str
    state: str
    model: str
    restarts: int = 0
    running: int = 0
    beat_age_ms: int = 0


@dataclass(frozen=True, slots=True)
class SessionReport:
    """How a member sees one session."""

    session: str
    peer: str
    state: str
    epoch: int = 0
    streams: int = 0
    rtt_ms: int = 0
    skew_ms: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What a member tells of itself, for people to see: nothing is decided by it."""

    role: str
    """edge or scheduler"""
    instance: str
    """Of this run of the program."""
    listen: str = ""
    draining: bool = False
    pools: tuple[PoolReport, ...] = ()
    replicas: tuple[ReplicaReport, ...] = ()
    sessions: tuple[SessionReport, ...] = ()
    alarms: tuple[str, ...] = ()


def manifest_blob(signed: Signed) -> pb.ManifestBlob:
    """Return a signed manifest as a message."""
    return pb.ManifestBlob(
        side=signed.side,
        number=signed.number,
        digest=signed.digest,
        body=signed.body,
        key_id=signed.key_id,
        signature=signed.signature,
    )


def revocation_blob(signed: Signed) -> pb.RevocationBlob:
    """Return a signed revocation list as a message."""
    return pb.RevocationBlob(
        side=signed.side,
        number=signed.number,
        digest=signed.digest,
        body=signed.body,
        key_id=signed.key_id,
        signature=signed.signature,
    )


def signed_of(blob: pb.ManifestBlob | pb.RevocationBlob) -> Signed:
    """Return signed bytes from a message, unchecked."""
    return Signed(SideId(blob.side), blob.number, Digest(blob.digest), blob.body, KeyId(blob.key_id), blob.signature)


def held_manifest(bundle: Bundle, now_ms: int) -> pb.HeldManifest:
    """Return which manifest is held, and how old it is."""
    age_ms = max(0, now_ms - bundle.manifest.issued_ms)
    return pb.HeldManifest(side=bundle.side, number=bundle.number, digest=bundle.digest, age_ms=age_ms)


def member_report(member: str, report: Report, held: list[pb.HeldManifest], alarms: tuple[str, ...]) -> pb.MemberReport:
    """Return a report as a message."""
    return pb.MemberReport(
        version=WIRE_VERSION,
        member=member,
        role=report.role,
        instance=report.instance,
        held=held,
        pools=[
            pb.PoolState(
                pool=pool.pool,
                state=pool.state,
                replicas=pool.replicas,
                slots=pool.slots,
                running=pool.running,
                waiting=pool.waiting,
                rtt_ms=pool.rtt_ms,
            )
            for pool in report.pools
        ],
        replicas=[
            pb.ReplicaState(
                replica=replica.replica,
                pool=replica.pool,
                state=replica.state,
                model=replica.model,
                restarts=replica.restarts,
                running=replica.running,
                beat_age_ms=replica.beat_age_ms,
            )
            for replica in report.replicas
        ],
        sessions=[
            pb.SessionState(
                session=session.session,
                peer=session.peer,
                state=session.state,
                epoch=session.epoch,
                streams=session.streams,
                rtt_ms=session.rtt_ms,
                skew_ms=session.skew_ms,
            )
            for session in report.sessions
        ],
        draining=report.draining,
        listen=report.listen,
        alarms=[*report.alarms, *alarms],
    )
