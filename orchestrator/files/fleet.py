"""The declared fleet of one side: its entities, edges and pools. The side itself comes from the caller."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping

from msgspec import UNSET, UnsetType

from orchestrator.files.domain_error import DomainError
from orchestrator.files.fields import (
    Count,
    CountOrZero,
    EntityDocument,
    Version,
    Written,
    read_entity,
    read_jurisdictions,
    read_model,
    read_name,
    read_names,
    read_public_key,
    read_revision,
    refuse_repeats,
)
from orchestrator.files.typed import FieldPath
from orchestrator.placement.capabilities import Capability
from orchestrator.placement.fleet import Assurance, Edge, EdgeKey, Fleet, Pool, PrefixCache, ServedModel, Sink
from orchestrator.policy.entities import Entity, with_indirect_owners
from orchestrator.policy.ids import EdgeId, EntityId, KeyId, PlaceId, PoolId, SchedulerId, SideId
from orchestrator.policy.places import Place, SinkKind

Entities = Mapping[EntityId, Entity]

_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*\Z")
_PORT = re.compile(r"[1-9][0-9]{0,4}\Z")


class PlaceDocument(Written, frozen=True):
    """Where a payload is; accessors and operator are ids of entities of the same file."""

    infers: tuple[str, ...]
    operator: str
    stores: tuple[str, ...] = ()
    accessors: tuple[str, ...] = ()


class EdgeKeyDocument(Written, frozen=True):
    """A public key (Ed25519, base64) with which an edge signs what it attests."""

    id: str
    public_key: str


class EdgeDocument(Written, frozen=True):
    """A node agent at one region."""

    id: str
    region: str
    place: PlaceDocument
    keys: tuple[EdgeKeyDocument, ...]


class ServedModelDocument(Written, frozen=True):
    """A model as one pool serves it."""

    id: str
    context_tokens: Count
    capabilities: tuple[Capability, ...]
    prefill_us_per_token: CountOrZero
    decode_us_per_token: CountOrZero
    stream_us_per_token: CountOrZero | UnsetType = UNSET
    """More per output token for each stream beside it; left out: as if a full pool took twice as long."""
    revision: str | UnsetType = UNSET


class PoolDocument(Written, frozen=True):
    """GPUs behind one scheduler (`two-party`: scheduler and intake), or one engine (`edge-only`: engine)."""

    id: str
    region: str
    accelerator: str
    place: PlaceDocument
    assurance: Assurance
    models: tuple[ServedModelDocument, ...]
    slots: Count
    scheduler: str | UnsetType = UNSET
    intake: str | UnsetType = UNSET
    engine: str | UnsetType = UNSET
    reachable_from: tuple[str, ...] = ()
    prefix_cache: PrefixCache = PrefixCache.NONE
    """`shared` where engines reuse prefixes between requests: then no proof about inputs can be given."""


class SinkDocument(Written, frozen=True):
    """Where logs, traces, results, cached prefixes or artefacts are kept: a place like a pool."""

    id: str
    kind: SinkKind
    place: PlaceDocument


class FleetDocument(Written, frozen=True):
    """The declared fleet of one side."""

    version: Version
    entities: tuple[EntityDocument, ...]
    edges: tuple[EdgeDocument, ...] = ()
    pools: tuple[PoolDocument, ...] = ()
    sinks: tuple[SinkDocument, ...] = ()


def fleet_of(document: FleetDocument, side: SideId) -> Fleet:
    """Return the fleet of `side`. Ids are unique, and every id that is named is declared. Raises DomainError."""
    entities = _entities(document)
    edges = tuple(_edge(edge, side, entities, ("edges", index)) for index, edge in enumerate(document.edges))
    refuse_repeats((edge.id for edge in edges), ("edges",), "id")
    names = frozenset(edge.id for edge in edges)
    pools = tuple(_pool(pool, side, entities, names, ("pools", index)) for index, pool in enumerate(document.pools))
    refuse_repeats((pool.id for pool in pools), ("pools",), "id")
    sinks = tuple(_sink(sink, side, entities, ("sinks", index)) for index, sink in enumerate(document.sinks))
    refuse_repeats((sink.id for sink in sinks), ("sinks",), "id")
    taken: dict[str, str] = {edge.id: "an edge" for edge in edges}
    ids: tuple[tuple[str, list[str]], ...]
    ids = (("pools", [pool.id for pool in pools]), ("sinks", [sink.id for sink in sinks]))
    for field, named in ids:
        for index, one in enumerate(named):
            if one in taken:
                expected = f"expected another id: {taken[one]} has it, and both name places"
                raise DomainError((field, index, "id"), expected)
        taken |= dict.fromkeys(named, f"a {field[:-1]}")
    return Fleet(edges, pools, sinks)


def _entities(document: FleetDocument) -> Entities:
    entities = tuple(read_entity(entity, ("entities", index)) for index, entity in enumerate(document.entities))
    refuse_repeats((entity.id for entity in entities), ("entities",), "id")
    found = {entity.id: entity for entity in entities}
    for index, entity in enumerate(entities):
        for number, owner in enumerate(entity.owners):
            listed = found.get(owner.entity)
            if listed is not None and listed.country != owner.country:
                path: FieldPath = ("entities", index, "owners", number, "country")
                raise DomainError(path, "expected the country that this file gives for that entity")
    return with_indirect_owners(found)


def _place(document: PlaceDocument, place: str, entities: Entities, path: FieldPath) -> Place:
    accessors = tuple(
        _entity(name, entities, (*path, "accessors", index)) for index, name in enumerate(document.accessors)
    )
    refuse_repeats(document.accessors, (*path, "accessors"))
    return Place(
        id=PlaceId(place),
        infers=read_jurisdictions(document.infers, (*path, "infers")),
        stores=read_jurisdictions(document.stores, (*path, "stores")) if document.stores else frozenset(),
        accessors=accessors,
        operator=_entity(document.operator, entities, (*path, "operator")),
    )


def _entity(name: str, entities: Entities, path: FieldPath) -> Entity:
    found = entities.get(EntityId(name))
    if found is None:
        raise DomainError(path, "expected the id of an entity of this file")
    return found


def _edge(document: EdgeDocument, side: SideId, entities: Entities, path: FieldPath) -> Edge:
    name = read_name(document.id, (*path, "id"))
    if not document.keys:
        raise DomainError((*path, "keys"), "expected at least one key")
    keys = tuple(
        EdgeKey(
            KeyId(read_name(key.id, (*path, "keys", index, "id"))),
            read_public_key(key.public_key, (*path, "keys", index, "public_key")),
        )
        for index, key in enumerate(document.keys)
    )
    refuse_repeats((key.id for key in keys), (*path, "keys"), "id")
    return Edge(
        id=EdgeId(name),
        side=side,
        region=read_name(document.region, (*path, "region")),
        place=_place(document.place, name, entities, (*path, "place")),
        keys=keys,
    )


def _pool(document: PoolDocument, side: SideId, entities: Entities, edges: frozenset[EdgeId], path: FieldPath) -> Pool:
    name = read_name(document.id, (*path, "id"))
    if not document.models:
        raise DomainError((*path, "models"), "expected at least one model")
    models = tuple(_served(model, (*path, "models", index)) for index, model in enumerate(document.models))
    refuse_repeats((model.id for model in models), (*path, "models"), "id")
    _check_assurance(document, path)
    scheduler, intake, engine = document.scheduler, document.intake, document.engine
    reachable_from = read_names(document.reachable_from, (*path, "reachable_from"))
    for index, edge in enumerate(reachable_from):
        if EdgeId(edge) not in edges:
            raise DomainError((*path, "reachable_from", index), "expected the id of an edge of this file")
    return Pool(
        id=PoolId(name),
        side=side,
        region=read_name(document.region, (*path, "region")),
        accelerator=read_name(document.accelerator, (*path, "accelerator")),
        place=_place(document.place, name, entities, (*path, "place")),
        assurance=document.assurance,
        models=models,
        slots=document.slots,
        scheduler=None if scheduler is UNSET else SchedulerId(read_name(scheduler, (*path, "scheduler"))),
        intake=None if intake is UNSET else _address(intake, (*path, "intake")),
        engine=None if engine is UNSET else read_name(engine, (*path, "engine")),
        reachable_from=frozenset(EdgeId(edge) for edge in reachable_from),
        prefix_cache=document.prefix_cache,
    )


def _sink(document: SinkDocument, side: SideId, entities: Entities, path: FieldPath) -> Sink:
    name = read_name(document.id, (*path, "id"))
    return Sink(PlaceId(name), side, document.kind, _place(document.place, name, entities, (*path, "place")))


def _check_assurance(document: PoolDocument, path: FieldPath) -> None:
    """A pool has a scheduler that checks a second time, or an engine that only the named edges reach; never both."""
    with_scheduler = {
        "scheduler": document.scheduler is not UNSET,
        "intake": document.intake is not UNSET,
    }
    with_engine = {
        "engine": document.engine is not UNSET,
        "reachable_from": bool(document.reachable_from),
    }
    two_party = document.assurance is Assurance.TWO_PARTY
    needed, refused = (with_scheduler, with_engine) if two_party else (with_engine, with_scheduler)
    word = document.assurance.value
    for field, given in refused.items():
        if given:
            raise DomainError((*path, field), f"expected no such field in a pool that is {word}")
    for field, given in needed.items():
        if not given:
            raise DomainError((*path, field), f"expected this field, which a pool that is {word} needs")


def _served(document: ServedModelDocument, path: FieldPath) -> ServedModel:
    refuse_repeats(document.capabilities, (*path, "capabilities"))
    return ServedModel(
        id=read_model(document.id, (*path, "id")),
        context_tokens=document.context_tokens,
        capabilities=frozenset(document.capabilities),
        prefill_us_per_token=document.prefill_us_per_token,
        decode_us_per_token=document.decode_us_per_token,
        stream_us_per_token=None if document.stream_us_per_token is UNSET else document.stream_us_per_token,
        revision=None if document.revision is UNSET else read_revision(document.revision, (*path, "revision")),
    )


def _address(text: str, path: FieldPath) -> str:
    """Return `host:port`, where the host is a name, an IPv4 address or a bracketed IPv6 address."""
    host, _, port = text.rpartition(":")
    if _PORT.match(port) is None or int(port) > 65_535 or not _is_host(host):
        raise DomainError(path, "expected host:port, such as intake.example:8443")
    return text


def _is_host(host: str) -> bool:
    if host.startswith("[") and host.endswith("]"):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            return False
        return "%" not in host
    return _HOST.match(host) is not None
