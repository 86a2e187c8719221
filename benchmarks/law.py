"""The law, measured: verdicts of one payload over many places, compiled and interpreted, each beside its floor.

    python -m benchmarks law [--json FILE]

One thread, one core, on the packs of the shipped example. Each figure is the median of several rounds; its floor is
the least that the same work could cost in this interpreter, measured in the same run.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.figures import median, table
from benchmarks.law_in_cedar import measure_cedar
from orchestrator.cli.law.lawbook import read_lawbook
from orchestrator.files.label_header import parse_label_header
from orchestrator.policy.bundle import Law
from orchestrator.policy.entities import Entity
from orchestrator.policy.facts import Declared, Facts
from orchestrator.policy.ids import EntityId, PlaceId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Clean, Domestic, Effective, Grade, Labels, LabelSources, Personal, at_inference
from orchestrator.policy.pathways import Role
from orchestrator.policy.permit import permit_route
from orchestrator.policy.places import Place
from orchestrator.policy.table import RouteTable

EXAMPLE = Path(__file__).parents[1] / "examples" / "two-sides"
NOW_MS = 1_795_000_000_000
PLACES = 1_000
ROUNDS = 7
SOILS = ("CN", "SG", "DE", "FR", "US", "JP", "KR", "GB", "BR", "IN", "AE", "SA", "VN", "ID", "AU")
HEADER = 'personal=personal, grade=general, domestic=no, origin=("DE" "SG"), located="DE", collected="DE"'

Result = dict[str, object]


def measure() -> Result:
    """Return every figure, in microseconds of one core unless its name says otherwise."""
    law = read_lawbook(EXAMPLE, NOW_MS).bundle.law
    pools = [_pool(index) for index in range(PLACES)]
    edge = _place("edge", "SG", ())
    told = facts("SG")
    compile_us = _each(lambda: RouteTable(law, edge, pools, NOW_MS), 1)
    route_table = RouteTable(law, edge, pools, NOW_MS)
    labels = [facts(origin, personal) for origin in SOILS for personal in (Personal.NONE, Personal.PERSONAL)]
    remembered_us = _each(lambda: route_table.allowed(told, NOW_MS), 2_000)
    fresh_us = _fresh(law, edge, pools, labels)
    some = pools[:100]
    interpreted_us = _each(lambda: [permit_route(law, told, edge, pool, NOW_MS) for pool in some], 3) / len(some)
    declared = parse_label_header(HEADER)
    attested = Labels(Personal.NONE, Grade.GENERAL, Domestic.NO, frozenset({Jurisdiction("SG")}))
    sources = LabelSources(declared=at_inference(declared), attested=attested, soil=frozenset({Jurisdiction("SG")}))
    return {
        "places": PLACES,
        "jurisdictions": len(SOILS),
        "rules": sum(len(one.pack.rules) for one in law.packs),
        "load_and_check_packs_us": _each(lambda: read_lawbook(EXAMPLE, NOW_MS), 1),
        "compile_us": compile_us,
        "compiled_first_time_us": fresh_us,
        "compiled_first_time_verdicts_per_s": int(PLACES / fresh_us * 1e6),
        "compiled_remembered_us": remembered_us,
        "compiled_remembered_verdicts_per_s": int(PLACES / remembered_us * 1e6),
        "floor_one_and_of_masks_us": _floor_and(),
        "interpreted_route_us": interpreted_us,
        "floor_interpreted_us": _floor_rules(law),
        "parse_label_us": _each(lambda: parse_label_header(HEADER), 2_000),
        "floor_parse_split_us": _each(lambda: dict(p.split("=", 1) for p in HEADER.split(", ")), 5_000),
        "effective_label_us": _each(sources.effective, 5_000),
        "cedar": measure_cedar(law, _each),
    }


def rendered(found: Result) -> str:
    """Return the figures as a table for people."""
    rows = [
        ("one payload, 1,000 places: compiled, first of its class", _us(found["compiled_first_time_us"])),
        ("    verdicts/s", f"{found['compiled_first_time_verdicts_per_s']:,}"),
        ("one payload, 1,000 places: compiled, class seen before", _us(found["compiled_remembered_us"])),
        ("    verdicts/s", f"{found['compiled_remembered_verdicts_per_s']:,}"),
        ("    floor: one AND of two masks of 1,000 bits", _us(found["floor_one_and_of_masks_us"])),
        ("interpreted, per pool (out and back)", _us(found["interpreted_route_us"])),
        ("    floor: as many empty calls as it visits rules", _us(found["floor_interpreted_us"])),
        ("parse x-tidegate-labels", _us(found["parse_label_us"])),
        ("    floor: split it into pairs, unchecked", _us(found["floor_parse_split_us"])),
        ("join the voices into the effective label", _us(found["effective_label_us"])),
        ("compile the shipped law for 1,000 pools", _us(found["compile_us"])),
        ("load, check, sign and assemble the shipped example", _us(found["load_and_check_packs_us"])),
    ]
    cedar = found["cedar"]
    if isinstance(cedar, dict):
        rows.append(("cedarpy in batches, per pool (out and back, two laws)", _us(cedar["route_us"])))
    title = f"the law: {found['rules']} rules, {found['jurisdictions']} jurisdictions of pools; medians, one core"
    return table(title, ("what", "time"), rows)


def facts(origin: str, personal: Personal = Personal.NONE) -> Facts:
    """Return the facts of a fully declared payload of overseas data."""
    here = frozenset({Jurisdiction(origin)})
    label = Effective(
        personal=personal,
        grade=Grade.GENERAL,
        domestic=Domestic.NO,
        origin=here,
        clean=Clean.RAW,
        categories=frozenset({"contact"}) if personal else frozenset(),
        located=here,
        collected=here,
        purpose=frozenset({"inference"}),
        asset=frozenset({"payload"}),
    )
    tenant = Entity(EntityId("tenant"), Jurisdiction("SG"))
    return Facts(tenant, label, role=Role.CONTROLLER, critical_infrastructure=Declared.NO)


def _fresh(law: Law, edge: Place, pools: list[Place], labels: list[Facts]) -> float:
    """Return the median time of the first verdict of a class: every label is new to its table."""
    times: list[float] = []
    for _ in range(ROUNDS):
        fresh = RouteTable(law, edge, pools, NOW_MS)
        for told in labels:
            begun = time.perf_counter_ns()
            fresh.allowed(told, NOW_MS)
            times.append((time.perf_counter_ns() - begun) / 1_000)
    return round(median(times), 2)


def _each(work: Callable[[], object], repeats: int) -> float:
    """Return the median over rounds of the time of one call, in microseconds."""
    work()
    gc.collect()
    times: list[float] = []
    for _ in range(ROUNDS):
        begun = time.perf_counter_ns()
        for _ in range(repeats):
            work()
        times.append((time.perf_counter_ns() - begun) / 1_000 / repeats)
    return round(median(times), 3)


def _floor_and() -> float:
    one, other = (1 << PLACES) - 1, (1 << PLACES) - 3
    return _each(lambda: one & other, 20_000)


def _floor_rules(law: Law) -> float:
    """As many calls of an empty function as permit visits rules for Singapore and China, out and back."""
    visited = 2 * sum(
        len(one.pack.rules) for country in ("SG", "CN") for one in law.packs_of(Jurisdiction(country))
    )

    def nothing() -> None:
        return None

    def calls() -> None:
        for _ in range(visited):
            nothing()

    return _each(calls, 500)


def _pool(index: int) -> Place:
    accessors = ("SG",) if index % 7 == 0 else ()
    return replace(_place(f"pool-{index}", SOILS[index % len(SOILS)], accessors), id=PlaceId(f"pool-{index}"))


def _place(name: str, soil: str, accessors: tuple[str, ...]) -> Place:
    country = Jurisdiction(soil)
    staff = tuple(Entity(EntityId(f"{name}-{one.lower()}"), Jurisdiction(one)) for one in accessors)
    return Place(PlaceId(name), frozenset({country}), frozenset(), staff, Entity(EntityId(f"{name}-operator"), country))


def _us(value: object) -> str:
    return f"{value:,.2f} us" if isinstance(value, float | int) else str(value)
