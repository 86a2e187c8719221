"""A fleet names only what it declares, and each pool is either behind a scheduler or behind its edges."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.files.fields import body_of
from orchestrator.files.fleet import FleetDocument, fleet_of
from orchestrator.files.typed import fit
from orchestrator.placement.capabilities import Capability
from orchestrator.placement.fleet import Assurance, Fleet
from orchestrator.policy.ids import EdgeId, ModelId, PoolId, SideId
from orchestrator.policy.places import SinkKind
from tests.files.documents import DROP, FLEET, Path, broken, load, refusal

SIDE = SideId("overseas")
ENTITY: Path = ("entities", 0)
EDGE: Path = ("edges", 0)
POOL: Path = ("pools", 0)
ENGINE_POOL: Path = ("pools", 1)
SINK: Path = ("sinks", 0)
KEY = {"id": "edge-a-1", "public_key": "LejwUW7ylHIdHRRRkddFdksbsPCxEsZUochwKt8j2Vc="}


def to_fleet(document: FleetDocument) -> Fleet:
    return fleet_of(document, SIDE)


def owner(entity: str, country: str, share_percent: int) -> dict[str, Any]:
    return {"entity": entity, "country": country, "share_percent": share_percent}


BAD: list[tuple[Path, object, str, str]] = [
    (("side",), "overseas", "side", "one of the fields"),
    (("version",), "1", "version", "expected"),
    (("entities",), DROP, "entities", "missing"),
    ((*ENTITY, "id"), "Operator", "entities[0].id", "a name"),
    ((*ENTITY, "country"), "EEA", "entities[0].country", "ISO 3166"),
    (("entities", 1, "id"), "operator-sg", "entities[1].id", "once"),
    ((*ENTITY, "owners", 0, "share_percent"), 0, "entities[0].owners[0].share_percent", ">= 1"),
    ((*ENTITY, "owners", 0, "share_percent"), 101, "entities[0].owners[0].share_percent", "<= 100"),
    ((*ENTITY, "owners", 0, "share_percent"), "60.5", "entities[0].owners[0].share_percent", "whole number"),
    ((*ENTITY, "owners", 0, "country"), "XX", "entities[0].owners[0].country", "ISO 3166"),
    ((*ENTITY, "owners", 0, "country"), "SG", "entities[0].owners[0].country", "the country that this file gives"),
    ((*ENTITY, "owners", 1), owner("holding", "US", 10), "entities[0].owners[1].entity", "once"),
    ((*ENTITY, "owners", 1), owner("fund", "CN", 41), "entities[0].owners", "at most 100"),
    ((*ENTITY, "owners", 1), owner("operator-sg", "SG", 10), "entities[0].owners", "none owns itself"),
    ((*EDGE, "id"), "edge_a", "edges[0].id", "a name"),
    ((*EDGE, "region"), "", "edges[0].region", "a name"),
    ((*EDGE, "keys"), [], "edges[0].keys", "at least one key"),
    ((*EDGE, "keys", 1), KEY, "edges[0].keys[1].id", "once"),
    *(
        ((*EDGE, "keys", 0, "public_key"), key, "edges[0].keys[0].public_key", "32 bytes in base64")
        for key in ("", "AAAA", KEY["public_key"][:-1], KEY["public_key"] + "\n", KEY["public_key"][:-2] + "d=", "é")
    ),
    ((*EDGE, "place", "infers"), [], "edges[0].place.infers", "at least one"),
    ((*EDGE, "place", "infers"), ["SG", "??"], "edges[0].place.infers[1]", "ISO 3166"),
    ((*EDGE, "place", "stores"), ["sg"], "edges[0].place.stores[0]", "ISO 3166"),
    ((*EDGE, "place", "operator"), "nobody", "edges[0].place.operator", "an entity of this file"),
    ((*EDGE, "place", "operator"), DROP, "edges[0].place.operator", "missing"),
    (("edges", 1), FLEET["edges"][0], "edges[1].id", "once"),
    ((*POOL, "place", "accessors"), ["holding", "nobody"], "pools[0].place.accessors[1]", "an entity of this file"),
    ((*POOL, "place", "accessors"), ["holding", "holding"], "pools[0].place.accessors[1]", "once"),
    ((*POOL, "id"), "pool-b", "pools[1].id", "once"),
    ((*POOL, "id"), "edge-a", "pools[0].id", "an edge has it"),
    ((*POOL, "assurance"), "none", "pools[0].assurance", "two-party, edge-only"),
    ((*POOL, "slots"), 0, "pools[0].slots", ">= 1"),
    ((*POOL, "slots"), True, "pools[0].slots", "whole number"),
    ((*POOL, "scheduler"), DROP, "pools[0].scheduler", "two-party needs"),
    ((*POOL, "scheduler"), None, "pools[0].scheduler", "text"),
    ((*POOL, "intake"), DROP, "pools[0].intake", "two-party needs"),
    ((*POOL, "engine"), "llamacpp", "pools[0].engine", "no such field in a pool that is two-party"),
    ((*POOL, "reachable_from"), ["edge-a"], "pools[0].reachable_from", "no such field in a pool that is two-party"),
    ((*POOL, "assurance"), "edge-only", "pools[0].scheduler", "no such field in a pool that is edge-only"),
    ((*ENGINE_POOL, "assurance"), "two-party", "pools[1].engine", "no such field in a pool that is two-party"),
    ((*ENGINE_POOL, "engine"), DROP, "pools[1].engine", "edge-only needs"),
    ((*ENGINE_POOL, "reachable_from"), DROP, "pools[1].reachable_from", "edge-only needs"),
    ((*ENGINE_POOL, "reachable_from"), [], "pools[1].reachable_from", "edge-only needs"),
    ((*ENGINE_POOL, "reachable_from"), ["edge-b"], "pools[1].reachable_from[0]", "an edge of this file"),
    ((*ENGINE_POOL, "reachable_from"), ["edge-a", "edge-a"], "pools[1].reachable_from[1]", "once"),
    ((*ENGINE_POOL, "scheduler"), "a", "pools[1].scheduler", "no such field in a pool that is edge-only"),
    ((*ENGINE_POOL, "intake"), "a:1", "pools[1].intake", "no such field in a pool that is edge-only"),
    *(
        ((*POOL, "intake"), address, "pools[0].intake", "host:port")
        for address in (
            "",
            "127.0.0.1",
            ":18101",
            "host:0",
            "host:01",
            "host:65536",
            "host:123456",
            "http://host:1",
            "host:1/path",
            "user@host:1",
            "ho st:1",
            "::1:18101",
            "[::1:18101",
            "[fe80::1%eth0]:1",
            "host-:1",
            "a..b:1",
        )
    ),
    ((*POOL, "models"), [], "pools[0].models", "at least one model"),
    ((*POOL, "models", 1), FLEET["pools"][0]["models"][0], "pools[0].models[1].id", "once"),
    ((*POOL, "models", 0, "id"), "a model", "pools[0].models[0].id", "name of a model"),
    ((*POOL, "models", 0, "context_tokens"), 0, "pools[0].models[0].context_tokens", ">= 1"),
    ((*POOL, "models", 0, "capabilities"), ["chat", "telepathy"], "pools[0].models[0].capabilities[1]", "chat, stream"),
    ((*POOL, "models", 0, "capabilities"), ["chat", "chat"], "pools[0].models[0].capabilities[1]", "once"),
    ((*POOL, "models", 0, "decode_us_per_token"), -1, "pools[0].models[0].decode_us_per_token", ">= 0"),
    ((*SINK, "id"), "Logs", "sinks[0].id", "a name"),
    ((*SINK, "id"), DROP, "sinks[0].id", "missing"),
    ((*SINK, "id"), "results-a", "sinks[1].id", "once"),
    ((*SINK, "id"), "edge-a", "sinks[0].id", "an edge has it"),
    ((*SINK, "id"), "pool-b", "sinks[0].id", "a pool has it"),
    ((*SINK, "kind"), "metrics", "sinks[0].kind", "log, trace, results, cache, artefacts"),
    ((*SINK, "kind"), DROP, "sinks[0].kind", "missing"),
    ((*SINK, "place"), DROP, "sinks[0].place", "missing"),
    ((*SINK, "place", "infers"), [], "sinks[0].place.infers", "at least one"),
    ((*SINK, "place", "stores"), ["EU"], "sinks[0].place.stores[0]", "group EEA"),
    ((*SINK, "place", "operator"), "nobody", "sinks[0].place.operator", "an entity of this file"),
    ((*SINK, "place", "accessors"), ["nobody"], "sinks[0].place.accessors[0]", "an entity of this file"),
    ((*SINK, "url"), "http://logs", "sinks[0].url", "one of the fields"),
    (("sinks",), {}, "sinks", "a list"),
]


@pytest.mark.parametrize(("path", "value", "field", "expected"), BAD, ids=lambda part: str(part)[:60])
def test_a_bad_fleet_is_refused_with_its_field(path: Path, value: object, field: str, expected: str) -> None:
    error = refusal(broken(FLEET, path, value), FleetDocument, to_fleet)
    assert error.field == field
    assert expected in error.expected


@pytest.mark.parametrize("address", ["a:1", "intake.example:8443", "10.0.0.1:65535", "[::1]:18101"])
def test_addresses_that_can_be_dialled_are_accepted(address: str) -> None:
    fleet = load(broken(FLEET, (*POOL, "intake"), address), FleetDocument, to_fleet)
    assert fleet.pools[0].intake == address


def test_a_fleet_arrives_whole() -> None:
    fleet = load(FLEET, FleetDocument, to_fleet)
    pool = fleet.pool(PoolId("pool-a"))
    assert pool is not None
    assert (pool.side, pool.scheduler, pool.engine, pool.assurance) == (SIDE, "a", None, Assurance.TWO_PARTY)
    assert pool.place.reach() == {"CN", "SG", "US"}
    served = pool.served(ModelId("m"))
    assert served is not None
    assert served.capabilities == {Capability.CHAT, Capability.STREAM}
    engine_pool = fleet.pool(PoolId("pool-b"))
    assert engine_pool is not None
    assert engine_pool.reachable(EdgeId("edge-a"))
    assert not engine_pool.reachable(EdgeId("edge-b"))
    edge = fleet.edge(EdgeId("edge-a"))
    assert edge is not None
    assert len(edge.keys[0].public_key) == 32
    assert edge.place.id == "edge-a"


def test_a_sink_is_a_place_like_a_pool() -> None:
    logs, results = load(FLEET, FleetDocument, to_fleet).sinks
    assert (logs.id, logs.side, logs.kind) == ("logs-a", SIDE, SinkKind.LOG)
    assert (logs.place.id, logs.place.stores) == ("logs-a", {"SG"})
    assert logs.place.reach() == {"SG", "US"}, "the owner of its operator counts"
    assert results.kind is SinkKind.RESULTS
    assert results.place.soil() == {"DE"}
    assert results.place.reach() == {"DE", "SG", "US"}
    assert results.place.recipients() == {"operator-sg", "holding"}


@pytest.mark.parametrize("kind", SinkKind, ids=lambda kind: kind.value)
def test_every_kind_of_sink_can_be_declared(kind: SinkKind) -> None:
    fleet = load(broken(FLEET, (*SINK, "kind"), kind.value), FleetDocument, to_fleet)
    assert fleet.sinks[0].kind is kind


def test_a_fleet_without_sinks_has_none() -> None:
    assert load(broken(FLEET, ("sinks",), DROP), FleetDocument, to_fleet).sinks == ()


def test_the_body_of_a_signed_section_has_the_shape_of_the_file() -> None:
    document = fit(FLEET, FleetDocument)
    assert body_of(document) == FLEET
