"""The input manifest: a signed statement of everything that went into a request, and that nothing domestic is in it.

CAC Order 16 art. 4 exempts the processing of overseas data if no domestic data is introduced. That negative is proven
by naming every input: the parts of the prompt by role, tools, and the state that the engine may share between requests.
It holds counts, sizes and keyed commitments, never a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import msgspec

from orchestrator.evidence.canonical import commit, written_part
from orchestrator.policy.ids import AttemptId, Digest, KeyId, digest_of
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Domestic, Effective
from orchestrator.policy.vocabulary import UNKNOWN

MANIFEST_VERSION = 1
MANIFEST_PREFIX = b"tidegate inputs v1\n"
ATTEMPT_NAMESPACE = "attempt"
"""No keys and values of a prompt are shared: those of an attempt are used by that attempt alone."""
_DOMESTIC_WORDS = {value: value.word for value in Domestic}


class InputPart(msgspec.Struct, frozen=True):
    """Every input of one kind: the messages of one role, or the tools. Its fields are those of the record."""

    kind: str
    """`system`, `user`, `assistant`, `tool`, or `tools` for their definitions."""
    count: int
    size_bytes: int
    commitment: str | None
    """Over the texts in their order; None without any."""


_NO_TOOLS = InputPart("tools", 0, 0, None)


class InputManifest(msgspec.Struct, frozen=True, dict=True):
    """What went into one attempt. With room for what is made of it once."""

    attempt: AttemptId
    parts: tuple[InputPart, ...]
    domestic: Domestic
    """Of the whole: the join over all inputs."""
    origin: frozenset[Jurisdiction]
    collected: frozenset[Jurisdiction]
    cache_namespace: str

    @cached_property
    def written(self) -> msgspec.Raw:
        """The canonical bytes, which a record has as a part."""
        return written_part(
            {
                "attempt": self.attempt,
                "cache_namespace": self.cache_namespace,
                "collected": self.collected,
                "domestic": _DOMESTIC_WORDS[self.domestic],
                "origin": self.origin,
                "parts": self.parts,
                "v": MANIFEST_VERSION,
            }
        )

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        return bytes(self.written)

    @cached_property
    def digest(self) -> Digest:
        """The digest that an edge attests with the attempt."""
        return digest_of(MANIFEST_PREFIX + self.to_bytes())

    def proves_none(self, country: str) -> bool:
        """Whether it states that no data of `country` went in: by its label, by origin and by place of collection."""
        known = UNKNOWN not in self.origin and UNKNOWN not in self.collected
        return self.domestic is Domestic.NO and known and country not in self.origin and country not in self.collected


def manifest_of(
    attempt: AttemptId, texts: Sequence[tuple[str, str]], label: Effective, key: bytes, key_id: KeyId
) -> InputManifest:
    """Return the manifest of an attempt from its (role, text) pairs.

    The label covers every input: they came together in one request.
    """
    kinds: dict[str, list[bytes]] = {}
    for role, text in texts:
        kinds.setdefault(role, []).append(text.encode())
    parts = [
        InputPart(kind, len(mine), sum(map(len, mine)), commit(key, key_id, mine)) for kind, mine in kinds.items()
    ]
    return InputManifest(
        attempt, (*parts, _NO_TOOLS), label.domestic, label.origin, label.collected, ATTEMPT_NAMESPACE
    )


def counts_of(texts: Sequence[tuple[str, str]]) -> dict[str, tuple[int, int]]:
    """Return count and bytes per role: what the receiving side counts again."""
    found: dict[str, tuple[int, int]] = {}
    for role, text in texts:
        count, size_bytes = found.get(role, (0, 0))
        found[role] = (count + 1, size_bytes + len(text.encode()))
    return found


def agrees(manifest: InputManifest, texts: Sequence[tuple[str, str]]) -> bool:
    """Whether a manifest accounts for exactly these inputs."""
    arrived = counts_of(texts)
    for part in manifest.parts:
        # A second part of one kind accounts for something that did not arrive.
        if (part.count or part.size_bytes) and arrived.pop(part.kind, None) != (part.count, part.size_bytes):
            return False
    return not arrived


def states(manifest: InputManifest, label: Effective) -> bool:
    """Whether a manifest says of its inputs what the label of the payload says."""
    said = (manifest.domestic, manifest.origin, manifest.collected)
    return said == (label.domestic, label.origin, label.collected)
