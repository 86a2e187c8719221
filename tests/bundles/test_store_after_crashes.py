"""The store comes up after a crash at any moment, with the last good bundle or with none, and never goes back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from orchestrator.bundles.clock import NS_PER_MS, HighestTime
from orchestrator.bundles.formats import SectionKind
from orchestrator.bundles.refusals import BundleRefused, RefusalCode
from orchestrator.bundles.revocations import Revoked
from orchestrator.bundles.store import KEPT_MANIFESTS, KEPT_MS
from orchestrator.policy.ids import Digest, PoolId
from tests.bundles.sides import NOW_MS, Side, fleet, holdings_in, issue, overseas, revoke, take


@pytest.fixture
def side() -> Side:
    return overseas()


def number_in(folder: Path, side: Side) -> int:
    bundle = holdings_in(folder, side).bundle(side.name)
    return 0 if bundle is None else bundle.number


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def other_fleet(name: str) -> tuple[SectionKind, str, dict[str, object]]:
    return (SectionKind.FLEET, "fleet", fleet("sg-edge", name, "SG", "harbour-sg"))


def test_a_bundle_outlives_the_program(tmp_path: Path, side: Side) -> None:
    holdings = holdings_in(tmp_path, side)
    holdings.take_list(revoke(side, 3, Revoked(pools=frozenset({PoolId("sg-pool")}))))
    take(holdings, issue(side, 5))
    again = holdings_in(tmp_path, side)
    bundle = again.bundle(side.name)
    assert bundle is not None
    assert (bundle.number, bundle.revocations.number, bundle.revoked.pools) == (5, 3, {"sg-pool"})
    with pytest.raises(BundleRefused) as refused:
        take(again, issue(side, 4))
    assert refused.value.code is RefusalCode.ROLLED_BACK


def test_every_file_may_be_cut_short(tmp_path: Path, side: Side) -> None:
    before, newest = issue(side, 5), issue(side, 6, files=[other_fleet("sg-pool-2")])
    whole = tmp_path / "whole"
    holdings = holdings_in(whole, side)
    take(holdings, before)
    take(holdings, newest)
    for index, path in enumerate(files_in(whole)):
        damaged = tmp_path / f"damaged-{index}"
        shutil.copytree(whole, damaged)
        cut = damaged / path.relative_to(whole)
        cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        held = holdings_in(damaged, side)
        # What was held last counts, or nothing: never number 5 again, and control repairs it.
        bundle = held.bundle(side.name)
        assert bundle is None or bundle.number == 6
        with pytest.raises(BundleRefused):
            take(held, before)
        take(held, newest)
        assert number_in(damaged, side) == 6


def test_a_crash_before_the_pointer_leaves_the_bundle_before(tmp_path: Path, side: Side) -> None:
    """Files are written in this order: sections, manifest, pointer."""
    before, newest = issue(side, 5), issue(side, 6, files=[other_fleet("sg-pool-2")])
    old, new = tmp_path / "old", tmp_path / "new"
    take(holdings_in(old, side), before)
    shutil.copytree(old, new)
    take(holdings_in(new, side), newest)
    written = [path.relative_to(new) for path in files_in(new) if not (old / path.relative_to(new)).exists()]
    sections = [path for path in written if path.parts[0] == "sections"]
    manifests = [path for path in written if path.parts[0] == "manifests"]
    assert len(sections) == 1
    assert len(manifests) == 1
    for step in (sections, [*sections, *manifests]):
        for path in step:
            shutil.copy(new / path, old / path)
        (old / step[-1]).with_name(".half-written").write_bytes(b"{")
        assert number_in(old, side) == 5
    held = holdings_in(old, side)
    take(held, newest)
    assert number_in(old, side) == 6


def test_a_folder_that_lost_its_pointer_uses_the_newest_that_is_whole(tmp_path: Path, side: Side) -> None:
    holdings = holdings_in(tmp_path, side)
    take(holdings, issue(side, 5))
    take(holdings, issue(side, 6))
    (tmp_path / "current" / side.name).unlink()
    held = holdings_in(tmp_path, side)
    assert held.store.highest(side.name) == 6
    bundle = held.bundle(side.name)
    assert bundle is not None
    assert bundle.number == 6


def test_the_recent_past_is_kept_and_the_rest_is_not(tmp_path: Path, side: Side) -> None:
    holdings = holdings_in(tmp_path, side)
    count = KEPT_MANIFESTS + 20
    for number in range(1, count + 1):
        issued_ms = NOW_MS + number * 30_000
        issued = issue(side, number, files=[other_fleet(f"pool-{number}")], issued_ms=issued_ms)
        take(holdings, issued, now_ms=issued_ms)
    kept = [held.manifest.number for held in holdings.store.held(side.name)]
    assert kept == list(range(count - KEPT_MANIFESTS + 1, count + 1))
    assert len(files_in(tmp_path / "sections")) == len(kept)
    fast = tmp_path / "fast"
    holdings = holdings_in(fast, side)
    for number in range(1, count + 1):
        take(holdings, issue(side, number, issued_ms=NOW_MS + number * (KEPT_MS // count // 2)))
    assert len(holdings.store.held(side.name)) == count


def test_a_bundle_of_the_past_is_found_as_law_alone(tmp_path: Path, side: Side) -> None:
    holdings = holdings_in(tmp_path, side)
    first = issue(side, 5)
    take(holdings, first)
    take(holdings, issue(side, 6, files=[other_fleet("sg-pool-2")]))
    past = holdings.past(side.name, 5, first.signed.digest)
    assert past is not None
    assert past.law_only
    assert past.fleet.pool(PoolId("sg-pool")) is not None
    assert holdings.past(side.name, 5, Digest("sha256:" + "0" * 64)) is None
    assert holdings.remembered(side.name, 5, first.signed.digest) is past


def test_a_digest_is_never_a_path(tmp_path: Path, side: Side) -> None:
    holdings = holdings_in(tmp_path, side)
    with pytest.raises(ValueError, match="not a digest"):
        holdings.store.section(Digest("sha256:../../etc/passwd"))


def test_time_never_goes_back_over_a_restart(tmp_path: Path) -> None:
    wall = [NOW_MS]
    clock = HighestTime(tmp_path / "time", lambda: wall[0] * NS_PER_MS)
    assert clock.now_ms() == NOW_MS
    wall[0] -= 10_000
    assert clock.now_ms() == NOW_MS
    assert clock.behind_ms() == 10_000
    assert clock.due()
    clock.save()
    assert not clock.due()
    again = HighestTime(tmp_path / "time", lambda: wall[0] * NS_PER_MS)
    assert again.now_ms() == NOW_MS
    wall[0] = NOW_MS + 500
    assert again.now_ms() == NOW_MS + 500
    assert not again.due()
    (tmp_path / "time").write_bytes(b"12x")
    assert HighestTime(tmp_path / "time", lambda: 7 * NS_PER_MS).now_ms() == 7
