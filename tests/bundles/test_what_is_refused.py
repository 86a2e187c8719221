"""A manifest, a section or a list that is not exactly right is refused, and the last good bundle stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.bundles.formats import (
    MANIFEST_BYTES_MAX,
    MANIFEST_PREFIX,
    SECTION_BYTES_MAX,
    Manifest,
    SectionKind,
    Signed,
    build_section,
    manifest_to_json,
    open_manifest,
    sign_section,
)
from orchestrator.bundles.holdings import Holdings
from orchestrator.bundles.refusals import BundleRefused, RefusalCode
from orchestrator.bundles.revocations import Revoked, open_revocations
from orchestrator.bundles.roots import SigningKey
from orchestrator.evidence.canonical import canonical_bytes
from orchestrator.policy.bundle import Horizons
from orchestrator.policy.ids import PoolId, digest_of
from tests.bundles.sides import (
    NOW_MS,
    Issue,
    Side,
    domestic,
    fleet,
    holdings_in,
    issue,
    overseas,
    pack,
    revoke,
    roots_of,
    take,
    tenants,
)
from tests.values import replace


@pytest.fixture
def side() -> Side:
    return overseas()


@pytest.fixture
def holdings(tmp_path: Path, side: Side) -> Holdings:
    """Holds manifest 5."""
    held = holdings_in(tmp_path, side)
    take(held, issue(side, 5))
    return held


def signed_text(side: Side, number: int, body: bytes) -> Signed:
    """Whatever bytes, under a valid signature."""
    signature = side.key.sign(MANIFEST_PREFIX + body)
    return Signed(side.name, number, digest_of(body), body, side.root.key_id, signature)


def refusal(holdings: Holdings, issued: Issue, *more: Issue, now_ms: int = NOW_MS) -> RefusalCode:
    """Why a manifest is refused; that number 5 still counts is seen every time."""
    with pytest.raises(BundleRefused) as refused:
        take(holdings, issued, *more, now_ms=now_ms)
    bundle = holdings.bundle(holdings.side)
    assert bundle is not None
    assert bundle.number == 5
    current = holdings.store.current(holdings.side)
    assert current is not None
    assert current.manifest.number == 5
    return refused.value.code


def test_every_tampered_byte_of_a_manifest_is_noticed(side: Side) -> None:
    signed = issue(side, 6).signed
    for place in range(0, len(signed.body), 97):
        body = bytearray(signed.body)
        body[place] ^= 1
        for digest in (signed.digest, digest_of(bytes(body))):
            with pytest.raises(BundleRefused) as refused:
                open_manifest(replace(signed, body=bytes(body), digest=digest), roots_of(side), side.name)
            assert refused.value.code in (RefusalCode.DIGEST_MISMATCH, RefusalCode.BAD_SIGNATURE)


def test_a_tampered_section_is_refused(holdings: Holdings, side: Side) -> None:
    issued = issue(side, 6, files=[(SectionKind.FLEET, "fleet", fleet("sg-edge", "sg-pool-2", "SG", "harbour-sg"))])
    bodies = {digest: body.replace(b"sg-pool-2", b"sg-pool-3") for digest, body in issued.bodies.items()}
    assert refusal(holdings, replace(issued, bodies=bodies)) is RefusalCode.DIGEST_MISMATCH


def test_a_manifest_without_a_signature_is_refused(holdings: Holdings, side: Side) -> None:
    issued = issue(side, 6)
    for signature in (b"", bytes(64)):
        unsigned = replace(issued, signed=replace(issued.signed, signature=signature))
        assert refusal(holdings, unsigned) is RefusalCode.BAD_SIGNATURE


def test_a_key_that_is_not_pinned_signs_nothing(holdings: Holdings, side: Side) -> None:
    stranger = replace(side, key=SigningKey.generate())
    assert refusal(holdings, issue(stranger, 6)) is RefusalCode.BAD_SIGNATURE
    other_key = replace(stranger, root=replace(side.root, key_id=domestic().root.key_id))
    assert refusal(holdings, issue(other_key, 6)) is RefusalCode.UNKNOWN_KEY


def test_a_signature_over_a_section_is_none_over_a_manifest(side: Side) -> None:
    section = build_section(side.name, SectionKind.FLEET, "fleet", fleet("e", "p", "SG", "o"))
    entry = sign_section(section, side.key, side.root.key_id)
    signed = Signed(side.name, 1, section.digest, section.body, side.root.key_id, entry.signature)
    with pytest.raises(BundleRefused) as refused:
        open_manifest(signed, roots_of(side), side.name)
    assert refused.value.code is RefusalCode.BAD_SIGNATURE


def test_an_older_number_is_refused(holdings: Holdings, side: Side) -> None:
    assert refusal(holdings, issue(side, 4)) is RefusalCode.ROLLED_BACK


def test_another_manifest_of_the_same_number_is_refused(holdings: Holdings, side: Side) -> None:
    assert refusal(holdings, issue(side, 5, issued_ms=NOW_MS + 1)) is RefusalCode.EQUIVOCATION


def test_an_expired_manifest_is_refused(holdings: Holdings, side: Side) -> None:
    issued = issue(side, 6)
    assert refusal(holdings, issued, now_ms=issued.manifest.horizons.not_after_ms) is RefusalCode.EXPIRED


def test_a_manifest_of_the_other_side_is_refused(tmp_path: Path, side: Side) -> None:
    other = domestic()
    roots = roots_of(side, other)
    signed = issue(side, 6).signed
    with pytest.raises(BundleRefused) as refused:
        open_manifest(signed, roots, other.name)
    assert refused.value.code is RefusalCode.WRONG_SIDE
    # Its own root signs, but the body says that it is ours.
    body = canonical_bytes(manifest_to_json(issue(side, 6).manifest))
    forged = replace(signed_text(other, 6, body), side=other.name)
    with pytest.raises(BundleRefused) as refused:
        open_manifest(forged, roots, other.name)
    assert refused.value.code is RefusalCode.WRONG_SIDE
    with pytest.raises(BundleRefused) as refused:
        holdings_in(tmp_path, other).check(signed, NOW_MS)
    assert refused.value.code is RefusalCode.WRONG_SIDE


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"v": 2}, RefusalCode.UNKNOWN_VERSION),
        ({"v": True}, RefusalCode.UNKNOWN_VERSION),
        ({"v": 2, "new": 1}, RefusalCode.UNKNOWN_VERSION),
        ({"surprise": 1}, RefusalCode.MALFORMED),
        ({"number": 7}, RefusalCode.MALFORMED),
        ({"number": "6"}, RefusalCode.MALFORMED),
        ({"revocations": -1}, RefusalCode.MALFORMED),
        ({"fresh_until_ms": 0}, RefusalCode.MALFORMED),
        ({"not_after_ms": 1}, RefusalCode.MALFORMED),
        ({"sections": None}, RefusalCode.MALFORMED),
    ],
)
def test_a_manifest_of_another_shape_is_refused(side: Side, change: dict[str, object], code: RefusalCode) -> None:
    body = canonical_bytes({**manifest_to_json(issue(side, 6).manifest), **change})  # type: ignore[dict-item]
    with pytest.raises(BundleRefused) as refused:
        open_manifest(signed_text(side, 6, body), roots_of(side), side.name)
    assert refused.value.code is code


@pytest.mark.parametrize("spelling", ["spaces", "duplicate key", "order", "not json", "deep"])
def test_another_spelling_of_a_manifest_is_refused(side: Side, spelling: str) -> None:
    form = manifest_to_json(issue(side, 6).manifest)
    canonical = canonical_bytes(form)
    body = {
        "spaces": json.dumps(form, sort_keys=True).encode(),
        "duplicate key": canonical.replace(b'"v":1', b'"v":1,"v":1'),
        "order": json.dumps(dict(reversed(form.items())), separators=(",", ":")).encode(),
        "not json": canonical[:-1],
        "deep": b"[" * 100_000,
    }[spelling]
    with pytest.raises(BundleRefused) as refused:
        open_manifest(signed_text(side, 6, body), roots_of(side), side.name)
    assert refused.value.code is RefusalCode.MALFORMED


def test_sections_out_of_order_or_twice_are_refused(side: Side) -> None:
    manifest = issue(side, 6).manifest
    orders = [tuple(reversed(manifest.sections)), (manifest.sections[0], *manifest.sections)]
    for sections in orders:
        body = canonical_bytes(manifest_to_json(replace(manifest, sections=sections)))
        with pytest.raises(BundleRefused) as refused:
            open_manifest(signed_text(side, 6, body), roots_of(side), side.name)
        assert refused.value.code is RefusalCode.MALFORMED


def test_too_large_is_refused_before_it_is_read(side: Side) -> None:
    body = b" " * (MANIFEST_BYTES_MAX + 1)
    with pytest.raises(BundleRefused) as refused:
        open_manifest(signed_text(side, 6, body), roots_of(side), side.name)
    assert refused.value.code is RefusalCode.OVERSIZED
    with pytest.raises(BundleRefused) as refused:
        build_section(side.name, SectionKind.PACK, "large", {"text": "x" * SECTION_BYTES_MAX})
    assert refused.value.code is RefusalCode.OVERSIZED


def test_an_oversized_section_is_refused(holdings: Holdings, side: Side) -> None:
    issued = issue(side, 6)
    entry = replace(issued.manifest.sections[0], size_bytes=SECTION_BYTES_MAX + 1)
    with pytest.raises(BundleRefused) as refused:
        holdings.keep_section(entry, b"x" * (SECTION_BYTES_MAX + 1))
    assert refused.value.code is RefusalCode.OVERSIZED


def test_tenants_of_the_other_side_are_never_imported(holdings: Holdings, side: Side) -> None:
    other = domestic()
    theirs = issue(other, 3)
    for kind in (SectionKind.TENANTS, SectionKind.SETTINGS):
        stolen = [entry for entry in theirs.manifest.sections if entry.kind is kind]
        ours = issue(side, 6, imported=theirs).manifest
        sections = tuple(sorted((*ours.sections, *stolen), key=lambda entry: entry.order()))
        body = canonical_bytes(manifest_to_json(replace(ours, sections=sections)))
        with pytest.raises(BundleRefused) as refused:
            open_manifest(signed_text(side, 6, body), roots_of(side, other), side.name)
        assert refused.value.code is RefusalCode.NOT_IMPORTABLE


def test_a_manifest_for_another_permit_is_refused(holdings: Holdings, side: Side) -> None:
    assert refusal(holdings, issue(side, 6, permit_version=99)) is RefusalCode.UNKNOWN_PERMIT_VERSION


def test_a_section_that_is_not_there_refuses_the_bundle(holdings: Holdings, side: Side) -> None:
    files = (*side.files, (SectionKind.TENANTS, "more", tenants("more")))
    issued = replace(issue(side, 6, files=files), bodies={})
    assert refusal(holdings, issued) is RefusalCode.MISSING_SECTION


def test_a_document_that_does_not_fit_its_kind_refuses_the_bundle(holdings: Holdings, side: Side) -> None:
    files = [(SectionKind.PACK, "eu", {**pack("eu", ["EEA"], "EU", target=["DE"]), "mode": "perhaps"})]
    with pytest.raises(BundleRefused) as refused:
        take(holdings, issue(side, 6, files=files))
    assert refused.value.code is RefusalCode.INVALID_SECTION
    assert "mode" in refused.value.sentence
    assert "perhaps" not in refused.value.sentence


def test_a_manifest_needs_the_revocation_list_that_it_was_issued_under(holdings: Holdings, side: Side) -> None:
    issued = issue(side, 6, revocations=2)
    assert refusal(holdings, issued) is RefusalCode.MISSING_REVOCATIONS
    holdings.take_list(revoke(side, 2, Revoked()))
    take(holdings, issued)


def test_a_revocation_list_never_goes_back(holdings: Holdings, side: Side) -> None:
    newer = Revoked(pools=frozenset({PoolId("sg-pool")}))
    assert holdings.take_list(revoke(side, 2, newer))
    assert not holdings.take_list(revoke(side, 2, newer))
    for number, code in ((1, RefusalCode.ROLLED_BACK), (2, RefusalCode.EQUIVOCATION)):
        with pytest.raises(BundleRefused) as refused:
            holdings.take_list(revoke(side, number, Revoked()))
        assert refused.value.code is code
    bundle = holdings.bundle(side.name)
    assert bundle is not None
    assert bundle.revoked.pools == {"sg-pool"}
    assert bundle.revocations.number == 2


def test_a_tampered_revocation_list_is_refused(side: Side) -> None:
    signed = revoke(side, 1, Revoked(pools=frozenset({PoolId("sg-pool")})))
    body = signed.body.replace(b"sg-pool", b"sg-poop")
    with pytest.raises(BundleRefused) as refused:
        open_revocations(replace(signed, body=body, digest=digest_of(body)), roots_of(side), side.name)
    assert refused.value.code is RefusalCode.BAD_SIGNATURE


def test_an_import_never_extends_a_horizon(side: Side) -> None:
    theirs = issue(domestic(), 3, horizons=Horizons(NOW_MS + 10, NOW_MS + 20, NOW_MS + 30))
    ours: Manifest = issue(side, 6, imported=theirs).manifest
    assert ours.effective_horizons() == Horizons(NOW_MS + 10, NOW_MS + 20, NOW_MS + 30)
    longer = issue(domestic(), 3, horizons=Horizons(NOW_MS + 10**12, NOW_MS + 10**12, NOW_MS + 10**12))
    ours = issue(side, 6, imported=longer).manifest
    assert ours.effective_horizons() == ours.horizons
