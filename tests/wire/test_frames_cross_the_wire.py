"""Every frame survives the wire unchanged, what cannot be read is refused by field, and no repr holds a payload."""

from __future__ import annotations

from enum import Enum
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.engines.generation import FinishReason, Generation, Message, Resume, Said, Sampling
from orchestrator.engines.generation import Role as Speaker
from orchestrator.engines.identity import Continuing, Identity
from orchestrator.evidence.canonical import INTEGER_MAX
from orchestrator.evidence.citation import Citation, attestation_bytes
from orchestrator.evidence.inputs import InputManifest, InputPart
from orchestrator.ledger.usage import EdgeCounts, PoolCounts
from orchestrator.policy.counters import Counter, CounterKind
from orchestrator.policy.entities import Entity, Owner
from orchestrator.policy.facts import Declared, Facts
from orchestrator.policy.jurisdictions import ASSIGNED, Jurisdiction
from orchestrator.policy.labels import Clean, Domestic, Effective, Grade, Personal
from orchestrator.policy.pathways import ALL_CATEGORIES, Pathway, PathwayKind, Role
from orchestrator.policy.vocabulary import UNKNOWN, Asset, Category, Purpose
from orchestrator.wire import convert_replica as replica
from orchestrator.wire import frames as f
from orchestrator.wire.channels import CLIENT_PING_MS, SERVER_PING_FLOOR_MS
from orchestrator.wire.convert_facts import WireError, facts_in, facts_out, label_in, label_out
from orchestrator.wire.convert_session import edge_batch_out, edge_frame_in, intake_batch_out, intake_frame_in, open_in
from protos.tidegate.v1 import labels_pb2, replica_pb2, session_pb2
from tests.session.world import made_id
from tests.values import replace

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
MS = st.integers(0, INTEGER_MAX)
"""What is signed is canonical JSON, which holds no larger integer."""
TEXT = st.text(max_size=20)
NAME = st.text("abcdefghij-", min_size=1, max_size=12)
HEX = st.text("0123456789abcdef", min_size=32, max_size=32)
CODES = st.frozensets(st.sampled_from(sorted(ASSIGNED)), max_size=4)
CODE = st.sampled_from(sorted(ASSIGNED))


def made(prefix: str) -> st.SearchStrategy[Any]:
    return HEX.map(lambda digits: f"{prefix}_{digits}")


ENTITIES = st.builds(
    Entity, NAME, CODE, st.lists(st.builds(Owner, NAME, CODE, st.integers(1, 100)), max_size=2).map(tuple)
)
UNKNOWN_SET = frozenset({UNKNOWN})
PLACES = CODES | CODES.map(lambda codes: codes | UNKNOWN_SET)


def words(kind: type[Enum], min_size: int = 1) -> st.SearchStrategy[frozenset[str]]:
    return st.frozensets(st.sampled_from([*(word.value for word in kind), UNKNOWN]), min_size=min_size, max_size=4)


LABELS = st.builds(
    Effective,
    personal=st.sampled_from(Personal),
    grade=st.sampled_from(Grade),
    domestic=st.sampled_from(Domestic),
    origin=PLACES,
    clean=st.sampled_from(Clean),
    categories=words(Category, 0),
    located=PLACES.filter(bool),
    collected=PLACES.filter(bool),
    purpose=words(Purpose),
    asset=words(Asset),
)
PATHWAYS = st.builds(
    Pathway,
    id=NAME,
    kind=st.sampled_from(PathwayKind),
    exporter=NAME,
    exporter_role=st.sampled_from(Role),
    importer=NAME,
    importer_role=st.sampled_from(Role),
    countries=CODES,
    personal_max=st.sampled_from([one for one in Personal if one is not Personal.UNKNOWN]),
    categories=st.just(ALL_CATEGORIES) | words(Category, 0).map(lambda found: found - {"unknown"}),
    valid_from_ms=MS,
    valid_until_ms=MS,
    reference=TEXT,
    purposes=words(Purpose, 0),
    onward=st.frozensets(NAME, max_size=2),
    module=st.none() | st.integers(1, 4),
)
COUNTERS = st.builds(Counter, st.sampled_from(CounterKind), MS, MS, MS)
NOTICES = st.tuples(NAME, st.text(min_size=1, max_size=12))
FACTS = st.builds(
    Facts,
    tenant=ENTITIES,
    label=LABELS,
    pathways=st.lists(PATHWAYS, max_size=2).map(tuple),
    processed_in=CODES,
    role=st.none() | st.sampled_from(Role),
    critical_infrastructure=st.sampled_from(Declared),
    counters=st.lists(COUNTERS, max_size=2).map(tuple),
    notices=st.lists(NOTICES, max_size=2).map(tuple),
)
PARTS = st.builds(InputPart, NAME, U32, MS, st.none() | NAME)
DIGESTS = st.tuples(HEX, HEX).map(lambda halves: f"sha256:{halves[0]}{halves[1]}")
CITATIONS = st.builds(Citation, MS, DIGESTS, MS, U32, MS, NAME)
SPEAKERS = st.sampled_from([role for role in Speaker if role is not Speaker.PROMPT])
CONVERSATIONS = st.lists(st.builds(Message, SPEAKERS, TEXT), min_size=1, max_size=3).map(tuple)
IDS = st.lists(U32, max_size=4).map(tuple)
SAID = st.builds(Said, st.just(Resume.TEXT), DIGESTS, U32, TEXT) | st.builds(
    lambda digest, text, ids: Said(Resume.IDS, digest, len(ids), text, ids), DIGESTS, TEXT, IDS
)
CONTINUING = st.builds(Continuing, st.none() | DIGESTS, st.sampled_from(Resume))
MOST_AND_FEWEST = st.one_of(
    st.tuples(st.none(), U32),
    st.integers(1, 2**32 - 1).flatmap(lambda most: st.tuples(st.just(most), st.integers(0, most))),
)
GENERATIONS = st.builds(
    Generation,
    NAME,
    CONVERSATIONS | st.builds(Message, st.just(Speaker.PROMPT), TEXT).map(lambda message: (message,)),
    st.builds(
        lambda bounds, *drawn: Sampling(*drawn[:4], bounds[0], drawn[4], bounds[1]),
        MOST_AND_FEWEST,
        st.floats(0, 2),
        st.floats(0.001, 1),
        st.none() | U64,
        st.lists(TEXT, max_size=4).map(tuple),
        st.booleans(),
    ),
    st.none() | SAID,
)
LOADS = st.builds(f.Load, U64, NAME, U32, U32, U32, U32, U32)
ATTEMPT, STREAM = made("att"), st.integers(1, 2**64 - 1)


@st.composite
def opens(draw: st.DrawFn) -> f.Open:
    """An attempt, with an input manifest of that attempt or without one."""
    attempt = draw(ATTEMPT)
    manifests = st.builds(
        InputManifest,
        st.just(attempt),
        st.lists(PARTS, max_size=3).map(tuple),
        st.sampled_from(Domestic),
        PLACES,
        PLACES,
        NAME,
    )
    return f.Open(
        draw(STREAM),
        attempt,
        draw(made("dec")),
        draw(made("req")),
        draw(NAME),
        draw(GENERATIONS),
        draw(FACTS),
        draw(CITATIONS),
        draw(NAME),
        draw(st.binary(max_size=64)),
        draw(st.integers(f.CREDIT_BYTES_MIN, 2**32 - 1)),
        draw(U32),
        draw(st.none() | manifests),
        draw(st.none() | ATTEMPT),
    )


REASON = st.sampled_from([reason.value for reason in FinishReason])
COUNTS = st.builds(PoolCounts, U32, U32, U32, U32)
SETTLES = st.builds(f.Settle, STREAM, ATTEMPT, st.builds(EdgeCounts, U32, U32))
HELD = st.builds(f.Held, STREAM, ATTEMPT, st.booleans(), U64, U64, U64, st.booleans(), st.booleans())
EDGE_FRAMES = st.one_of(
    st.builds(
        f.Hello,
        U32,
        U32,
        NAME,
        made("ses"),
        U64,
        MS,
        U32,
        st.booleans(),
        st.lists(HELD, max_size=2).map(tuple),
        st.lists(SETTLES, max_size=2).map(tuple),
    ),
    st.builds(f.Credit, STREAM, U32),
    st.builds(f.Cancel, STREAM, ATTEMPT),
    SETTLES,
    st.builds(f.Beat, U64, U64, U64),
    opens(),
)
INTAKE_FRAMES = st.one_of(
    st.builds(
        f.Welcome,
        U32,
        NAME,
        TEXT,
        MS,
        U32,
        st.lists(LOADS, max_size=2).map(tuple),
        st.booleans(),
        U64,
        st.lists(U64, max_size=2).map(tuple),
        st.builds(f.Process, U32, st.integers(1, 2**32 - 1)),
    ),
    st.builds(f.Accepted, STREAM, ATTEMPT, NAME, CONTINUING),
    st.builds(
        f.Refused,
        STREAM,
        ATTEMPT,
        NAME,
        TEXT,
        st.none() | NAME,
        st.lists(NAME, max_size=2).map(tuple),
        st.none() | st.integers(1, 2**32 - 1),
    ),
    st.builds(f.Tokens, STREAM, ATTEMPT, U64, U32, TEXT, st.lists(U32, max_size=3).map(tuple)),
    st.builds(f.Done, STREAM, ATTEMPT, REASON, COUNTS, st.none() | U64, st.none() | U32),
    st.builds(f.Broken, STREAM, ATTEMPT, NAME, TEXT, COUNTS),
    LOADS,
    st.builds(f.Beat, U64, U64, U64),
    st.builds(f.Draining, U32),
)
REPLICA_FRAMES = st.one_of(
    st.builds(
        replica.ReplicaHello,
        U32,
        st.just("pool-0"),
        NAME,
        NAME,
        NAME,
        st.integers(1, replica.SLOTS_MAX),
        U32,
        st.builds(Identity, TEXT, TEXT, TEXT, TEXT, TEXT),
        TEXT,
        st.dictionaries(NAME, TEXT, max_size=2),
        st.sampled_from(Resume),
    ),
    st.builds(replica.WorkStarted, U64, U32),
    st.builds(replica.WorkTokens, U64, TEXT, st.lists(U32, max_size=3).map(tuple), U32),
    st.builds(replica.WorkFinished, U64, REASON, COUNTS),
    st.builds(replica.WorkRefused, U64, NAME, TEXT, st.none() | NAME),
    st.builds(replica.WorkFailed, U64, NAME, TEXT),
    st.builds(replica.ReplicaBeat, U64, U32, U32, st.booleans()),
)


@given(EDGE_FRAMES)
def test_a_frame_of_the_edge_survives(frame: f.EdgeFrame) -> None:
    (message,) = session_pb2.EdgeBatch.FromString(edge_batch_out(1, [frame]).SerializeToString()).frames
    assert edge_frame_in(message) == frame


def test_a_count_of_nothing_is_not_an_unknown_one() -> None:
    for queued_us, beside in ((0, None), (None, 0), (0, 0), (None, None)):
        done = f.Done(1, made_id("att", 1), "stop", PoolCounts(), queued_us, beside)
        assert intake_frame_in(intake_batch_out(1, [done]).frames[0]) == done


@given(INTAKE_FRAMES)
def test_a_frame_of_the_intake_survives(frame: f.IntakeFrame) -> None:
    (message,) = session_pb2.IntakeBatch.FromString(intake_batch_out(1, [frame]).SerializeToString()).frames
    assert intake_frame_in(message) == frame


@given(REPLICA_FRAMES)
def test_a_frame_of_a_replica_survives(frame: replica.ReplicaFrame) -> None:
    data = replica.replica_frame_out(frame).SerializeToString()
    assert replica.replica_frame_in(replica_pb2.ReplicaFrame.FromString(data)) == frame


@given(st.builds(replica.WorkAssign, U64, GENERATIONS) | st.builds(replica.WorkCancel, U64))
def test_a_frame_to_a_replica_survives(frame: replica.WorkFrame) -> None:
    data = replica.work_frame_out(frame).SerializeToString()
    assert replica.work_frame_in(replica_pb2.WorkFrame.FromString(data)) == frame


PATHWAY = Pathway(
    "scc",  # type: ignore[arg-type]
    PathwayKind.EU_SCC,
    "a",  # type: ignore[arg-type]
    Role.CONTROLLER,
    "b",  # type: ignore[arg-type]
    Role.PROCESSOR,
    frozenset({Jurisdiction("CN")}),
    Personal.PERSONAL,
    frozenset({"contact"}),
    1,
    2,
    "drawer",
    module=2,
)
FULL = Facts(
    Entity("a", Jurisdiction("DE")),  # type: ignore[arg-type]
    Effective(Personal.NONE, Grade.PUBLIC, Domestic.NO, frozenset({Jurisdiction("DE")})),
    (PATHWAY,),
    role=Role.CONTROLLER,
    counters=(Counter(CounterKind.US_OMIC, 1, 2, 3),),
    notices=(("n", "1"),),
)
CITED = Citation(1, "sha256:" + "0" * 64, 1, 2, 0, "side")  # type: ignore[arg-type]


def known_label() -> labels_pb2.EffectiveLabel:
    return label_out(FULL.label)


@given(FACTS)
def test_facts_survive_with_everything_that_is_signed(facts: Facts) -> None:
    again = facts_in(labels_pb2.Facts.FromString(facts_out(facts).SerializeToString()))
    assert again == facts
    attempt, decision = made_id("att", 1), made_id("dec", 1)
    signed = [attestation_bytes("edge", attempt, decision, "pool", one, CITED, None) for one in (facts, again)]  # type: ignore[arg-type]
    assert signed[0] == signed[1], "what was signed can be checked after the wire"


@pytest.mark.parametrize("kind", [Personal, Grade, Domestic, Clean, Declared, Role, PathwayKind, CounterKind])
def test_every_value_that_we_have_has_a_place_on_the_wire(kind: type[Enum]) -> None:
    """A value without one would be a KeyError while a request waits."""
    for value in kind:
        facts = FULL
        if isinstance(value, Declared):
            facts = replace(facts, critical_infrastructure=value)
        elif isinstance(value, Role):
            facts = replace(facts, role=value, pathways=(replace(PATHWAY, exporter_role=value, importer_role=value),))
        elif isinstance(value, PathwayKind):
            facts = replace(facts, pathways=(replace(PATHWAY, kind=value),))
        elif isinstance(value, CounterKind):
            facts = replace(facts, counters=(Counter(value, 1, 2, 3),))
        else:
            facts = replace(facts, label=replace(facts.label, **{kind.__name__.lower(): value}))
        assert facts_in(facts_out(facts)) == facts


@pytest.mark.parametrize("kind", [Category, Purpose, Asset])
def test_every_word_of_the_vocabulary_crosses(kind: type[Enum]) -> None:
    axis = {Category: "categories", Purpose: "purpose", Asset: "asset"}[kind]
    everything = frozenset(word.value for word in kind) | UNKNOWN_SET
    label = replace(FULL.label, **{axis: everything})
    assert label_in(label_out(label)) == label


@pytest.mark.parametrize("field", ["personal", "grade", "domestic", "clean"])
@pytest.mark.parametrize("number", [0, 99])
def test_a_label_value_of_another_version_is_refused(field: str, number: int) -> None:
    message = known_label()
    setattr(message, field, number)
    with pytest.raises(WireError) as refused:
        label_in(labels_pb2.EffectiveLabel.FromString(message.SerializeToString()))
    assert refused.value.field == f"label.{field}"


def test_a_message_without_a_kind_is_refused() -> None:
    cases: tuple[tuple[Any, object], ...] = (
        (edge_frame_in, session_pb2.EdgeFrame()),
        (intake_frame_in, session_pb2.IntakeFrame()),
        (replica.replica_frame_in, replica_pb2.ReplicaFrame()),
        (replica.work_frame_in, replica_pb2.WorkFrame()),
    )
    for parse, message in cases:
        with pytest.raises(WireError):
            parse(message)


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        message = session_pb2.Open.FromString(data)
    except DecodeError:
        return
    with pytest.raises(WireError):
        open_in(message)


def test_an_unknown_country_or_pathway_kind_is_refused() -> None:
    entity = labels_pb2.Entity(id="x", country="DE")
    label = known_label()
    with pytest.raises(WireError, match=r"entity\.country"):
        facts_in(labels_pb2.Facts(tenant=labels_pb2.Entity(id="x", country="XX"), label=label))
    with pytest.raises(WireError, match=r"pathway\.kind"):
        strange = labels_pb2.Pathway(id="p", kind="new", exporter="e")
        facts_in(labels_pb2.Facts(tenant=entity, label=label, pathways=[strange]))


def test_no_repr_holds_a_payload_or_a_token() -> None:
    words = "the words of the tenant"
    said = Said(Resume.TEXT, "sha256:", 1, words)  # type: ignore[arg-type]
    generation = Generation("m", (Message(Speaker.USER, words),), Sampling(stop=(words,)), said)  # type: ignore[arg-type]
    hello = replica.ReplicaHello(
        1,
        "r",  # type: ignore[arg-type]
        "p",  # type: ignore[arg-type]
        "i",
        "m",  # type: ignore[arg-type]
        1,
        1,
        Identity("", "", "", "", ""),
        words,
        {},
    )
    frames: list[object] = [
        f.Tokens(1, "a", 0, 1, words, ()),  # type: ignore[arg-type]
        replica.WorkTokens(1, words, (), 1),
        replica.WorkAssign(1, generation),
        hello,
    ]
    assert words not in repr(frames)


def test_a_server_takes_pings_more_often_than_a_client_sends_them() -> None:
    assert SERVER_PING_FLOOR_MS < CLIENT_PING_MS
