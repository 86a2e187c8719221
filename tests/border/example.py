"""The shipped two-sides example as a signed bundle, and ways out of the edge that the tests script."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from node_agent.uplink.routes import Way
from node_agent.uplink.sending import Sendable, Tally
from orchestrator.bundles.assemble import Bundle
from orchestrator.bundles.formats import SectionKind
from orchestrator.cli.house import EXAMPLES, side_soil
from orchestrator.cli.publish import load_directory
from orchestrator.placement.fleet import Pool
from orchestrator.placement.requests import PoolLoad
from orchestrator.policy.ids import EntityId, PathwayId, PoolId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Labels, Personal
from orchestrator.policy.pathways import ALL_CATEGORIES, Pathway, PathwayKind, Role
from orchestrator.wire.frames import StreamFrame, Tokens
from tests.bundles.sides import Document, File, Issue, Side, holdings_in, issue, make_side, take

Plan = Callable[[Sendable], list[StreamFrame]]
OVERSEAS_PERSONAL = Labels(personal=Personal.PERSONAL)
CONTRACT = Pathway(
    id=PathwayId("contract"),
    kind=PathwayKind.SG_CONTRACT,
    exporter=EntityId("acme-singapore"),
    exporter_role=Role.CONTROLLER,
    importer=EntityId("tidegate-domestic"),
    importer_role=Role.PROCESSOR,
    countries=frozenset({Jurisdiction("CN")}),
    personal_max=Personal.PERSONAL,
    categories=ALL_CATEGORIES,
    valid_from_ms=0,
    valid_until_ms=1 << 50,
    reference="drawer",
)
"""With it, personal data of Singapore may be processed in China, under art. 4 of CAC Order 16 and with its proof."""


@cache
def example_side(name: str) -> Side:
    """One of the two sides. Nobody changes it, so that its files are read and its key made once in a run."""
    files: list[File] = [
        (SectionKind(file.kind), file.name, json.loads(file.document)) for file in load_directory(EXAMPLES / name)
    ]
    return make_side(name, side_soil(name), files)


@dataclass
class Example:
    """Both sides, able to issue again."""

    number: int = 0

    def bundle(
        self, *, drains: tuple[str, ...] = (), without_pool: str | None = None, packs: tuple[Document, ...] = ()
    ) -> Bundle:
        """Issue the next manifest of the overseas side, with more packs of its own, and return its bundle."""
        self.number += 1
        return _issued(self.number, drains, without_pool, json.dumps(packs))


@lru_cache(maxsize=64)
def _issued(number: int, drains: tuple[str, ...], without_pool: str | None, packs: str) -> Bundle:
    """A bundle is immutable, and taking one up reads and tries every pack: the same one does for every test."""
    overseas, domestic = example_side("overseas"), example_side("domestic")
    files: list[File] = [(SectionKind.PACK, f"more-{at}", pack) for at, pack in enumerate(json.loads(packs))]
    for kind, name, document in overseas.files:
        changed = dict(document)
        if kind is SectionKind.SETTINGS:
            changed["drains"] = list(drains)
        if without_pool is not None and kind is SectionKind.FLEET:
            changed["pools"] = [pool for pool in document["pools"] if pool["id"] != without_pool]
        if without_pool is not None and kind is SectionKind.PRICES:
            changed["costs"] = [cost for cost in document["costs"] if cost["pool"] != without_pool]
        files.append((kind, name, changed))
    theirs: Issue = issue(domestic, 1)
    with TemporaryDirectory() as folder:
        holdings = holdings_in(Path(folder), overseas, domestic)
        take(holdings, issue(overseas, number, files=files, imported=theirs), theirs)
        bundle = holdings.bundle(overseas.name)
    assert bundle is not None
    return bundle


@dataclass
class ScriptedRoutes:
    """Where the uplink would be: remembers what left, and answers as planned. `when` is asked at each send."""

    plans: dict[str, Plan]
    on_send: Callable[[Sendable], None] = lambda _: None
    sent: list[tuple[PoolId, Sendable]] = field(default_factory=list)
    closed: int = 0
    down: frozenset[str] = frozenset()

    def view(self, pool: Pool, now_us: int) -> Way:
        return pool.id not in self.down, 50_000, PoolLoad(1, 4, 0, 0, 64, 10), 0

    def send(self, pool: Pool, sendable: Sendable, tally: Tally, now_us: int) -> Scripted:
        self.on_send(sendable)
        self.sent.append((pool.id, sendable))
        return Scripted(self, iter(self.plans[pool.id](sendable)), tally)


@dataclass
class Scripted:
    """An attempt that is answered as planned."""

    routes: ScriptedRoutes
    frames: Iterator[StreamFrame]
    tally: Tally
    given: int = 0
    open: bool = True

    async def next(self, now_us: int) -> StreamFrame | None:
        self.tally.delivered += self.given
        frame = next(self.frames, None)
        self.given = frame.count if isinstance(frame, Tokens) else 0
        self.tally.received += self.given
        return frame

    async def close(self) -> None:
        self.routes.closed += self.open
        self.open = False
