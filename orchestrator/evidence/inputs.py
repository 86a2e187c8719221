"""The input manifest: a signed statement of everything that went into a request, and that nothing domestic is in it.

CAC Order 16 art. 4 exempts the processing of overseas data if no domestic data is introduced. That negative is proven
by naming every input: the parts of the prompt by role, tools, and the state that the engine may share between requests.
It holds counts, sizes and keyed commitments, never a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from orchestrator.evidence.canonical import JsonValue, commit, spelled
from orchestrator.policy.ids import AttemptId, Digest, KeyId, digest_of
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Domestic, Effective
from orchestrator.policy.vocabulary import UNKNOWN

MANIFEST_VERSION = 1
MANIFEST_PREFIX = b"tidegate inputs v1\n"
ATTEMPT_NAMESPACE = "attempt"
"""No keys and values of a prompt are shared: those of an attempt are used by that attempt alone."""


@dataclass(frozen=True, slots=True)
class InputPart:
    """Every input of one kind: the messages of one role, or the tools."""

    kind: str
    """`system`, `user`, `assistant`, `tool`, or `tools` for their definitions."""
    count: int
    size_bytes: int
    commitment: str | None
    """Over the texts in their order; None without any."""


@dataclass(frozen=True)
class InputManifest:
    """What went into one attempt. Without slots, so that its digest is made once."""

    attempt: AttemptId
    parts: tuple[InputPart, ...]
    domestic: Domestic
    """Of the whole: the join over all inputs."""
    origin: frozenset[Jurisdiction]
    collected: frozenset[Jurisdiction]
    cache_namespace: str

    def to_json(self) -> dict[str, JsonValue]:
        """Return the manifest as canonical JSON holds it."""
        return {
            "v": MANIFEST_VERSION,
            "attempt": self.attempt,
            "parts": [
                {"kind": part.kind, "count": part.count, "size_bytes": part.size_bytes, "commitment": part.commitment}
                for part in self.parts
            ],
            "domestic": self.domestic.word,
            "origin": list[JsonValue](sorted(self.origin)),
            "collected": list[JsonValue](sorted(self.collected)),
            "cache_namespace": self.cache_namespace,
        }

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        return spelled(self.to_json())

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
    kinds = dict.fromkeys(role for role, _ in texts)
    parts = []
    for kind in kinds:
        mine = tuple(text.encode() for role, text in texts if role == kind)
        parts.append(InputPart(kind, len(mine), sum(map(len, mine)), commit(key, key_id, mine)))
    parts.append(InputPart("tools", 0, 0, None))
    return InputManifest(attempt, tuple(parts), label.domestic, label.origin, label.collected, ATTEMPT_NAMESPACE)


def counts_of(texts: Sequence[tuple[str, str]]) -> dict[str, tuple[int, int]]:
    """Return count and bytes per role: what the receiving side counts again."""
    found: dict[str, tuple[int, int]] = {}
    for role, text in texts:
        count, size_bytes = found.get(role, (0, 0))
        found[role] = (count + 1, size_bytes + len(text.encode()))
    return found


def agrees(manifest: InputManifest, texts: Sequence[tuple[str, str]]) -> bool:
    """Whether a manifest accounts for exactly these inputs."""
    told = [(part.kind, (part.count, part.size_bytes)) for part in manifest.parts if part.count or part.size_bytes]
    # As lists: a second part of one kind accounts for something that did not arrive.
    return sorted(told) == sorted(counts_of(texts).items())


def states(manifest: InputManifest, label: Effective) -> bool:
    """Whether a manifest says of its inputs what the label of the payload says."""
    said = (manifest.domestic, manifest.origin, manifest.collected)
    return said == (label.domestic, label.origin, label.collected)
