"""When control issues an unchanged manifest again, and what it imports then."""

from __future__ import annotations

from orchestrator.bundles.formats import SectionKind
from orchestrator.control.publish import Imported, choices, reissue_due
from orchestrator.policy.bundle import FRESH_MS, Horizons
from orchestrator.policy.ids import SideId
from tests.bundles.sides import NOW_MS, File, Issue, domestic, fleet, issue, overseas

HALF_MS = FRESH_MS // 2
OURS, THEIRS = overseas(), domestic()


def known(issued: Issue) -> dict[SideId, Imported]:
    return {issued.manifest.side: Imported(issued.manifest, issued.signed.digest)}


def test_at_half_of_its_freshness() -> None:
    manifest = issue(OURS, 1).manifest
    assert not reissue_due(manifest, {}, frozenset(), NOW_MS + HALF_MS - 1)
    assert reissue_due(manifest, {}, frozenset(), NOW_MS + HALF_MS)


def test_when_the_other_side_exports_something_else() -> None:
    first = issue(THEIRS, 1)
    manifest = issue(OURS, 1, imported=first).manifest
    assert not reissue_due(manifest, known(first), frozenset(), NOW_MS)
    assert not reissue_due(manifest, known(issue(THEIRS, 2)), frozenset(), NOW_MS)
    changed: list[File] = [(SectionKind.FLEET, "fleet", fleet("cn-edge", "cn-pool-2", "CN", "river-cn"))]
    second = issue(THEIRS, 3, files=changed)
    assert reissue_due(manifest, known(second), frozenset(), NOW_MS)
    assert not reissue_due(manifest, known(second), frozenset({second.signed.digest}), NOW_MS)
    assert reissue_due(issue(OURS, 1).manifest, known(first), frozenset(), NOW_MS)


def test_when_tenants_of_the_other_side_change_nothing_happens() -> None:
    first = issue(THEIRS, 1)
    manifest = issue(OURS, 1, imported=first).manifest
    files = [file for file in THEIRS.files if file[0] is not SectionKind.TENANTS]
    assert not reissue_due(manifest, known(issue(THEIRS, 2, files=files)), frozenset(), NOW_MS)


def test_when_the_import_ages_and_a_fresher_one_is_here() -> None:
    old = issue(THEIRS, 1, issued_ms=NOW_MS - HALF_MS)
    manifest = issue(OURS, 1, imported=old).manifest
    assert not reissue_due(manifest, known(old), frozenset(), NOW_MS)
    fresher = issue(THEIRS, 2, issued_ms=NOW_MS - 1)
    assert reissue_due(manifest, known(fresher), frozenset(), NOW_MS)


def test_an_import_past_its_last_horizon_is_dropped() -> None:
    old = issue(THEIRS, 1, horizons=Horizons(NOW_MS + 10, NOW_MS + 20, NOW_MS + 30))
    manifest = issue(OURS, 1, imported=old).manifest
    assert not reissue_due(manifest, known(old), frozenset(), NOW_MS + 29)
    assert reissue_due(manifest, known(old), frozenset(), NOW_MS + 30)
    (offers,) = choices(manifest, known(old), frozenset(), NOW_MS + 30)
    assert offers == ()


def test_the_newest_import_comes_first_and_the_standing_one_second() -> None:
    first, second = issue(THEIRS, 1), issue(THEIRS, 2)
    manifest = issue(OURS, 1, imported=first).manifest
    numbers = [
        [offer.entry.number for offer in offers] for offers in choices(manifest, known(second), frozenset(), NOW_MS)
    ]
    assert numbers == [[2], [1]]
    refused = frozenset({second.signed.digest})
    numbers = [[offer.entry.number for offer in offers] for offers in choices(manifest, known(second), refused, NOW_MS)]
    assert numbers == [[1]]
    assert [len(offers) for offers in choices(None, known(second), refused, NOW_MS)] == [0]
