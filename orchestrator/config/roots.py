"""The roots of both sides as every program's configuration pins them."""

from __future__ import annotations

import msgspec


class RootSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One pinned root."""

    side: str
    public_key: str
    """Base64 of 32 bytes, Ed25519."""
    jurisdictions: tuple[str, ...]
    """Under whose law this side may grant: codes, or names of groups such as EEA."""
    key_id: str = ""
    """Empty takes the start of the key's SHA-256."""
