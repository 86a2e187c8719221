"""`tidegate whatif`: one thing changes, and every request that is asked about is placed before and after it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from orchestrator.bundles.assemble import Bundle
from orchestrator.cli.law.commands import AtOption, ConfigOption, JsonOption, RootsOption, SideOption, at_ms
from orchestrator.cli.law.explain import CannotExplain, Case, case_of_record, case_of_request
from orchestrator.cli.law.lawbook import read_lawbook
from orchestrator.cli.law.program_files import ProgramFiles, read_program_files, read_roots
from orchestrator.cli.law.recorded import cited_bundle, decisions, store_of
from orchestrator.cli.replay.changes import (
    Change,
    drain_change,
    law_change,
    outage_change,
    price_change,
    rtt_change,
    settings_change,
    without_change,
)
from orchestrator.cli.replay.moves import Asked, Book, move, moves_to_json
from orchestrator.cli.replay.render_moves import render_moves
from orchestrator.evidence.records import RECORD_VERSION
from orchestrator.files.document import FileError, read_document
from orchestrator.files.domain_error import read_as
from orchestrator.files.requests import RequestDocument, request_of
from orchestrator.files.settings import SettingsDocument, settings_of
from orchestrator.policy.ids import PoolId

EXIT_BAD_INPUT = 2
OPTIONS = ("--price", "--outage", "--rtt", "--drain", "--without", "--law", "--settings")
OF_A_POOL: Mapping[str, Callable[[str, Collection[Bundle]], Change]] = {
    "--price": price_change,
    "--outage": outage_change,
    "--rtt": rtt_change,
    "--drain": drain_change,
    "--without": without_change,
}


@dataclass(frozen=True, slots=True)
class _Where:
    """Where requests, records and bundles come from."""

    bundle: Path | None
    requests: Sequence[Path]
    trace: Path | None
    config: Path | None
    roots: Path | None
    side: str | None
    now_ms: int


def whatif_command(
    bundle: Annotated[Path | None, typer.Option("--bundle", help="Folder or export, before the change.")] = None,
    request: Annotated[list[Path] | None, typer.Option("--request", help="Request file; may be repeated.")] = None,
    config: ConfigOption = None,
    trace: Annotated[
        Path | None, typer.Option("--trace", help="Spool folder of an edge, or a file of decision records.")
    ] = None,
    price: Annotated[
        list[str] | None, typer.Option("--price", help="POOL[/MODEL]=INPUT,CACHED,OUTPUT per million tokens.")
    ] = None,
    outage: Annotated[list[str] | None, typer.Option("--outage", help="POOL is gone.")] = None,
    rtt: Annotated[list[str] | None, typer.Option("--rtt", help="POOL=MS: another round trip.")] = None,
    drain: Annotated[list[str] | None, typer.Option("--drain", help="POOL gets no new work.")] = None,
    without: Annotated[list[str] | None, typer.Option("--without", help="POOL is not declared.")] = None,
    law: Annotated[list[str] | None, typer.Option("--law", help="Folder or export whose packs decide.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--settings", help="Other placement settings.")] = None,
    roots: RootsOption = None,
    at: AtOption = None,
    side: SideOption = None,
    json: JsonOption = False,
) -> None:
    """Change one thing, and show which requests go elsewhere, and why."""
    given = dict(zip(OPTIONS, (price, outage, rtt, drain, without, law, settings), strict=True))
    try:
        option, text = _one(given)
        where = _Where(bundle, request or [], trace, config, roots, side, at_ms(at))
        value = _whatif(where, option, text)
    except (FileError, CannotExplain) as error:
        sys.stderr.write(f"{error}\n")
        raise typer.Exit(EXIT_BAD_INPUT) from None
    if json:
        sys.stdout.write(dumps(value, indent=2) + "\n")
    else:
        render_moves(value, Console())


def _one(given: Mapping[str, Sequence[str] | None]) -> tuple[str, str]:
    """Return the one change that was asked for. Raises CannotExplain."""
    asked = [(option, text) for option, texts in given.items() for text in texts or ()]
    if len(asked) != 1:
        raise CannotExplain(f"expected exactly one of {', '.join(OPTIONS)}")
    return asked[0]


def _whatif(where: _Where, option: str, text: str) -> dict[str, Any]:
    if where.bundle is None and (where.requests or where.trace is not None):
        raise CannotExplain("--bundle: expected the folder or export that --request and --trace are asked about")
    if not where.requests and where.trace is None and where.config is None:
        raise CannotExplain("expected --request FILE or --trace PATH with --bundle PATH, or --config FILE of an edge")
    files = None if where.config is None else read_program_files(where.config)
    skipped: Counter[str] = Counter()
    found = _records(where, files, skipped)
    read = _Reader(where, max([where.now_ms, *(one.case.now_ms for one in found)]))
    asked = _asked(where, files, read, found, skipped)
    if not asked:
        told = ", ".join(f"{count} {why}" for why, count in skipped.items()) or "none was recorded"
        raise CannotExplain(f"expected a decision that can be made again ({told})")
    bundles = list({id(bundle): bundle for _, bundle in asked}.values())
    change = _change(option, text, read, bundles)
    books = {id(one): (Book(one), Book(change.to_bundle(one))) for one in bundles}
    moves = [
        move(Asked(one.name, one.case, *books[id(bundle)], one.recorded, one.is_record), change)
        for one, bundle in asked
    ]
    return moves_to_json(moves, change, skipped)


@dataclass(frozen=True, slots=True)
class _Named:
    """A case before it is known which bundle it stands on."""

    name: str
    case: Case
    recorded: PoolId | None = None
    citation: Mapping[str, Any] | None = None
    """Of a record."""

    @property
    def is_record(self) -> bool:
        return self.citation is not None


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads bundles. A folder is taken to be issued when the last decision was made: none finds it expired."""

    where: _Where
    issued_ms: int

    def bundle(self, path: Path) -> Bundle:
        """Return a bundle. Raises FileError."""
        roots = None if self.where.roots is None else read_roots(self.where.roots)
        book = read_lawbook(path, self.issued_ms, side=self.where.side, roots=roots)
        if book.note:
            sys.stderr.write(f"{book.note}\n")
        return book.bundle


def _records(where: _Where, files: ProgramFiles | None, skipped: Counter[str]) -> list[_Named]:
    found: list[Mapping[str, Any]] = []
    if where.trace is not None:
        found += decisions(where.trace)
    for one in () if files is None else files.each():
        found += decisions(one.data_dir / "spool")
    named = []
    for record in found:
        if record.get("v") != RECORD_VERSION:
            skipped[f"not of version {RECORD_VERSION}"] += 1
            continue
        try:
            pool = record["placement"]["chosen"]
            recorded = None if pool is None else PoolId(pool)
            named.append(_Named(str(record["id"]), case_of_record(record), recorded, record["citation"]))
        except (KeyError, TypeError):
            raise CannotExplain("--trace: a record does not hold what a decision is made again from") from None
    return named


def _asked(
    where: _Where, files: ProgramFiles | None, read: _Reader, found: Sequence[_Named], skipped: Counter[str]
) -> list[tuple[_Named, Bundle]]:
    """Return every case with the bundle that it stands on: the one that is given, else the one that it cites."""
    asked: list[tuple[_Named, Bundle]] = []
    given = None if where.bundle is None else read.bundle(where.bundle)
    if given is not None:
        for path in where.requests:
            case, _ = case_of_request(given, read_as(read_document(path), RequestDocument, request_of), where.now_ms)
            asked.append((_Named(str(path), case), given))
    kept = _Kept(files)
    for one in found:
        bundle = given or kept.cited(one.citation or {})
        if bundle is None:
            skipped["by a bundle that is no longer kept"] += 1
        elif bundle.fleet.edge(one.case.edge) is None:
            skipped["of an edge that the bundle does not have"] += 1
        else:
            asked.append((one, bundle))
    return asked


class _Kept:
    """The bundles that an edge keeps, each opened once."""

    def __init__(self, files: ProgramFiles | None) -> None:
        self._files = files
        self._opened: dict[str, Bundle | None] = {}

    def cited(self, citation: Mapping[str, Any]) -> Bundle | None:
        """Return the bundle of a citation, or None where it is not kept. Raises CannotExplain for bad roots."""
        if self._files is None:
            return None
        store_of(self._files)
        digest = str(citation.get("manifest_digest"))
        if digest not in self._opened:
            kept = (_cited(one, citation) for one in self._files.each())
            self._opened[digest] = next((bundle for bundle in kept if bundle is not None), None)
        return self._opened[digest]


def _cited(files: ProgramFiles, citation: Mapping[str, Any]) -> Bundle | None:
    try:
        return cited_bundle(files, {"citation": citation})
    except CannotExplain:
        return None


def _change(option: str, text: str, read: _Reader, bundles: Collection[Bundle]) -> Change:
    if option == "--law":
        return law_change(text, read.bundle(Path(text)))
    if option == "--settings":
        return settings_change(text, read_as(read_document(Path(text)), SettingsDocument, settings_of), bundles)
    return OF_A_POOL[option](text, bundles)
