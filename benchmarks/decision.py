"""What a decision costs in processor time, stage by stage, in this process and without a network.

The world is that of `examples/two-sides`: its packs, its three pools and two edges, and the tenant in Singapore; signed
by one root that is made here and pins the soil of both sides.
"""

from __future__ import annotations

import base64
import gc
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import cast

import msgspec
from msgspec import structs

from benchmarks.figures import median, table
from orchestrator.bundles.assemble import Assembler, Bundle
from orchestrator.bundles.formats import Manifest, SectionEntry, SectionKind, build_section, sign_manifest, sign_section
from orchestrator.bundles.roots import Root, Roots, SigningKey, key_id_of
from orchestrator.cli.house import EXAMPLES, SIDES, side_soil
from orchestrator.cli.publish import SectionFile, load_directory
from orchestrator.engines.generation import Generation
from orchestrator.evidence.attestation import seal
from orchestrator.evidence.canonical import JsonValue, commit
from orchestrator.evidence.citation import Citation, attestation_bytes, facts_part
from orchestrator.evidence.duties import DISCHARGERS, Means, discharge
from orchestrator.evidence.inputs import InputManifest, manifest_of
from orchestrator.evidence.records import KIND, DecisionRecord, discharged_part, owed, sources_part
from orchestrator.evidence.signing import verify
from orchestrator.files.chat import ChatLimits, load_chat_request
from orchestrator.files.label_header import parse_label_header
from orchestrator.placement.asked import Asked, AskedWritten
from orchestrator.placement.capabilities import Capability
from orchestrator.placement.decide import Ground, gather, judge, label
from orchestrator.placement.explain import placement_to_json
from orchestrator.placement.fleet import Edge
from orchestrator.placement.pick import Placement, place
from orchestrator.placement.plan import Plan
from orchestrator.placement.requests import PlacementRequest, PoolLoad, PoolView
from orchestrator.placement.settings import PlacementSettings
from orchestrator.policy.bundle import Horizons
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import (
    RANDOM_BYTES,
    EdgeId,
    KeyId,
    PoolId,
    SideId,
    make_attempt_id,
    make_decision_id,
    make_request_id,
)
from orchestrator.policy.jurisdictions import expand
from orchestrator.policy.labels import LabelSources
from orchestrator.policy.permit import PERMIT_VERSION, permit_route
from orchestrator.policy.table import RouteTable, Tables
from orchestrator.policy.tenants import Tenant
from orchestrator.policy.verdicts import Verdict
from orchestrator.wire.frames import CREDIT_BYTES_MIN, Open
from scheduler.intake.second_permit import second_permit

SIDE = SideId("stand")
SOIL = tuple(code for side in SIDES for code in side_soil(side))
EDGE = EdgeId("edge-singapore")
TENANT = "acme-sg"
MODEL = "smollm2-135m-instruct"
LABELS = "personal=none, grade=general"
LIMITS = ChatLimits(max_tokens_max=8192)
MANY_POOLS = 200
BATCHES = 9
BATCH_NS = 30_000_000

EDGE_STAGE, SITE_STAGE, BESIDE = "edge", "scheduler", ""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage, ready to be run again and again."""

    name: str
    where: str
    """Who pays it on each request; empty where nobody does."""
    run: Callable[[], object]


@dataclass(frozen=True, slots=True)
class World:
    """What a decision stands on."""

    bundle: Bundle
    edge: Edge
    tenant: Tenant
    key: SigningKey
    """The edge's."""


def body_of(turns: int, words: int) -> bytes:
    """Return a chat body with that many messages of that many words. Pure."""
    text = " ".join(f"word{number % 97}" for number in range(words))
    messages = [{"role": "user" if turn % 2 == 0 else "assistant", "content": text} for turn in range(turns)]
    return msgspec.json.encode({"model": MODEL, "messages": messages, "stream": True, "max_tokens": 64})


def build_world(now_ms: int) -> World:
    """Sign the example files as one side and return what an edge would hold of them. Raises FileError."""
    root_key, edge_key = SigningKey.generate(), SigningKey.generate()
    root = Root(SIDE, key_id_of(root_key.public_key), root_key.public_key, expand(SOIL))
    bodies: dict[str, bytes] = {}
    entries: list[SectionEntry] = []
    for folder in SIDES:
        for file in load_directory(EXAMPLES / folder):
            if file.kind == SectionKind.SETTINGS.value and folder == "domestic":
                continue
            name = file.name if file.kind == SectionKind.SETTINGS.value else f"{folder}-{file.name}"
            section = build_section(SIDE, SectionKind(file.kind), name, _document(file, edge_key))
            bodies[section.digest] = section.body
            entries.append(sign_section(section, root_key, root.key_id))
    ordered = tuple(sorted(entries, key=SectionEntry.order))
    manifest = Manifest(SIDE, 1, now_ms, Horizons.from_issue(now_ms), PERMIT_VERSION, ordered, (), 0)
    digest = sign_manifest(manifest, root_key, root.key_id).digest
    bundle = Assembler(Roots([root])).assemble(
        manifest, digest, lambda entry: bodies.get(entry.digest), {}, law_only=False
    )
    edge = next(edge for edge in bundle.fleet.edges if edge.id == EDGE)
    tenant = next(tenant for tenant in bundle.tenants if tenant.id == TENANT)
    return World(bundle, edge, tenant, edge_key)


def stages(world: World, body: bytes, now_ms: int) -> list[Stage]:
    """Return every stage of one request with this body, each with what the stage before it made."""
    bundle, settings = world.bundle, world.bundle.settings
    if settings is None:
        raise ValueError("the example has no settings")
    generation = load_chat_request(body, LIMITS).generation
    sources = _label_sources(world)
    facts = gather(world.tenant, sources)
    ground = _ground(world, settings, now_ms)
    verdicts = judge(ground, facts, now_ms)
    shape = _shape(generation, body)
    views = {pool.id: _view(pool.id) for pool in bundle.fleet.pools}

    def placed() -> Placement:
        return place(shape, ground.plan, verdicts, views, settings, now_ms, 1)

    placement = placed()
    opened = _opened(world, placement, facts, generation, now_ms)
    signed = _attested(opened)
    signature, tables = world.key.sign(signed), Tables()
    asked = Asked(shape, views, 1, frozenset(), frozenset(), 0).to_json()
    many = _many_pools(world)
    problem = second_permit(opened, EDGE, bundle, bundle, now_ms).problem
    if problem is not None:
        raise ValueError(f"the second permit refuses what the first one allowed: {problem.code}")
    return [
        Stage("floor: msgspec decodes the same body", BESIDE, lambda: msgspec.json.decode(body)),
        Stage("strict chat parse", EDGE_STAGE, lambda: load_chat_request(body, LIMITS)),
        Stage("label", EDGE_STAGE, lambda: gather(world.tenant, _label_sources(world))),
        Stage(f"permit, {len(bundle.fleet.pools)} pools", EDGE_STAGE, lambda: judge(ground, facts, now_ms)),
        Stage(
            f"permit, {len(bundle.fleet.pools)} pools, none remembered",
            BESIDE,
            lambda: _verdicts(world, facts, now_ms),
        ),
        Stage(f"permit, {MANY_POOLS} pools, none remembered", BESIDE, lambda: _verdicts(many, facts, now_ms)),
        Stage("place", EDGE_STAGE, placed),
        Stage("input manifest, where the law wants one", EDGE_STAGE, lambda: _inputs(opened)),
        Stage(
            "record: duties, canonical bytes, commitment",
            EDGE_STAGE,
            lambda: _record(world, sources, placement, asked, opened, body).to_bytes(),
        ),
        Stage("sign, alone", EDGE_STAGE, lambda: seal(world.key.sign, [_attested(opened)])),
        Stage("check a signature", SITE_STAGE, lambda: verify(world.key.public_key, signed, signature)),
        Stage(
            "second permit, its signature known",
            SITE_STAGE,
            lambda: second_permit(opened, EDGE, bundle, bundle, now_ms, tables.permit_route),
        ),
    ]


def cost_us(run: Callable[[], object]) -> float:
    """Return the processor time of one call in microseconds: the median of batches."""
    run()
    calls, spent_ns = 1, _spent_ns(run, 1)
    while spent_ns < BATCH_NS // 4:
        calls *= 2
        spent_ns = _spent_ns(run, calls)
    calls = max(1, calls * BATCH_NS // max(1, spent_ns))
    gc.collect()
    return median([_spent_ns(run, calls) / calls / 1e3 for _ in range(BATCHES)])


def measure() -> dict[str, object]:
    """Return the cost of every stage in microseconds, for a short prompt and for a long conversation."""
    now_ms = int(time.time() * 1000)
    world = build_world(now_ms)
    bodies = {"short": body_of(1, 10), "long": body_of(20, 70)}
    found: dict[str, object] = {"body_bytes": {name: len(body) for name, body in bodies.items()}}
    rows: dict[str, dict[str, object]] = {}
    for name, body in bodies.items():
        for stage in stages(world, body, now_ms):
            row = rows.setdefault(stage.name, {"stage": stage.name, "where": stage.where})
            row[f"{name}_us"] = cost_us(stage.run)
    found["stages"] = list(rows.values())
    return found


def rendered(found: Mapping[str, object]) -> str:
    """Return the costs as a table, with a sum for each program. Pure."""
    sizes = cast("dict[str, int]", found["body_bytes"])
    costs = cast("list[dict[str, float | str]]", found["stages"])
    rows = [(str(one["stage"]), str(one["where"]), *(f"{one[f'{name}_us']:.1f}" for name in sizes)) for one in costs]
    for where in (EDGE_STAGE, SITE_STAGE):
        sums = [sum(float(one[f"{name}_us"]) for one in costs if one["where"] == where) for name in sizes]
        rows.append((f"{where}, in all", where, *(f"{total:.1f}" for total in sums)))
    columns = ("stage", "paid by", *(f"{name} ({size} bytes)" for name, size in sizes.items()))
    return table("a decision: microseconds of processor time", columns, rows)


def _spent_ns(run: Callable[[], object], calls: int) -> int:
    begun_ns = time.process_time_ns()
    for _ in range(calls):
        run()
    return time.process_time_ns() - begun_ns


def _document(file: SectionFile, edge_key: SigningKey) -> dict[str, JsonValue]:
    """Return a section with the key that this world signs with, where it names one."""
    document = cast("dict[str, JsonValue]", msgspec.json.decode(file.document))
    if file.kind == SectionKind.FLEET.value:
        public = base64.b64encode(edge_key.public_key).decode("ascii")
        for edge in cast("list[dict[str, JsonValue]]", document.get("edges", [])):
            edge["keys"] = [{"id": key_id_of(edge_key.public_key), "public_key": public}]
    return document


def _label_sources(world: World) -> LabelSources:
    return label(world.tenant, parse_label_header(LABELS), world.edge)


def _ground(world: World, settings: PlacementSettings, now_ms: int) -> Ground:
    """Return what the edge decides on, with its law compiled. Payloads with one label share an answer, as there."""
    bundle = world.bundle
    table = RouteTable(bundle.law, world.edge.place, [pool.place for pool in bundle.fleet.pools], now_ms)
    revoked = bundle.revoked
    plan = Plan(world.edge.id, bundle.fleet, bundle.prices, settings.currency)
    return Ground(
        table, bundle.fleet, plan, settings, revoked.pools, revoked.pathways, DISCHARGERS.keys()
    )


def _verdicts(world: World, facts: Facts, now_ms: int) -> dict[PoolId, Verdict]:
    """Ask the interpreter, which remembers nothing."""
    law, here = world.bundle.law, world.edge.place
    return {pool.id: permit_route(law, facts, here, pool.place, now_ms) for pool in world.bundle.fleet.pools}


def _many_pools(world: World) -> World:
    """Return the world with a fleet of MANY_POOLS, copies of its own pools."""
    own = world.bundle.fleet.pools
    pools = tuple(replace(own[number % len(own)], id=PoolId(f"pool-{number}")) for number in range(MANY_POOLS))
    fleet = replace(world.bundle.fleet, pools=pools)
    return replace(world, bundle=replace(world.bundle, fleet=fleet))


def _shape(generation: Generation, body: bytes) -> PlacementRequest:
    chars = sum(len(message.text) for message in generation.messages)
    needs = frozenset({Capability.CHAT, Capability.STREAM})
    return PlacementRequest(generation.model, needs, 1 + chars // 4, 64, len(body))


def _view(pool: PoolId) -> PoolView:
    load = PoolLoad(replicas=1, slots=4, running=1, waiting=0, waiting_max=64, age_ms=100)
    return PoolView(pool, up=True, rtt_us=200_000, load=load, own_in_flight=1)


def _opened(world: World, placement: Placement, facts: Facts, generation: Generation, now_ms: int) -> Open:
    """Return the attempt as the scheduler gets it. Raises ValueError when nothing was chosen."""
    if placement.chosen is None:
        raise ValueError("the example permits this request nowhere")
    bundle = world.bundle
    citation = Citation(bundle.number, bundle.digest, now_ms, PERMIT_VERSION, bundle.revocations.number, SIDE)
    unsigned = Open(
        stream=1,
        attempt=make_attempt_id(now_ms, secrets.token_bytes(RANDOM_BYTES)),
        decision=make_decision_id(now_ms, secrets.token_bytes(RANDOM_BYTES)),
        request=make_request_id(now_ms, secrets.token_bytes(RANDOM_BYTES)),
        pool=placement.chosen.pool.id,
        generation=generation,
        facts=facts,
        citation=citation,
        key_id=key_id_of(world.key.public_key),
        signature=b"",
        credit_bytes=CREDIT_BYTES_MIN,
        budget_ms=60_000,
    )
    whole = structs.replace(unsigned, inputs=_inputs(unsigned))
    return structs.replace(whole, signature=seal(world.key.sign, [_attested(whole)])[0])


def _inputs(opened: Open) -> InputManifest:
    """Name what goes in, as for personal data that goes to China: the law asks for no proof about general data."""
    return manifest_of(
        opened.attempt, opened.generation.texts(), opened.facts.label, _COMMITMENT_KEY, _COMMITMENT_KEY_ID
    )


def _attested(opened: Open) -> bytes:
    """Return the bytes that the edge signs."""
    inputs = None if opened.inputs is None else opened.inputs.digest
    return attestation_bytes(EDGE, opened.attempt, opened.decision, opened.pool, opened.facts, opened.citation, inputs)


def _record(
    world: World,
    sources: LabelSources,
    placement: Placement,
    asked: AskedWritten,
    opened: Open,
    body: bytes,
) -> DecisionRecord:
    """Return the edge's decision record, with the whole account of the placement."""
    duties = () if placement.chosen is None else placement.chosen.verdict.obligations
    return DecisionRecord(
        id=opened.decision,
        request=opened.request,
        client_request=None,
        attempt=opened.attempt,
        side=SIDE,
        program="edge",
        edge=EDGE,
        tenant=world.tenant.id,
        key_id=world.tenant.keys[0].id,
        model=opened.generation.model,
        pool=opened.pool,
        outcome="sent",
        labels=sources_part(sources),
        facts=facts_part(opened.facts),
        citation=opened.citation,
        placement=placement_to_json(placement),
        asked=asked,
        inputs=None if opened.inputs is None else opened.inputs.written,
        commitment=commit(_COMMITMENT_KEY, _COMMITMENT_KEY_ID, (body,)),
        payload_bytes=len(body),
        regulated=False,
        retention=owed(duties).retention,
        discharged=discharged_part(discharge(duties, Means(opened.facts, opened.decision, opened.inputs)) or ()),
        decided_ms=opened.citation.now_ms,
        continues=None,
        first_token=0,
        kind=KIND,
    )


_COMMITMENT_KEY_ID = KeyId("commitment0")
_COMMITMENT_KEY = secrets.token_bytes(32)
