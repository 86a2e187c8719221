"""The fleet of a replay: what it says arrives in whole numbers, what makes no sense is refused with its field."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.files.document import read_document
from orchestrator.files.domain_error import read_as
from orchestrator.files.fields import body_of
from orchestrator.files.replay_fleet import ReplayFleetDocument, replay_fleet_of
from orchestrator.files.typed import fit
from orchestrator.placement.replay.world import Gpu, Link, Promise
from orchestrator.policy.ids import EdgeId, PoolId
from tests.files.documents import DROP, Path, broken, load, refusal
from tests.operators.desk import ROOT

POOL: dict[str, Any] = {
    "id": "de-one",
    "jurisdiction": "DE",
    "model": "m",
    "replicas": 2,
    "gpu": {"step_us": 10, "stream_us": 1, "prefill_ns": 90, "slots": 8, "kv_tokens": 1000},
    "cost": {
        "input_per_million": "0.25",
        "cached_per_million": "0.1",
        "output_per_million": "1",
        "egress_per_gb": "0.08",
    },
}
FLEET: dict[str, Any] = {
    "version": 1,
    "currency": "USD",
    "start": "2026-11-24T13:59:00Z",
    "edges": [{"id": "edge-a", "jurisdiction": "SG"}, {"id": "edge-b", "jurisdiction": "DE", "share": 0}],
    "pools": [POOL, {**POOL, "id": "de-two"}],
    "links": [{"edge": "edge-a", "pool": "de-one", "rtt_ms": 160, "jitter_ms": 6, "mbit_per_s": 100}],
    "classes": [
        {"id": "open", "may": ["all"]},
        {
            "id": "shut",
            "share": 3,
            "edges": ["edge-b"],
            "may": ["de-two"],
            "tenant": "acme",
            "labels": "personal=none",
            "slo_first_ms": 500,
            "slo_token_ms": 20,
            "regulated": True,
        },
    ],
    "outages": [{"pool": "de-one", "from_s": 1, "until_s": 2}],
    "price_changes": [
        {
            "pool": "de-two",
            "at_s": 3,
            "input_per_million": "9",
            "cached_per_million": "8",
            "output_per_million": "7",
        }
    ],
}

BAD: list[tuple[Path, object, str, str]] = [
    (("version",), 2, "version", "expected one of 1"),
    (("currency",), "usd", "currency", "ISO 4217"),
    (("start",), "2026-11-24", "start", "quoted time in UTC"),
    (("start",), "2026-02-30T00:00:00Z", "start", "expected a date"),
    (("block_tokens",), 0, "block_tokens", ">= 1"),
    (("edges",), [], "edges", "at least one"),
    (("pools",), [], "pools", "at least one"),
    (("classes",), [], "classes", "at least one"),
    (("links",), DROP, "links", "missing"),
    (("nodes",), [], "nodes", "one of the fields version, currency"),
    (("edges", 0, "id"), "Edge A", "edges[0].id", "a name"),
    (("edges", 1, "id"), "edge-a", "edges[1].id", "once"),
    (("edges", 0, "jurisdiction"), "ZZ", "edges[0].jurisdiction", "assigned ISO 3166-1"),
    (("edges", 0, "jurisdiction"), "EEA", "edges[0].jurisdiction", "assigned ISO 3166-1"),
    (("edges", 0, "share"), -1, "edges[0].share", ">= 0"),
    (("pools", 1, "id"), "de-one", "pools[1].id", "once"),
    (("pools", 0, "jurisdiction"), "de", "pools[0].jurisdiction", "assigned ISO 3166-1"),
    (("pools", 0, "model"), "", "pools[0].model", "name of a model"),
    (("pools", 0, "replicas"), 0, "pools[0].replicas", ">= 1"),
    (("pools", 0, "gpu", "slots"), 0, "pools[0].gpu.slots", ">= 1"),
    (("pools", 0, "gpu", "prefill_ns"), DROP, "pools[0].gpu.prefill_ns", "missing"),
    (("pools", 0, "gpu", "cores"), 1, "pools[0].gpu.cores", "one of the fields step_us"),
    (("pools", 0, "cost", "input_per_million"), 1, "pools[0].cost.input_per_million", "text"),
    (("pools", 0, "cost", "egress_per_gb"), "-1", "pools[0].cost.egress_per_gb", "quoted decimal"),
    (("pools", 0, "cost", "currency"), "USD", "pools[0].cost.currency", "one of the fields"),
    (("links", 0, "edge"), "edge-c", "links[0].edge", "expected an id of this file: edge-a, edge-b"),
    (("links", 0, "pool"), "edge-a", "links[0].pool", "expected an id of this file: de-one, de-two"),
    (("links", 0, "rtt_ms"), DROP, "links[0].rtt_ms", "missing"),
    (("links", 0, "mbit_per_s"), 0, "links[0].mbit_per_s", ">= 1"),
    (("links", 1), FLEET["links"][0], "links[1]", "one link between an edge and a pool"),
    (("classes", 1, "id"), "open", "classes[1].id", "once"),
    (("classes", 1, "edges"), ["nowhere"], "classes[1].edges[0]", "expected an id of this file"),
    (("classes", 1, "may"), ["de-two", "all"], "classes[1].may[1]", "expected an id of this file"),
    (("classes", 1, "tenant"), "", "classes[1].tenant", "a name"),
    (("classes", 1, "labels"), "personal=low", "classes[1].labels", "personal: expected none or personal"),
    (("classes", 1, "slo_first_ms"), 0, "classes[1].slo_first_ms", ">= 1"),
    (("outages", 0, "pool"), "gone", "outages[0].pool", "expected an id of this file"),
    (("outages", 0, "until_s"), 1, "outages[0].until_s", "a second after from_s"),
    (("price_changes", 0, "pool"), "gone", "price_changes[0].pool", "expected an id of this file"),
    (("price_changes", 0, "at_s"), -1, "price_changes[0].at_s", ">= 0"),
    (("price_changes", 0, "output_per_million"), "x", "price_changes[0].output_per_million", "quoted decimal"),
]


@pytest.mark.parametrize(("path", "value", "field", "expected"), BAD, ids=lambda part: str(part)[:60])
def test_a_fleet_that_makes_no_sense_is_refused_with_its_field(
    path: Path, value: object, field: str, expected: str
) -> None:
    error = refusal(broken(FLEET, path, value), ReplayFleetDocument, replay_fleet_of)
    assert error.field == field
    assert expected in error.expected
    assert error.line > 0


@pytest.mark.parametrize("path", [("currency",), ("start",), ("edges", 0, "id"), ("classes", 1, "labels")])
def test_a_refusal_never_repeats_the_value(path: Path) -> None:
    error = refusal(broken(FLEET, path, "SECRET value"), ReplayFleetDocument, replay_fleet_of)
    assert "SECRET" not in str(error)


def test_what_it_says_arrives_in_whole_numbers() -> None:
    fleet = load(FLEET, ReplayFleetDocument, replay_fleet_of)
    assert (fleet.currency, fleet.start_ms, fleet.block_tokens) == ("USD", 1_795_528_740_000, 512)
    assert [(edge.id, edge.jurisdiction, edge.share) for edge in fleet.edges] == [
        ("edge-a", "SG", 1),
        ("edge-b", "DE", 0),
    ]
    pool = fleet.pools[0]
    assert pool.gpu == Gpu(10_000, 1_000, 90, 512, 8, 1000, True)
    assert (pool.cost.tokens.input_pico, pool.cost.egress_pico_per_byte, pool.cost.pool) == (250_000, 80, "de-one")
    assert (pool.context_tokens, pool.waiting_max, pool.region) == (131_072, 256, "region")
    assert fleet.links == {(EdgeId("edge-a"), PoolId("de-one")): Link(160_000, 6_000, 12_500_000)}
    assert fleet.outages == ((PoolId("de-one"), 1_000_000, 2_000_000),)
    (changed,) = fleet.price_changes
    assert (changed.pool, changed.at_us, changed.tokens.output_pico) == ("de-two", 3_000_000, 7_000_000)


def test_a_class_may_go_everywhere_or_where_it_says_and_nowhere_without() -> None:
    opened, shut = load(FLEET, ReplayFleetDocument, replay_fleet_of).classes
    assert (opened.may, opened.edges) == ({"de-one", "de-two"}, {"edge-a", "edge-b"})
    assert (shut.may, shut.edges, shut.tenant, shut.regulated) == ({"de-two"}, {"edge-b"}, "acme", True)
    assert opened.promise(2000, 60_000) == Promise(2_000_000, 60_000)
    assert shut.promise(2000, 60_000) == Promise(500_000, 20_000)
    nowhere = load(broken(FLEET, ("classes", 0, "may"), DROP), ReplayFleetDocument, replay_fleet_of)
    assert nowhere.classes[0].may == frozenset()


def test_the_body_has_the_shape_of_the_file() -> None:
    assert body_of(fit(FLEET, ReplayFleetDocument)) == FLEET


def test_the_example_declares_edges_and_pools_on_soils_apart() -> None:
    fleet = read_as(read_document(ROOT / "examples" / "replay" / "fleet.yaml"), ReplayFleetDocument, replay_fleet_of)
    assert len(fleet.edges) >= 4
    assert len(fleet.pools) == 6
    assert len({pool.jurisdiction for pool in fleet.pools}) == 5
    reached = {pool for _, pool in fleet.links}
    assert reached == {pool.id for pool in fleet.pools}
