"""A message that cannot be read is refused by the name of the field, and the refusal repeats nothing of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.engines.generation import Generation, Message, Role, Sampling
from orchestrator.evidence.canonical import INTEGER_MAX
from orchestrator.policy.ids import ModelId
from orchestrator.wire.convert_facts import (
    COUNTERS_MAX,
    NOTICES_MAX,
    OWNERS_MAX,
    PARTS_MAX,
    PATHWAYS_MAX,
    SET_MAX,
    WireError,
)
from orchestrator.wire.convert_generation import MESSAGES_MAX, STOPS_MAX
from orchestrator.wire.convert_replica import SLOTS_MAX, replica_frame_in, work_frame_in
from orchestrator.wire.convert_session import edge_batch_out, edge_frame_in, intake_frame_in
from orchestrator.wire.frames import CREDIT_BYTES_MIN, SETTLES_MAX, STREAMS_MAX, Open
from protos.tidegate.v1 import labels_pb2, replica_pb2, session_pb2
from tests.session.world import made_id, open_frame

CANARY = "canary-5531"
ATTEMPT = made_id("att", 1)
Break = Callable[[Any], object]


class Draft:
    """An attempt with its facts as a message, for the wire carries these written."""

    def __init__(self, message: session_pb2.Open) -> None:
        object.__setattr__(self, "message", message)
        object.__setattr__(self, "facts", labels_pb2.Facts.FromString(message.facts))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.message, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.message, name, value)

    def ClearField(self, name: str) -> None:
        """Take a field away."""
        if name == "facts":
            self.facts.Clear()
        else:
            self.message.ClearField(name)

    def frame(self) -> session_pb2.EdgeFrame:
        """The frame as it would arrive."""
        self.message.facts = self.facts.SerializeToString()
        return session_pb2.EdgeFrame(open=self.message)


def valid() -> Draft:
    """An attempt that can be read, with a payload that must not be seen."""
    message = Draft(edge_batch_out(1, [open_frame(1, 1, CREDIT_BYTES_MIN)]).frames[0].open)
    message.generation.messages[0].text = CANARY
    message.generation.sampling.stop.append(CANARY)
    said = message.generation.said
    said.by, said.identity, said.tokens, said.text = "ids", "sha256:" + "0" * 64, 2, CANARY
    said.ids.extend([1, 2])
    pathway = labels_pb2.Pathway(id="scc", kind="eu_scc", exporter="a", importer="b", countries=["CN"], module=2)
    pathway.personal_max, pathway.reference = labels_pb2.PERSONAL_PERSONAL, CANARY
    pathway.exporter_role, pathway.importer_role = labels_pb2.ROLE_CONTROLLER, labels_pb2.ROLE_PROCESSOR
    pathway.categories.append("contact")
    pathway.purposes.append("inference")
    message.facts.pathways.append(pathway)
    message.facts.counters.append(labels_pb2.Counter(kind="cn_persons_year", count=1, as_of_ms=1, valid_until_ms=2))
    message.facts.notices.append(labels_pb2.Notice(name="eu-13-cn", version="1"))
    message.inputs.parts.append(labels_pb2.InputPart(kind="user", count=1, size_bytes=5, commitment="c"))
    message.inputs.domestic, message.inputs.cache_namespace = labels_pb2.DOMESTIC_NO, "attempt"
    message.facts.tenant.owners.append(labels_pb2.Owner(entity="o", country="DE", share_percent=60))
    return message


def put(path: str, value: object) -> Break:
    """Return what sets one field of a message."""

    def change(message: Any) -> None:
        *outer, last = path.split(".")
        for name in outer:
            message = message[int(name)] if name.isdigit() else getattr(message, name)
        setattr(message, last, value)

    return change


def clear(path: str) -> Break:
    """Return what takes one field of a message away."""

    def change(message: Any) -> None:
        *outer, last = path.split(".")
        for name in outer:
            message = message[int(name)] if name.isdigit() else getattr(message, name)
        message.ClearField(last)

    return change


OPENS: list[tuple[str, Break]] = [
    ("open.stream", clear("stream")),
    ("attempt", clear("attempt")),
    ("attempt", put("attempt", "att_" + CANARY)),
    ("open.decision", put("decision", ATTEMPT)),
    ("open.request", put("request", CANARY)),
    ("open.pool", clear("pool")),
    ("open.pool", put("pool", CANARY * 100)),
    ("open.key_id", clear("key_id")),
    ("open.credit_bytes", put("credit_bytes", CREDIT_BYTES_MIN - 1)),
    ("generation.messages", clear("generation")),
    ("generation.messages", lambda m: m.generation.messages.extend([m.generation.messages[0]] * MESSAGES_MAX)),
    ("generation.messages.role", put("generation.messages.0.role", CANARY)),
    ("generation.messages", lambda m: m.generation.messages.add(role="prompt", text=CANARY)),
    ("generation.model", clear("generation.model")),
    ("generation.sampling.temperature", put("generation.sampling.temperature", math.nan)),
    ("generation.sampling.temperature", put("generation.sampling.temperature", 2.01)),
    ("generation.sampling.top_p", put("generation.sampling.top_p", 0.0)),
    ("generation.sampling.top_p", put("generation.sampling.top_p", math.inf)),
    ("generation.sampling.stop", lambda m: m.generation.sampling.stop.extend([CANARY] * STOPS_MAX)),
    ("generation.sampling.max_tokens", put("generation.sampling.max_tokens", 0)),
    (
        "generation.sampling.min_tokens",
        lambda m: m.generation.sampling.MergeFrom(session_pb2.Sampling(max_tokens=1, min_tokens=2)),
    ),
    ("said.by", put("generation.said.by", "none")),
    ("said.by", put("generation.said.by", CANARY)),
    ("said.by", clear("generation.said.by")),
    ("said.identity", put("generation.said.identity", CANARY)),
    ("said.identity", clear("generation.said.identity")),
    ("said.ids", put("generation.said.tokens", 3)),
    ("said.ids", put("generation.said.by", "text")),
    ("attempt", put("continues", CANARY)),
    ("entity.country", clear("facts")),
    ("entity.id", clear("facts.tenant.id")),
    ("entity.country", put("facts.tenant.country", CANARY)),
    ("entity.owners", lambda m: m.facts.tenant.owners.extend([m.facts.tenant.owners[0]] * OWNERS_MAX)),
    ("entity.owners.entity", clear("facts.tenant.owners.0.entity")),
    ("entity.owners.country", put("facts.tenant.owners.0.country", "XX")),
    ("entity.owners.share_percent", put("facts.tenant.owners.0.share_percent", 101)),
    ("entity.owners.share_percent", clear("facts.tenant.owners.0.share_percent")),
    ("label.personal", clear("facts.label")),
    ("label.personal", put("facts.label.personal", 5)),
    ("label.grade", put("facts.label.grade", 0)),
    ("label.domestic", put("facts.label.domestic", 77)),
    ("label.origin", lambda m: m.facts.label.origin.append(CANARY)),
    ("label.origin", lambda m: m.facts.label.origin.extend(["DE"] * SET_MAX)),
    ("label.clean", clear("facts.label.clean")),
    ("label.clean", put("facts.label.clean", 7)),
    ("label.categories", lambda m: m.facts.label.categories.append(CANARY)),
    ("label.categories", lambda m: m.facts.label.categories.append("all")),
    ("label.located", lambda m: m.facts.label.located.append(CANARY)),
    ("label.located", clear("facts.label.located")),
    ("label.collected", lambda m: m.facts.label.collected.append("EEA")),
    ("label.collected", clear("facts.label.collected")),
    ("label.purpose", lambda m: m.facts.label.purpose.append(CANARY)),
    ("label.purpose", clear("facts.label.purpose")),
    ("label.asset", lambda m: m.facts.label.asset.append("PAYLOAD")),
    ("label.asset", clear("facts.label.asset")),
    ("facts.role", put("facts.role", 3)),
    ("facts.critical_infrastructure", clear("facts.critical_infrastructure")),
    ("facts.critical_infrastructure", put("facts.critical_infrastructure", 4)),
    ("facts.counters", lambda m: m.facts.counters.extend([m.facts.counters[0]] * COUNTERS_MAX)),
    ("counter.kind", put("facts.counters.0.kind", CANARY)),
    ("counter.kind", clear("facts.counters.0.kind")),
    ("counter.count", put("facts.counters.0.count", -1)),
    ("counter.count", put("facts.counters.0.count", INTEGER_MAX + 1)),
    ("counter.as_of_ms", put("facts.counters.0.as_of_ms", INTEGER_MAX + 1)),
    ("counter.valid_until_ms", put("facts.counters.0.valid_until_ms", -INTEGER_MAX - 1)),
    ("facts.notices", lambda m: m.facts.notices.extend([m.facts.notices[0]] * NOTICES_MAX)),
    ("facts.notices.name", clear("facts.notices.0.name")),
    ("facts.notices.version", clear("facts.notices.0.version")),
    ("facts.notices.version", put("facts.notices.0.version", CANARY * 100)),
    ("inputs.parts", lambda m: m.inputs.parts.extend([m.inputs.parts[0]] * PARTS_MAX)),
    ("inputs.parts.kind", clear("inputs.parts.0.kind")),
    ("inputs.parts.kind", put("inputs.parts.0.kind", CANARY * 3)),
    ("inputs.parts.size_bytes", put("inputs.parts.0.size_bytes", INTEGER_MAX + 1)),
    ("inputs.parts.commitment", put("inputs.parts.0.commitment", CANARY * 100)),
    ("inputs.domestic", clear("inputs.domestic")),
    ("inputs.domestic", put("inputs.domestic", 9)),
    ("inputs.origin", lambda m: m.inputs.origin.append(CANARY)),
    ("inputs.collected", lambda m: m.inputs.collected.append("eu")),
    ("inputs.cache_namespace", clear("inputs.cache_namespace")),
    ("inputs.cache_namespace", put("inputs.cache_namespace", CANARY * 20)),
    ("facts.processed_in", lambda m: m.facts.processed_in.append("EEA")),
    ("facts.pathways", lambda m: m.facts.pathways.extend([m.facts.pathways[0]] * PATHWAYS_MAX)),
    ("pathway.id", clear("facts.pathways.0.id")),
    ("pathway.kind", put("facts.pathways.0.kind", "eu_scc_2")),
    ("pathway.exporter", clear("facts.pathways.0.exporter")),
    ("pathway.importer", clear("facts.pathways.0.importer")),
    ("pathway.countries", lambda m: m.facts.pathways[0].countries.append("cn")),
    ("pathway.personal_max", clear("facts.pathways.0.personal_max")),
    ("pathway.exporter_role", clear("facts.pathways.0.exporter_role")),
    ("pathway.importer_role", put("facts.pathways.0.importer_role", 9)),
    ("pathway.categories", lambda m: m.facts.pathways[0].categories.append(CANARY)),
    ("pathway.categories", lambda m: m.facts.pathways[0].categories.append("all")),
    ("pathway.purposes", lambda m: m.facts.pathways[0].purposes.append(CANARY)),
    ("pathway.onward", lambda m: m.facts.pathways[0].onward.append("")),
    ("pathway.onward", lambda m: m.facts.pathways[0].onward.extend(["x"] * (OWNERS_MAX + 1))),
    ("pathway.module", put("facts.pathways.0.module", 5)),
    ("pathway.valid_from_ms", put("facts.pathways.0.valid_from_ms", -INTEGER_MAX - 1)),
    ("pathway.valid_until_ms", put("facts.pathways.0.valid_until_ms", INTEGER_MAX + 1)),
    ("citation.manifest_digest", clear("citation")),
    ("citation.manifest_digest", put("citation.manifest_digest", "sha256:" + CANARY)),
    ("citation.side", clear("citation.side")),
    # What is signed and recorded is canonical JSON, which has no number for these.
    ("citation.manifest", put("citation.manifest", INTEGER_MAX + 1)),
    ("citation.revocations", put("citation.revocations", 2**63)),
    ("citation.now_ms", put("citation.now_ms", INTEGER_MAX + 1)),
]



def greeting(**fields: Any) -> session_pb2.EdgeFrame:
    """A greeting of a session that has lived before."""
    return session_pb2.EdgeFrame(hello=session_pb2.Hello(edge="e", session=made_id("ses", 1), continues=True, **fields))


EDGE: list[tuple[str, session_pb2.EdgeFrame]] = [
    ("hello.session", session_pb2.EdgeFrame(hello=session_pb2.Hello(edge="e", session="s"))),
    ("hello.edge", session_pb2.EdgeFrame(hello=session_pb2.Hello(session=made_id("ses", 1)))),
    ("attempt", greeting(held=[session_pb2.HeldStream(stream=1, attempt=CANARY)])),
    ("hello.held", greeting(held=[session_pb2.HeldStream(attempt=ATTEMPT)] * (STREAMS_MAX + 1))),
    ("attempt", greeting(settled=[session_pb2.Settle(stream=1, attempt="att_2")])),
    ("hello.settled", greeting(settled=[session_pb2.Settle(attempt=ATTEMPT)] * (SETTLES_MAX + 1))),
    ("attempt", session_pb2.EdgeFrame(cancel=session_pb2.Cancel(stream=1))),
    ("attempt", session_pb2.EdgeFrame(settle=session_pb2.Settle(stream=1, attempt="att_1"))),
]

INTAKE: list[tuple[str, session_pb2.IntakeFrame]] = [
    ("welcome.scheduler", session_pb2.IntakeFrame(welcome=session_pb2.Welcome(version=1))),
    ("load.pool", session_pb2.IntakeFrame(load=session_pb2.Load(number=1))),
    ("attempt", session_pb2.IntakeFrame(tokens=session_pb2.Tokens(stream=1, text=CANARY))),
    ("accepted.replica", session_pb2.IntakeFrame(accepted=session_pb2.Accepted(stream=1, attempt=ATTEMPT))),
    ("accepted.identity", session_pb2.IntakeFrame(accepted=session_pb2.Accepted(stream=1, identity=CANARY))),
    ("accepted.resume", session_pb2.IntakeFrame(accepted=session_pb2.Accepted(stream=1, resume=CANARY))),
    ("refused.code", session_pb2.IntakeFrame(refused=session_pb2.Refused(attempt=ATTEMPT, detail=CANARY))),
    ("broken.code", session_pb2.IntakeFrame(broken=session_pb2.Broken(attempt=ATTEMPT, detail=CANARY))),
    ("done.reason", session_pb2.IntakeFrame(done=session_pb2.Done(attempt=ATTEMPT))),
    ("done.reason", session_pb2.IntakeFrame(done=session_pb2.Done(attempt=ATTEMPT, reason=CANARY))),
]

HELLO = replica_pb2.ReplicaHello(replica="r-0", pool="p", incarnation="i", model="m", slots=1, token=CANARY)


def hello(**fields: Any) -> replica_pb2.ReplicaFrame:
    message = replica_pb2.ReplicaHello.FromString(HELLO.SerializeToString())
    for name, value in fields.items():
        setattr(message, name, value)
    return replica_pb2.ReplicaFrame(hello=message)


REPLICA: list[tuple[str, replica_pb2.ReplicaFrame]] = [
    ("hello.replica", hello(replica="Not a name")),
    ("hello.slots", hello(slots=0)),
    ("hello.slots", hello(slots=SLOTS_MAX + 1)),
    ("hello.pool", hello(pool="")),
    ("hello.incarnation", hello(incarnation="")),
    ("hello.model", hello(model="")),
    ("hello.resume", hello(resume=CANARY)),
    ("finished.reason", replica_pb2.ReplicaFrame(finished=replica_pb2.WorkFinished(work=1, reason=CANARY))),
    ("refused.code", replica_pb2.ReplicaFrame(refused=replica_pb2.WorkRefused(work=1, detail=CANARY))),
    ("failed.code", replica_pb2.ReplicaFrame(failed=replica_pb2.WorkFailed(work=1, detail=CANARY))),
]


def refusal(parse: Callable[[Any], object], message: object) -> WireError:
    with pytest.raises(WireError) as refused:
        parse(message)
    shown = f"{refused.value} {refused.value!r} {refused.value.__cause__!r}"
    assert CANARY not in shown
    return refused.value


@pytest.mark.parametrize(("field", "change"), OPENS)
def test_an_attempt_is_refused_by_field(field: str, change: Break) -> None:
    message = valid()
    edge_frame_in(message.frame())
    change(message)
    assert refusal(edge_frame_in, message.frame()).field == field


def test_facts_that_are_no_message_are_refused() -> None:
    message = valid().frame()
    message.open.facts = b"\xff\xff\xff"
    assert refusal(edge_frame_in, message).field == "facts"


def test_equal_facts_are_read_once_and_others_are_not_taken_for_them() -> None:
    message = valid()
    first, again = edge_frame_in(message.frame()), edge_frame_in(message.frame())
    message.facts.tenant.id = "another"
    other = edge_frame_in(message.frame())
    assert isinstance(first, Open)
    assert isinstance(again, Open)
    assert isinstance(other, Open)
    assert again.facts is first.facts
    assert other.facts.tenant.id == "another" != first.facts.tenant.id


@pytest.mark.parametrize(("field", "message"), EDGE)
def test_a_frame_of_an_edge_is_refused_by_field(field: str, message: session_pb2.EdgeFrame) -> None:
    assert refusal(edge_frame_in, message).field == field


@pytest.mark.parametrize(("field", "message"), INTAKE)
def test_a_frame_of_an_intake_is_refused_by_field(field: str, message: session_pb2.IntakeFrame) -> None:
    assert refusal(intake_frame_in, message).field == field


@pytest.mark.parametrize(("field", "message"), REPLICA)
def test_a_frame_of_a_replica_is_refused_by_field(field: str, message: replica_pb2.ReplicaFrame) -> None:
    assert refusal(replica_frame_in, message).field == field


@pytest.mark.parametrize(
    ("parse", "kind"),
    [
        (edge_frame_in, session_pb2.EdgeFrame),
        (intake_frame_in, session_pb2.IntakeFrame),
        (replica_frame_in, replica_pb2.ReplicaFrame),
        (work_frame_in, replica_pb2.WorkFrame),
    ],
)
def test_a_kind_of_a_newer_version_is_refused(parse: Callable[[Any], object], kind: Any) -> None:
    # Field 15 with a message in it: what a oneof of the next version looks like to this one.
    newer = kind.FromString(b"\x7a\x02\x08\x01")
    assert refusal(parse, newer).field == "frame"


def test_an_attempt_shows_nothing_of_its_payload() -> None:
    frame = edge_frame_in(valid().frame())
    # The reference of a pathway is a fact of the law, not a payload.
    assert CANARY not in repr(frame).replace(f"reference='{CANARY}'", "")
    assert CANARY not in repr(Generation(ModelId("m"), (Message(Role.USER, CANARY),), Sampling(stop=(CANARY,))))
    assert edge_batch_out(1, [frame]).frames[0].open.generation.messages[0].text == CANARY
