"""Manifests that no longer count are kept for as long as decisions that cite them may be made again."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.bundles.formats import SectionKind
from orchestrator.bundles.store import KEPT_MANIFESTS, BundleStore, Held
from orchestrator.policy.ids import Digest
from tests.bundles.sides import NOW_MS, Issue, Side, fleet, issue, overseas, roots_of

DAY_MS = 86_400_000
KEEP_MS = 30 * DAY_MS


@pytest.fixture
def side() -> Side:
    return overseas()


def issue_at(side: Side, number: int, now_ms: int) -> Issue:
    other = (SectionKind.FLEET, "fleet", fleet("sg-edge", f"pool-{number}", "SG", "harbour-sg"))
    return issue(side, number, files=[other], issued_ms=now_ms)


def put(store: BundleStore, issued: Issue, now_ms: int) -> None:
    for digest, body in issued.bodies.items():
        store.put_section(digest, body)
    store.put_manifest(Held(issued.manifest, issued.signed), now_ms, law_only=False)


def store_in(folder: Path, side: Side, *, read_only: bool = False) -> BundleStore:
    return BundleStore(folder, roots_of(side), archive_ms=0 if read_only else KEEP_MS, read_only=read_only)


def superseded(folder: Path, side: Side, first_ms: int, then_ms: int) -> tuple[BundleStore, Issue]:
    """A manifest put at `first_ms`, and from `then_ms` on so many more that it no longer counts."""
    store = store_in(folder, side)
    first = issue_at(side, 1, first_ms)
    put(store, first, first_ms)
    for number in range(2, KEPT_MANIFESTS + 3):
        now_ms = then_ms + number * 3_600_000
        put(store, issue_at(side, number, now_ms), now_ms)
    return store, first


def test_it_is_found_with_its_sections_and_counts_no_more(tmp_path: Path, side: Side) -> None:
    store, first = superseded(tmp_path, side, NOW_MS, NOW_MS)
    digest = first.signed.digest
    assert store.find(side.name, 1, digest) is None
    for seen in (store, store_in(tmp_path, side), store_in(tmp_path, side, read_only=True)):
        kept = seen.kept(side.name, 1, digest)
        assert kept is not None
        assert kept.signed == first.signed
        assert seen.missing(kept.manifest.sections) == ()
        assert seen.kept(side.name, 1, Digest("sha256:" + "0" * 64)) is None


def test_how_long_it_is_kept_counts_from_when_it_was_superseded(tmp_path: Path, side: Side) -> None:
    """It was in force for a hundred days: decisions that cite it are as young as its last day."""
    then_ms = NOW_MS + 100 * DAY_MS
    store, first = superseded(tmp_path, side, NOW_MS, then_ms)
    assert store.kept(side.name, 1, first.signed.digest) is not None
    for days, is_kept in ((20, True), (40, False)):
        now_ms = then_ms + days * DAY_MS
        put(store, issue_at(side, 1000 + days, now_ms), now_ms)
        assert (store.kept(side.name, 1, first.signed.digest) is not None) is is_kept
    lost = {entry.digest for entry in first.manifest.sections if entry.kind is SectionKind.FLEET}
    assert all(store.section(digest) is None for digest in lost)


def test_a_store_that_is_only_read_writes_nothing(tmp_path: Path, side: Side) -> None:
    superseded(tmp_path, side, NOW_MS, NOW_MS)
    (tmp_path / "manifests" / side.name / ".half-written").write_bytes(b"{")
    before = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))}
    store_in(tmp_path, side, read_only=True)
    assert {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))} == before
    missing = tmp_path / "missing"
    assert store_in(missing, side, read_only=True).current(side.name) is None
    assert not missing.exists()
