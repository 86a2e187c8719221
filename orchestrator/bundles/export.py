"""An exported bundle: one file with a manifest, everything that it names, and the roots that signed it.

What `explain` reads on another machine, or years later. It is checked like what comes over the wire: every signature,
digest and size. The roots in the file are those that the exporter had pinned; a reader who pins its own passes them.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable

import msgspec

from orchestrator.bundles.assemble import Assembler, Bundle
from orchestrator.bundles.formats import FORMAT_VERSION, SectionEntry, Signed, open_manifest
from orchestrator.bundles.refusals import BundleRefused, RefusalCode
from orchestrator.bundles.revocations import RevocationList, open_revocations
from orchestrator.bundles.roots import Roots, RootSetting, pinned
from orchestrator.bundles.store import BundleStore, Held
from orchestrator.evidence.canonical import JsonValue, canonical_bytes
from orchestrator.files.strict_json import RequestError, parse_strict
from orchestrator.files.typed import Misfit, fit
from orchestrator.policy.ids import Digest, KeyId, SideId, digest_of, is_digest

KIND = "tidegate-bundle"
EXPORT_BYTES_MAX = 64 << 20


class SignedForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A manifest or a revocation list with its signature; `body` is its canonical JSON, as text."""

    side: str
    number: int
    digest: str
    key_id: str
    signature: str
    body: str


class ExportForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file. `sections` maps digests to canonical JSON, as text."""

    v: int
    kind: str
    roots: tuple[RootSetting, ...]
    manifest: SignedForm
    revocations: tuple[SignedForm, ...]
    sections: dict[str, str]


def export_bundle(store: BundleStore, roots: Iterable[RootSetting], held: Held) -> bytes:
    """Return the file of a held manifest. Raises BundleRefused when a section of it is not there."""
    sections: dict[str, JsonValue] = {}
    for entry in held.manifest.sections:
        body = store.section(entry.digest)
        if body is None:
            raise BundleRefused(RefusalCode.MISSING_SECTION, f"Section {entry.title} is not there.")
        sections[entry.digest] = body.decode()
    roots = tuple(roots)
    lists = [store.revocations(SideId(side)) for side in sorted({root.side for root in roots})]
    return canonical_bytes(
        {
            "v": FORMAT_VERSION,
            "kind": KIND,
            "roots": [
                {
                    "side": root.side,
                    "public_key": root.public_key,
                    "jurisdictions": list[JsonValue](root.jurisdictions),
                    "key_id": root.key_id,
                }
                for root in roots
            ],
            "manifest": _signed_to_json(held.signed),
            "revocations": [_signed_to_json(found[1]) for found in lists if found is not None],
            "sections": sections,
        }
    )


def open_export(data: bytes, roots: Roots | None) -> Bundle:
    """Return the bundle in an exported file, checked against `roots`, or against its own without any.

    Raises BundleRefused.
    """
    form = _form(data)
    try:
        trusted = pinned(form.roots) if roots is None else roots
    except ValueError as error:
        raise BundleRefused(RefusalCode.MALFORMED, f"The exported bundle names a root that is none: {error}.") from None
    lists: dict[SideId, RevocationList] = {}
    for one in form.revocations:
        lists[SideId(one.side)] = open_revocations(_signed(one), trusted, SideId(one.side))
    signed = _signed(form.manifest)
    manifest = open_manifest(signed, trusted, signed.side)
    listed = lists.get(signed.side)
    if (0 if listed is None else listed.number) < manifest.revocations:
        sentence = f"The exported bundle was issued under revocation list {manifest.revocations}, which is not in it."
        raise BundleRefused(RefusalCode.MISSING_REVOCATIONS, sentence)
    bodies = {Digest(digest): body.encode() for digest, body in form.sections.items()}

    def body_of(entry: SectionEntry) -> bytes | None:
        return bodies.get(entry.digest)

    return Assembler(trusted).assemble(manifest, signed.digest, body_of, lists, law_only=False)


def _form(data: bytes) -> ExportForm:
    reason = "is no JSON object"
    if len(data) > EXPORT_BYTES_MAX:
        raise BundleRefused(RefusalCode.OVERSIZED, f"The exported bundle is larger than {EXPORT_BYTES_MAX} bytes.")
    try:
        form = fit(parse_strict(data), ExportForm)
    except RequestError as failure:
        reason = f"is not strict JSON ({failure.code})"
    except Misfit as misfit:
        reason = f"does not have its shape: {misfit}"
    else:
        if form.v == FORMAT_VERSION and form.kind == KIND:
            return form
        raise BundleRefused(RefusalCode.UNKNOWN_VERSION, f"It is no exported bundle of version {FORMAT_VERSION}.")
    raise BundleRefused(RefusalCode.MALFORMED, f"The exported bundle {reason}.")


def _signed(form: SignedForm) -> Signed:
    try:
        signature = base64.b64decode(form.signature, validate=True)
    except (binascii.Error, ValueError):
        signature = b""
    body = form.body.encode()
    if not is_digest(form.digest) or digest_of(body) != form.digest:
        raise BundleRefused(RefusalCode.DIGEST_MISMATCH, "A body in the exported bundle does not have its digest.")
    return Signed(SideId(form.side), form.number, Digest(form.digest), body, KeyId(form.key_id), signature)


def _signed_to_json(signed: Signed) -> dict[str, JsonValue]:
    return {
        "side": signed.side,
        "number": signed.number,
        "digest": signed.digest,
        "key_id": signed.key_id,
        "signature": base64.b64encode(signed.signature).decode("ascii"),
        "body": signed.body.decode(),
    }
