"""Why a manifest, a section or a revocation list is not accepted. The last good one stays."""

from __future__ import annotations

from enum import Enum


class RefusalCode(Enum):
    """The kinds of refusal, for alarms and counters."""

    MALFORMED = "malformed"
    UNKNOWN_VERSION = "unknown_version"
    UNKNOWN_PERMIT_VERSION = "unknown_permit_version"
    OVERSIZED = "oversized"
    DIGEST_MISMATCH = "digest_mismatch"
    WRONG_SIDE = "wrong_side"
    UNKNOWN_KEY = "unknown_key"
    BAD_SIGNATURE = "bad_signature"
    NOT_IMPORTABLE = "not_importable"
    """A section of a kind that never crosses the border."""
    EXPIRED = "expired"
    ROLLED_BACK = "rolled_back"
    EQUIVOCATION = "equivocation"
    """Two manifests, or lists, with one number."""
    MISSING_SECTION = "missing_section"
    MISSING_REVOCATIONS = "missing_revocations"
    INVALID_SECTION = "invalid_section"
    """A document that does not fit its kind."""
    CONFLICT = "conflict"
    """Something is declared twice."""
    FOREIGN_SOIL = "foreign_soil"
    """A fleet entry on soil that its side's root does not name, or for another side."""


class BundleRefused(Exception):
    """Something signed is not accepted. Its text holds names, numbers and digests, never a document's values."""

    def __init__(self, code: RefusalCode, sentence: str) -> None:
        super().__init__(f"{code.value}: {sentence}")
        self.code = code
        self.sentence = sentence
