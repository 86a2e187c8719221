"""From a manifest and its sections to a `Bundle`: what a program decides by. Pure, apart from remembering sections.

The sections of the other side only add. A pack of theirs grants under the law of their own root and no other; a pool of
theirs stands on their soil and is new to us; a price of theirs is that of their pool. Anything else refuses the whole
bundle, and the last good one stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from orchestrator.bundles.bodies import Content, content_of
from orchestrator.bundles.formats import Manifest, SectionEntry, open_section
from orchestrator.bundles.refusals import BundleRefused, RefusalCode
from orchestrator.bundles.revocations import RevocationList, Revoked, joined, nothing_revoked
from orchestrator.bundles.roots import Root, Roots
from orchestrator.placement.fleet import Edge, Fleet, Pool, Prices, Sink
from orchestrator.placement.settings import PlacementSettings
from orchestrator.policy.bundle import AdmittedPack, Law
from orchestrator.policy.entities import Entity
from orchestrator.policy.ids import Digest, EntityId, KeyId, SideId
from orchestrator.policy.permit import PERMIT_VERSION
from orchestrator.policy.places import Place
from orchestrator.policy.tenants import KeyHash, Tenant


@dataclass(frozen=True, slots=True)
class TenantKey:
    """An API key with the tenant that it belongs to."""

    tenant: Tenant
    key: KeyHash


@dataclass(frozen=True, slots=True)
class Bundle:
    """Everything that one manifest names, as values. Immutable; revocations are replaced by a new value."""

    side: SideId
    number: int
    digest: Digest
    manifest: Manifest = field(repr=False)
    law: Law = field(repr=False)
    """Of both sides, under the effective horizons of the manifest."""
    fleet: Fleet = field(repr=False)
    """Of both sides."""
    prices: Prices = field(repr=False)
    """Costs of both sides' pools, price books of this side."""
    settings: PlacementSettings | None = field(repr=False)
    """None when the side publishes none, and when only the law was read."""
    tenants: tuple[Tenant, ...] = field(repr=False)
    law_only: bool
    """Whether tenants and settings were left out: they are the other side's, and known by digest alone."""
    revocations: RevocationList = field(repr=False)
    """The newest list of this side."""
    revoked: Revoked = field(repr=False)
    """What this side revokes, and what others revoke that is not this side's: nobody takes our own edges from us."""
    keys: Mapping[KeyId, TenantKey] = field(repr=False)
    """Every API key of `tenants`, by its public id."""

    def with_revocations(self, lists: Mapping[SideId, RevocationList]) -> Bundle:
        """Return this bundle under other revocation lists."""
        own = lists.get(self.side, nothing_revoked(self.side))
        return replace(self, revocations=own, revoked=_revoked(self.side, self.fleet, self.tenants, lists))


class Assembler:
    """Makes bundles. Remembers what a section became, so that the next manifest costs only what changed in it."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots
        self._opened: dict[tuple[Digest, KeyId, bytes], Content] = {}

    def open(self, entry: SectionEntry, body: bytes) -> Content:
        """Check one section and return its content. Raises BundleRefused."""
        memory = (entry.digest, entry.key_id, entry.signature)
        found = self._opened.get(memory)
        # The same bytes under another name would be another section: their envelope names kind, side and name.
        if found is not None and found.title == entry.title:
            return found
        section = open_section(entry, body, self._roots)
        content = content_of(section)
        self._opened[memory] = content
        return content

    def knows(self, entry: SectionEntry) -> bool:
        """Whether the content of a section is remembered, so that its bytes are not needed."""
        found = self._opened.get((entry.digest, entry.key_id, entry.signature))
        return found is not None and found.title == entry.title

    def keep(self, manifests: Iterable[Manifest]) -> None:
        """Forget every section that none of these manifests names."""
        named = {(e.digest, e.key_id, e.signature) for manifest in manifests for e in manifest.sections}
        for memory in [memory for memory in self._opened if memory not in named]:
            del self._opened[memory]

    def assemble(
        self,
        manifest: Manifest,
        digest: Digest,
        body_of: Callable[[SectionEntry], bytes | None],
        lists: Mapping[SideId, RevocationList],
        *,
        law_only: bool,
    ) -> Bundle:
        """Return the bundle of a checked manifest. `body_of` gives the bytes of a section. Raises BundleRefused."""
        if manifest.permit_version != PERMIT_VERSION:
            sentence = f"Manifest {manifest.number} of {manifest.side} is for another version of permit."
            raise BundleRefused(RefusalCode.UNKNOWN_PERMIT_VERSION, sentence)
        contents: list[tuple[SectionEntry, Content]] = []
        for entry in manifest.needed(law_only):
            body = b"" if self.knows(entry) else body_of(entry)
            if body is None:
                raise BundleRefused(RefusalCode.MISSING_SECTION, f"Section {entry.title} is not there.")
            contents.append((entry, self.open(entry, body)))
        tenants = tuple(tenant for _, content in contents for tenant in content.tenants)
        fleet = self._fleet(contents)
        return Bundle(
            side=manifest.side,
            number=manifest.number,
            digest=digest,
            manifest=manifest,
            law=Law(self._packs(contents), manifest.effective_horizons()),
            fleet=fleet,
            prices=_prices(manifest.side, contents),
            settings=_settings(contents),
            tenants=tenants,
            law_only=law_only,
            revocations=lists.get(manifest.side, nothing_revoked(manifest.side)),
            revoked=_revoked(manifest.side, fleet, tenants, lists),
            keys=_keys(tenants),
        )

    def _packs(self, contents: list[tuple[SectionEntry, Content]]) -> tuple[AdmittedPack, ...]:
        found: list[AdmittedPack] = []
        for entry, content in contents:
            if content.pack is not None:
                root = self._root(entry)
                found.append(AdmittedPack(content.pack, content.pack.jurisdictions & root.jurisdictions))
        _once("pack", (f"{admitted.pack.id} version {admitted.pack.version}" for admitted in found))
        return tuple(found)

    def _fleet(self, contents: list[tuple[SectionEntry, Content]]) -> Fleet:
        edges: list[Edge] = []
        pools: list[Pool] = []
        sinks: list[Sink] = []
        for entry, content in contents:
            if content.fleet is None:
                continue
            for edge in content.fleet.edges:
                self._check_place(entry, f"edge {edge.id}", edge.side, edge.place)
            for pool in content.fleet.pools:
                self._check_place(entry, f"pool {pool.id}", pool.side, pool.place)
            for sink in content.fleet.sinks:
                self._check_place(entry, f"sink {sink.id}", sink.side, sink.place)
            edges += content.fleet.edges
            pools += content.fleet.pools
            sinks += content.fleet.sinks
        _check_entities((*edges, *pools, *sinks))
        _once("edge", (edge.id for edge in edges))
        _once("pool", (pool.id for pool in pools))
        _once("sink", (sink.id for sink in sinks))
        return Fleet(tuple(edges), tuple(pools), tuple(sinks))

    def _check_place(self, entry: SectionEntry, what: str, side: SideId, place: Place) -> None:
        """A side declares its own places on its own soil: a pool that only claims to be elsewhere changes the law."""
        if side != entry.side:
            sentence = f"Section {entry.title} declares {what} for another side."
            raise BundleRefused(RefusalCode.FOREIGN_SOIL, sentence)
        beyond = place.soil() - self._root(entry).jurisdictions
        if beyond:
            sentence = f"Section {entry.title} puts {what} on soil that its root does not name: {sorted(beyond)[0]}."
            raise BundleRefused(RefusalCode.FOREIGN_SOIL, sentence)

    def _root(self, entry: SectionEntry) -> Root:
        root = self._roots.find(entry.side, entry.key_id)
        if root is None:
            raise BundleRefused(RefusalCode.UNKNOWN_KEY, f"Section {entry.title} is signed by no pinned root.")
        return root


def _check_entities(members: Iterable[Edge | Pool | Sink]) -> None:
    """One id is one legal person, whoever names it: a pathway is held with an id."""
    known: dict[EntityId, Entity] = {}
    for member in members:
        for entity in (member.place.operator, *member.place.accessors):
            if known.setdefault(entity.id, entity) != entity:
                raise BundleRefused(RefusalCode.CONFLICT, f"Entity {entity.id} is declared in two ways.")


def _prices(side: SideId, contents: list[tuple[SectionEntry, Content]]) -> Prices:
    """Our costs of any pool, the other side's costs of its own pools where we have none, and the books of this side."""
    owners = {
        pool.id: entry.side for entry, content in contents if content.fleet is not None for pool in content.fleet.pools
    }
    priced = [(entry.side, content.prices) for entry, content in contents if content.prices is not None]
    ours = [cost for owner, prices in priced if owner == side for cost in prices.costs]
    known = {(cost.pool, cost.model) for cost in ours}
    theirs = [
        cost
        for owner, prices in priced
        if owner != side
        for cost in prices.costs
        if owners.get(cost.pool) == owner and (cost.pool, cost.model) not in known
    ]
    costs = (*ours, *theirs)
    books = tuple(book for owner, prices in priced if owner == side for book in prices.books)
    _once("cost of", (f"{cost.model} at {cost.pool}" for cost in costs))
    _once("price book", (book.id for book in books))
    return Prices(costs, books)


def _settings(contents: list[tuple[SectionEntry, Content]]) -> PlacementSettings | None:
    found = [content.settings for _, content in contents if content.settings is not None]
    if len(found) > 1:
        raise BundleRefused(RefusalCode.CONFLICT, "A side has one section of settings.")
    return found[0] if found else None


def _keys(tenants: tuple[Tenant, ...]) -> Mapping[KeyId, TenantKey]:
    _once("tenant", (tenant.id for tenant in tenants))
    _once("API key", (key.id for tenant in tenants for key in tenant.keys))
    return MappingProxyType({key.id: TenantKey(tenant, key) for tenant in tenants for key in tenant.keys})


def _revoked(
    side: SideId, fleet: Fleet, tenants: tuple[Tenant, ...], lists: Mapping[SideId, RevocationList]
) -> Revoked:
    own = lists.get(side, nothing_revoked(side)).revoked
    others = joined(one for name, one in lists.items() if name != side)
    if others == Revoked():
        return own
    edges = [edge for edge in fleet.edges if edge.side == side]
    ours = Revoked(
        tenants=frozenset(tenant.id for tenant in tenants),
        keys=frozenset(
            [key.id for tenant in tenants for key in tenant.keys] + [key.id for edge in edges for key in edge.keys]
        ),
        pools=frozenset(pool.id for pool in fleet.pools if pool.side == side),
        edges=frozenset(edge.id for edge in edges),
    )
    return own.joined(others.without(ours))


def _once(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise BundleRefused(RefusalCode.CONFLICT, f"There are two of {what} {name}.")
        seen.add(name)
