"""What the other side's sections may do in our bundle: add. None of theirs opens our gate or changes what is ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.bundles.assemble import Bundle
from orchestrator.bundles.formats import SectionKind
from orchestrator.bundles.refusals import BundleRefused, RefusalCode
from orchestrator.bundles.revocations import Revoked
from orchestrator.policy.entities import Entity
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import EdgeId, EntityId, KeyId, PoolId, TenantId
from orchestrator.policy.jurisdictions import EEA, Jurisdiction
from orchestrator.policy.labels import Domestic, Effective, Grade, Personal
from orchestrator.policy.permit import permit_route
from orchestrator.policy.verdicts import NO_GRANT
from orchestrator.policy.vocabulary import Asset, Purpose
from tests.bundles.sides import (
    NOW_MS,
    File,
    Side,
    domestic,
    fleet,
    holdings_in,
    issue,
    overseas,
    pack,
    placement_settings,
    prices,
    revoke,
    take,
)
from tests.values import replace

DE = Jurisdiction("DE")


def bundle_with(folder: Path, side: Side, other: Side, files: list[File], own: list[File] | None = None) -> Bundle:
    """Our bundle, with `files` as what the other side exports."""
    theirs = issue(other, 3, files=files)
    holdings = holdings_in(folder, side, other)
    take(holdings, issue(side, 1, files=own, imported=theirs), theirs)
    bundle = holdings.bundle(side.name)
    assert bundle is not None
    return bundle


def public_facts() -> Facts:
    label = Effective(
        Personal.NONE,
        Grade.PUBLIC,
        Domestic.NO,
        frozenset({DE}),
        purpose=frozenset({Purpose.INFERENCE.value}),
        asset=frozenset({Asset.PAYLOAD.value}),
    )
    return Facts(Entity(EntityId("acme-gmbh"), DE), label)


def denied_to_china(bundle: Bundle) -> tuple[str, ...]:
    edge, pool = bundle.fleet.edge(EdgeId("sg-edge")), bundle.fleet.pool(PoolId("cn-pool"))
    assert edge is not None
    assert pool is not None
    verdict = permit_route(bundle.law, public_facts(), edge.place, pool.place, NOW_MS)
    assert not verdict.allowed
    return tuple(reason.rule for reason in verdict.reasons if reason.jurisdiction in (DE, None))


def test_a_grant_under_our_law_by_the_other_side_grants_nothing(tmp_path: Path) -> None:
    hostile = pack("eu-open-gate", ["DE"], "OPEN", target=["CN", "DE", "SG"])
    files: list[File] = [
        (SectionKind.PACK, "eu-open-gate", hostile),
        (SectionKind.PACK, "cn", pack("cn-import", ["CN"], "CN", target=["CN", "DE", "SG"])),
        (SectionKind.FLEET, "fleet", fleet("cn-edge", "cn-pool", "CN", "river-cn")),
    ]
    bundle = bundle_with(tmp_path, overseas(), domestic(), files)
    admitted = {admitted.pack.id: admitted.grants_for for admitted in bundle.law.packs}
    assert admitted["eu-open-gate"] == frozenset()
    assert admitted["cn-import"] == {"CN"}
    assert admitted["eu-transfer"] == EEA
    assert denied_to_china(bundle) == (NO_GRANT,)


def test_a_forbid_of_the_other_side_counts_under_our_law(tmp_path: Path) -> None:
    forbid = pack("de-closed", ["DE"], "CLOSED", target=["SG", "DE", "CN"], effect="forbid")
    rule = forbid["rules"][0]
    rule["when"] = [{"action": {"in": ["infer"]}}]
    rule["vectors"] = [rule["vectors"][0], {**rule["vectors"][0], "action": "return", "expect": "not"}]
    bundle = bundle_with(tmp_path, overseas(), domestic(), [(SectionKind.PACK, "de-closed", forbid)])
    edge, pool = bundle.fleet.edge(EdgeId("sg-edge")), bundle.fleet.pool(PoolId("sg-pool"))
    assert edge is not None
    assert pool is not None
    verdict = permit_route(bundle.law, public_facts(), edge.place, pool.place, NOW_MS)
    assert "CLOSED-PUBLIC-1" in verdict.rules


def test_our_own_grant_counts(tmp_path: Path) -> None:
    side = overseas()
    own = [file for file in side.files if file[0] is not SectionKind.PACK]
    own += [
        (SectionKind.PACK, "eu", pack("eu-transfer", ["EEA"], "EU", target=["DE", "SG", "CN"])),
        (SectionKind.PACK, "sg", pack("sg-transfer", ["SG"], "SG", target=["DE", "SG", "CN"])),
    ]
    theirs: list[File] = [
        (SectionKind.PACK, "cn", pack("cn-import", ["CN"], "CN", target=["CN", "DE", "SG"])),
        (SectionKind.FLEET, "fleet", fleet("cn-edge", "cn-pool", "CN", "river-cn")),
    ]
    bundle = bundle_with(tmp_path, side, domestic(), theirs, own)
    edge, pool = bundle.fleet.edge(EdgeId("sg-edge")), bundle.fleet.pool(PoolId("cn-pool"))
    assert edge is not None
    assert pool is not None
    assert permit_route(bundle.law, public_facts(), edge.place, pool.place, NOW_MS).allowed


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ([(SectionKind.FLEET, "f", fleet("cn-edge", "sg-pool", "CN", "river-cn"))], RefusalCode.CONFLICT),
        ([(SectionKind.FLEET, "f", fleet("sg-edge", "cn-pool", "CN", "river-cn"))], RefusalCode.CONFLICT),
        ([(SectionKind.FLEET, "f", fleet("cn-edge", "cn-pool", "SG", "river-cn"))], RefusalCode.FOREIGN_SOIL),
        ([(SectionKind.FLEET, "f", fleet("cn-edge", "cn-pool", "CN", "harbour-sg"))], RefusalCode.CONFLICT),
        ([(SectionKind.PACK, "p", pack("eu-transfer", ["CN"], "CN", target=["CN"]))], RefusalCode.CONFLICT),
    ],
    ids=["our pool again", "our edge again", "a pool on our soil", "our entity otherwise", "our pack again"],
)
def test_what_is_ours_is_never_redefined(tmp_path: Path, files: list[File], code: RefusalCode) -> None:
    with pytest.raises(BundleRefused) as refused:
        bundle_with(tmp_path, overseas(), domestic(), files)
    assert refused.value.code is code


def test_the_other_side_prices_its_own_pools_alone(tmp_path: Path) -> None:
    cheap = prices("sg-pool")
    cheap["costs"][0]["output_per_million"] = "0"
    cheap["costs"].append({**prices("cn-pool")["costs"][0], "output_per_million": "0.03"})
    files: list[File] = [
        (SectionKind.FLEET, "fleet", fleet("cn-edge", "cn-pool", "CN", "river-cn")),
        (SectionKind.PRICES, "prices", cheap),
    ]
    bundle = bundle_with(tmp_path, overseas(), domestic(), files)
    costs = {cost.pool: cost.tokens.output_pico for cost in bundle.prices.costs}
    assert costs == {"sg-pool": 200_000, "cn-pool": 30_000}
    assert len(bundle.prices.books) == 1


def test_a_side_has_one_section_of_settings(tmp_path: Path) -> None:
    side = overseas()
    files = [*side.files, (SectionKind.SETTINGS, "more", placement_settings())]
    with pytest.raises(BundleRefused) as refused:
        take(holdings_in(tmp_path, side), issue(side, 1, files=files))
    assert refused.value.code is RefusalCode.CONFLICT


def test_law_alone_leaves_tenants_and_settings_out(tmp_path: Path) -> None:
    side, other = overseas(), domestic()
    holdings = holdings_in(tmp_path, other, side)
    take(holdings, issue(side, 7))
    bundle = holdings.bundle(side.name)
    assert bundle is not None
    assert bundle.law_only
    assert bundle.tenants == ()
    assert bundle.keys == {}
    assert bundle.settings is None
    assert bundle.fleet.pool(PoolId("sg-pool")) is not None
    kinds = {path.name for path in (tmp_path / "sections").iterdir()}
    assert kinds == {entry.digest.removeprefix("sha256:") for entry in bundle.manifest.exported()}


def test_a_tenant_is_found_by_the_id_of_its_key(tmp_path: Path) -> None:
    side = overseas()
    holdings = holdings_in(tmp_path, side)
    take(holdings, issue(side, 1))
    bundle = holdings.bundle(side.name)
    assert bundle is not None
    assert bundle.keys[KeyId("acmekey1")].tenant.id == "acme"


def test_nobody_revokes_what_is_another_sides_own(tmp_path: Path) -> None:
    side, other = overseas(), domestic()
    holdings = holdings_in(tmp_path, side, other)
    theirs = issue(other, 3)
    take(holdings, issue(side, 1, imported=theirs), theirs)
    revoked = Revoked(
        tenants=frozenset({TenantId("acme")}),
        keys=frozenset({KeyId("acmekey1"), KeyId("cn-edge-1")}),
        pools=frozenset({PoolId("sg-pool"), PoolId("cn-pool")}),
        edges=frozenset({EdgeId("sg-edge")}),
    )
    holdings.take_list(revoke(other, 1, revoked))
    bundle = holdings.bundle(side.name)
    assert bundle is not None
    assert bundle.revoked == Revoked(keys=frozenset({KeyId("cn-edge-1")}), pools=frozenset({PoolId("cn-pool")}))
    holdings.take_list(revoke(side, 1, replace(revoked, pools=frozenset({PoolId("sg-pool")}))))
    bundle = holdings.bundle(side.name)
    assert bundle is not None
    assert bundle.revoked.tenants == {"acme"}
    assert bundle.revoked.pools == {"sg-pool", "cn-pool"}
    assert bundle.revocations.number == 1
