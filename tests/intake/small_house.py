"""Two small sides with real, signed bundles: one edge in SG, one pool in CN, and a law that a test can change."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.bundles.assemble import Assembler, Bundle
from orchestrator.bundles.formats import SectionEntry, SectionKind
from orchestrator.bundles.revocations import RevocationList, Revoked
from orchestrator.bundles.roots import SigningKey, key_id_of
from orchestrator.engines.generation import Generation, Message, Role, Sampling
from orchestrator.evidence.attestation import seal
from orchestrator.evidence.citation import Citation, attestation_bytes
from orchestrator.evidence.inputs import InputManifest, manifest_of
from orchestrator.policy.entities import Entity
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import AttemptId, DecisionId, EdgeId, EntityId, KeyId, ModelId, PoolId, RequestId, SideId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Domestic, Effective, Grade, Personal
from orchestrator.policy.permit import PERMIT_VERSION
from orchestrator.policy.vocabulary import Asset, Purpose
from orchestrator.wire.frames import CREDIT_BYTES_MIN, Open
from tests.bundles.sides import (
    MODEL,
    NOW_MS,
    Document,
    File,
    Side,
    fleet,
    issue,
    make_side,
    placement_settings,
    prices,
    roots_of,
)
from tests.session.world import made_id

EDGE, POOL = EdgeId("sg-edge"), PoolId("cn-pool")
EDGE_OPERATOR, POOL_OPERATOR = EntityId("harbour-sg"), EntityId("river-cn")
TENANT = Entity(EntityId("acme"), Jurisdiction("SG"))
OVERSEAS, DOMESTIC = SideId("overseas"), SideId("domestic")
MILD = Effective(
    Personal.NONE,
    Grade.GENERAL,
    Domestic.NO,
    frozenset({Jurisdiction("SG")}),
    collected=frozenset({Jurisdiction("SG")}),
    purpose=frozenset({Purpose.INFERENCE.value}),
    asset=frozenset({Asset.PAYLOAD.value}),
)

BOTH_WAYS: Document = {"action": {"in": ["infer", "return"]}}
EDGE_KEY = SigningKey.generate()
EDGE_KEY_ID = key_id_of(EDGE_KEY.public_key)


def rule(name: str, effect: str, when: list[Document], **fields: Any) -> Document:
    """A rule with the vectors that its condition on `personal` (or on nothing but the action) needs."""
    grant = effect == "grant"
    low = {"label": {"personal": "none", "grade": "general"}, "from": ["SG"], "target": ["CN"], "action": "infer"}
    high = {"label": {"personal": "sensitive", "grade": "core"}, "from": ["SG"], "target": ["CN"], "action": "infer"}
    return {
        "id": name,
        "effect": effect,
        "when": when,
        "sentence": f"{name} says so.",
        "source": {"instrument": "Test Act", "article": "1", "dated": "2026-01-01"},
        "confidence": "high",
        "vectors": [{**low, "expect": "holds" if grant else "not"}, {**high, "expect": "not" if grant else "holds"}],
        **fields,
    }


def grant(prefix: str) -> Document:
    """What is at most personal and general may go and come back."""
    when: list[Document] = [{"personal": {"at_most": "personal"}}, {"grade": {"at_most": "general"}}, BOTH_WAYS]
    return rule(f"{prefix}-GRANT", "grant", when)


def require(prefix: str, kind: str, actions: list[str]) -> Document:
    """Personal data needs a pathway for these movements."""
    vectors = [
        {"label": {"personal": level}, "from": ["SG"], "target": ["CN"], "action": actions[0], "expect": expect}
        for level, expect in (("personal", "holds"), ("none", "not"))
    ]
    when: list[Document] = [{"personal": {"at_least": "personal"}}, {"action": {"in": actions}}]
    return rule(f"{prefix}-REQUIRE", "require", when, requires=[kind], vectors=vectors)


def forbid(prefix: str) -> Document:
    """General data and above does not move."""
    vectors = [
        {"label": {"grade": grade}, "from": ["SG"], "target": ["CN"], "action": "infer", "expect": expect}
        for grade, expect in (("general", "holds"), ("public", "not"))
    ]
    return rule(f"{prefix}-FORBID", "forbid", [{"grade": {"at_least": "general"}}], vectors=vectors)


def owe(prefix: str, *duties: Document) -> Document:
    """Every such movement comes with these duties."""
    vectors = [
        {"label": {"personal": "none"}, "from": ["SG"], "target": ["CN"], "action": action, "expect": expect}
        for action, expect in (("infer", "holds"), ("export", "not"))
    ]
    return rule(f"{prefix}-OBLIGE", "oblige", [BOTH_WAYS], obligations=list(duties), vectors=vectors)


def oblige(prefix: str, retain: str) -> Document:
    """Records of every such movement are kept."""
    return owe(prefix, {"retain": retain})


def pack(name: str, jurisdiction: str, rules: list[Document]) -> Document:
    """A pack in force."""
    return {
        "version": 1,
        "id": name,
        "title": "A pack for tests",
        "topic": "transfer",
        "jurisdictions": [jurisdiction],
        "effective_from": "2026-01-01",
        "mode": "enforce",
        "rules": rules,
    }


@dataclass
class House:
    """Both sides. Change `sg_rules`, `cn_rules`, `edge_keys` or `pools`, and ask for the next bundle."""

    sg_rules: list[Document] = field(default_factory=lambda: [grant("SG")])
    cn_rules: list[Document] = field(default_factory=lambda: [grant("CN")])
    edge_keys: tuple[SigningKey, ...] = (EDGE_KEY,)
    edges: bool = True
    pools: bool = True
    overseas: Side = field(default_factory=lambda: make_side("overseas", ("SG",), ()))
    domestic: Side = field(default_factory=lambda: make_side("domestic", ("CN",), ()))
    number: int = 0

    def bundle(self, side: SideId, revoked: Mapping[SideId, Revoked] | None = None) -> Bundle:
        """Issue a manifest of `side` that imports the other one, and return its bundle."""
        self.number += 1
        ours, theirs = (self.overseas, self.domestic) if side == OVERSEAS else (self.domestic, self.overseas)
        imported = issue(theirs, self.number, files=self._files(theirs.name))
        issued = issue(ours, self.number, files=self._files(side), imported=imported)
        bodies = {**imported.bodies, **issued.bodies}

        def body_of(entry: SectionEntry) -> bytes:
            return bodies[entry.digest]

        lists = {name: RevocationList(name, 1, NOW_MS, what) for name, what in (revoked or {}).items()}
        assembler = Assembler(roots_of(self.overseas, self.domestic))
        return assembler.assemble(issued.manifest, issued.signed.digest, body_of, lists, law_only=False)

    def _files(self, side: SideId) -> list[File]:
        if side == OVERSEAS:
            places = fleet(EDGE, "sg-pool", "SG", EDGE_OPERATOR)
            places["edges"][0]["keys"] = [
                {"id": key_id_of(key.public_key), "public_key": base64.b64encode(key.public_key).decode()}
                for key in self.edge_keys
            ]
            places["pools"] = []
            places["edges"] = places["edges"] if self.edges else []
            packed = pack("sg", "SG", self.sg_rules)
            return [(SectionKind.PACK, "sg", packed), (SectionKind.FLEET, "fleet", places), SETTINGS]
        places = fleet("cn-edge", POOL, "CN", POOL_OPERATOR)
        places["edges"] = []
        places["pools"] = places["pools"] if self.pools else []
        packed = pack("cn", "CN", self.cn_rules)
        costs = (SectionKind.PRICES, "prices", prices(POOL))
        return [(SectionKind.PACK, "cn", packed), (SectionKind.FLEET, "fleet", places), costs, SETTINGS]


SETTINGS: File = (SectionKind.SETTINGS, "settings", placement_settings())


def citation(cited: Bundle, now_ms: int = NOW_MS) -> Citation:
    """Cite a bundle as an edge does."""
    return Citation(cited.number, cited.digest, now_ms, PERMIT_VERSION, cited.revocations.number, cited.side)


ATTEMPT, DECISION = AttemptId(made_id("att", 1)), DecisionId(made_id("dec", 1))
GENERATION = Generation(
    ModelId(MODEL), (Message(Role.SYSTEM, "Be brief."), Message(Role.USER, "hello")), Sampling()
)


def manifest(label: Effective = MILD, generation: Generation = GENERATION) -> InputManifest:
    """What an edge says that it sends."""
    return manifest_of(ATTEMPT, generation.texts(), label, b"k" * 32, KeyId("commit"))


def opened(
    facts: Facts,
    cites: Citation,
    key: SigningKey = EDGE_KEY,
    key_id: KeyId | None = None,
    inputs: InputManifest | None = None,
) -> Open:
    """An attempt as an edge signs it."""
    attempt, decision = ATTEMPT, DECISION
    digest = None if inputs is None else inputs.digest
    return Open(
        1,
        attempt,
        decision,
        RequestId(made_id("req", 1)),
        POOL,
        GENERATION,
        facts,
        cites,
        key_id_of(key.public_key) if key_id is None else key_id,
        seal(key.sign, [attestation_bytes(EDGE, attempt, decision, POOL, facts, cites, digest)])[0],
        CREDIT_BYTES_MIN,
        60_000,
        inputs,
    )
