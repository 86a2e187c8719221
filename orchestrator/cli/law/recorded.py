"""Recorded decisions, and the bundles that they cite, as a program keeps both on this machine. Read only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from json import loads
from pathlib import Path
from typing import Any

from orchestrator.bundles.assemble import Bundle
from orchestrator.bundles.export import export_bundle, open_export
from orchestrator.bundles.refusals import BundleRefused
from orchestrator.bundles.roots import Roots, pinned
from orchestrator.bundles.store import BundleStore
from orchestrator.cli.evidence import records
from orchestrator.cli.law.explain import CannotExplain
from orchestrator.cli.law.program_files import ProgramFiles
from orchestrator.files.document import FileError


def decisions(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield decision records of edges: from a spool, or from a file with one JSON record a line. Raises FileError."""
    if path.is_dir():
        yield from (record for record in records(path, "decision") if record.get("program") == "edge")
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise FileError(str(path), 0, "", error.strerror or "expected a file that can be read") from None
    except UnicodeDecodeError:
        raise FileError(str(path), 0, "", "expected text in UTF-8") from None
    for number, line in enumerate(lines, 1):
        try:
            record = loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise FileError(str(path), number, "", "expected one JSON record a line")
        if record.get("kind") == "decision" and record.get("program") == "edge":
            yield record


def store_of(files: ProgramFiles) -> tuple[BundleStore, Roots]:
    """Return the bundles that a program keeps, and the roots that it pins. Raises CannotExplain."""
    try:
        roots = pinned(files.roots)
    except ValueError as error:
        raise CannotExplain(f"roots: {error}") from None
    return BundleStore(files.data_dir / "bundles", roots, read_only=True), roots


def cited_bundle(files: ProgramFiles, record: Mapping[str, Any]) -> Bundle:
    """Return the bundle that a record cites, of those that its program keeps. Raises CannotExplain."""
    cited = record["citation"]
    store, roots = store_of(files)
    held = store.kept(cited["side"], cited["manifest"], cited["manifest_digest"])
    if held is None:
        what = f"manifest {cited['manifest']} of {cited['side']}"
        raise CannotExplain(f"{what} is no longer kept here: give an exported one with --bundle")
    try:
        return open_export(export_bundle(store, files.roots, held), roots)
    except BundleRefused as refusal:
        raise CannotExplain(refusal.sentence) from None
