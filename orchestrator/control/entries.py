"""The values and errors of the registry. Pure.

No error here holds a value that was read or written, so that any of them may be logged: keys, counts and the names of
gRPC codes are all that they tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

RegistryKey = NewType("RegistryKey", str)
"""A key below the prefix of its registry, as ``fleet/pools/sg-a``."""
Revision = NewType("Revision", int)
"""A number of etcd's history. Each commit has one; all keys that it writes carry it as their mod_revision."""
LeaseId = NewType("LeaseId", int)

ABSENT = Revision(0)
"""The mod_revision of a key that does not exist."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A value with the revision that wrote it. Its repr holds no value."""

    value: bytes
    mod_revision: Revision

    def __repr__(self) -> str:
        return f"Entry(size_bytes={len(self.value)}, mod_revision={self.mod_revision})"


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one key: an entry, or None where the key was deleted."""

    key: RegistryKey
    entry: Entry | None
    mod_revision: Revision
    """The revision of the change. For a delete that a listing showed: the revision of the listing, at or after it."""

    @property
    def size_bytes(self) -> int:
        """Length of the key and of the value."""
        return len(self.key) + (len(self.entry.value) if self.entry is not None else 0)


@dataclass(frozen=True, slots=True)
class Listing:
    """All entries below a prefix as they were at one revision."""

    revision: Revision
    cluster_id: int
    """Names the etcd cluster whose history the revision belongs to."""
    entries: dict[RegistryKey, Entry]


@dataclass(frozen=True, slots=True)
class Put:
    """One key to write. A lease deletes the key when it ends. The repr holds no value."""

    key: RegistryKey
    value: bytes
    lease: LeaseId | None = None

    def __repr__(self) -> str:
        return f"Put(key={self.key!r}, size_bytes={len(self.value)})"


@dataclass(frozen=True, slots=True)
class Guard:
    """A condition of a commit: the key has this mod_revision (`ABSENT`: it does not exist)."""

    key: RegistryKey
    mod_revision: Revision


class RegistryError(Exception):
    """Root of what the registry raises."""


class RegistryUnavailable(RegistryError):
    """etcd was not reachable, hung, without a leader, or cut the stream. Worth trying again."""

    def __init__(self, operation: str, reason: str, *, may_have_applied: bool = False) -> None:
        super().__init__(f"registry unavailable: {operation}: {reason}")
        self.operation = operation
        self.reason = reason
        """A gRPC code by name, or a few words of ours."""
        self.may_have_applied = may_have_applied
        """Whether a write may have been applied, or may still be: read before deciding anything on its absence."""


class RegistryConflict(RegistryError):
    """A guard of a commit did not hold. Nothing of the commit was applied by this call."""

    def __init__(self, operation: str, keys: tuple[RegistryKey, ...]) -> None:
        super().__init__(f"registry conflict: {operation}: {', '.join(keys)}")
        self.operation = operation
        self.keys = keys
        """The keys whose guards did not hold."""


class RegistryRefused(RegistryError):
    """etcd answered that it will not: no permission, no space, too large, no such lease. Trying again will not help."""

    def __init__(self, operation: str, reason: str) -> None:
        super().__init__(f"registry refused: {operation}: {reason}")
        self.operation = operation
        self.reason = reason
        """A gRPC code by name."""
