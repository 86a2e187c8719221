"""Manifests that no longer count, kept for as long as decisions that cite them may be made again.

    archive/manifests/<side>/<number>-<sha256>   as the store held it
    archive/sections/<sha256>                    a second name of the section's file

Bounded by time: what came here more than `keep_ms` ago goes, once a day. The time of a manifest's file is when it came
here, not when it was issued: decisions may cite it up to its last moment. Calls block on the disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from orchestrator.policy.ids import Digest, SideId

PRUNE_MS = 86_400_000
NS_PER_MS = 1_000_000


class Archive:
    """The archive of one store. Raises OSError when the disk fails."""

    def __init__(self, folder: Path, keep_ms: int) -> None:
        self._folder = folder
        self._keep_ms = keep_ms
        self._pruned_ms = 0

    def put(self, file: Path, side: SideId, sections: Iterable[Path], now_ms: int) -> None:
        """Move the file of a manifest here, and give each of its sections a second name."""
        for section in sections:
            kept = self._folder / "sections" / section.name
            if section.exists() and not kept.exists():
                kept.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileExistsError):
                    os.link(section, kept)
        target = self._folder / "manifests" / side / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.utime(file, ns=(now_ms * NS_PER_MS, now_ms * NS_PER_MS))
        file.replace(target)

    def manifest(self, side: SideId, name: str) -> Path:
        """Return where a manifest would lie."""
        return self._folder / "manifests" / side / name

    def section(self, name: str) -> Path:
        """Return where a section would lie."""
        return self._folder / "sections" / name

    def files(self) -> Iterator[Path]:
        """Yield every manifest that is kept."""
        yield from sorted((self._folder / "manifests").glob("*/*"))

    def prune(self, now_ms: int, sections_of: Callable[[Path], Iterable[Digest]]) -> None:
        """Drop what is too old, at most once a day. `sections_of` names the sections of a manifest's file."""
        if now_ms - self._pruned_ms < PRUNE_MS:
            return
        self._pruned_ms = now_ms
        named: set[str] = set()
        for file in self.files():
            if file.stat().st_mtime_ns < (now_ms - self._keep_ms) * NS_PER_MS:
                file.unlink(missing_ok=True)
            else:
                named |= {digest.removeprefix("sha256:") for digest in sections_of(file)}
        for section in (self._folder / "sections").glob("*"):
            if section.name not in named:
                section.unlink(missing_ok=True)
