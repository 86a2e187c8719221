"""The operator's commands about the law: `policy check`, `policy diff`, `policy table`, `explain`, `bundle export`."""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime
from json import dumps
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

from orchestrator.bundles.export import export_bundle, open_export
from orchestrator.bundles.refusals import BundleRefused
from orchestrator.cli.evidence import find
from orchestrator.cli.law.check import check
from orchestrator.cli.law.diff import difference
from orchestrator.cli.law.explain import CannotExplain, Explanation, explain_record, explain_request
from orchestrator.cli.law.lawbook import read_lawbook
from orchestrator.cli.law.program_files import ProgramFiles, read_program_files, read_roots
from orchestrator.cli.law.recorded import cited_bundle, decisions, store_of
from orchestrator.cli.law.render import render_check, render_difference, render_explanation, render_table
from orchestrator.cli.law.schemas import SCHEMAS, schema_text, write_schemas
from orchestrator.cli.law.table import table, to_html
from orchestrator.files.document import FileError, read_document
from orchestrator.files.domain_error import read_as
from orchestrator.files.requests import RequestDocument, request_of
from orchestrator.policy.ids import SideId

EXIT_BAD_INPUT = 2
EXIT_FOUND = 1

policy = typer.Typer(no_args_is_help=True, help="Read, check and compare the law.")
bundle = typer.Typer(no_args_is_help=True, help="Signed bundles.")

AtOption = Annotated[str | None, typer.Option("--at", help="ISO 8601 time, such as 2026-12-31T16:00:00Z; now without.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SideOption = Annotated[str | None, typer.Option("--side", help="Whose tenants count, where folders of both have some.")]
RootsOption = Annotated[Path | None, typer.Option("--roots", help="File with pinned roots, for an exported bundle.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="Settings file of an edge.")]


@policy.command("check")
def check_command(
    path: Annotated[Path, typer.Argument(help="Folder of declared files, or of folders of sides.")],
    at: AtOption = None,
    side: SideOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 on warnings too.")] = False,
    json: JsonOption = False,
) -> None:
    """Check every file, run every test vector, and show what is odd."""
    found = check(path, at_ms(at), side)
    if json:
        _say(dumps(found.to_json(), indent=2))
    else:
        render_check(found, Console())
    if found.errors:
        raise typer.Exit(EXIT_BAD_INPUT)
    if strict and found.warnings():
        raise typer.Exit(EXIT_FOUND)


@policy.command("diff")
def diff_command(
    before: Annotated[Path, typer.Argument(help="Folder or exported bundle.")],
    after: Annotated[Path, typer.Argument(help="Folder or exported bundle.")],
    trace: Annotated[
        Path | None, typer.Option("--trace", help="Spool folder of an edge, or a file of decision records.")
    ] = None,
    at: AtOption = None,
    side: SideOption = None,
    json: JsonOption = False,
) -> None:
    """Show what is newly allowed and newly forbidden, worst first. Exits with 1 when something is newly allowed."""
    now_ms = at_ms(at)
    try:
        books = [read_lawbook(path, now_ms, side=side).bundle for path in (before, after)]
        traced = [] if trace is None else list(decisions(trace))
        with Progress(SpinnerColumn(), TextColumn("{task.description}"), console=Console(stderr=True)) as progress:
            task = progress.add_task("classes of payloads")

            def tick(count: int) -> None:
                if count % 5_000 == 0:
                    progress.update(task, description=f"{count} classes of payloads")

            found = difference(books[0], books[1], traced, now_ms, tick)
    except (FileError, CannotExplain) as error:
        _fail(str(error))
    if json:
        _say(dumps(found.to_json(), indent=2))
    else:
        render_difference(found, Console())
    if any(change.newly_allowed for change in found.changes):
        raise typer.Exit(EXIT_FOUND)


@policy.command("table")
def table_command(
    path: Annotated[Path, typer.Argument(help="Folder or exported bundle.")],
    tenant: Annotated[str | None, typer.Option("--tenant", help="With the papers of this tenant.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page here.")] = None,
    at: AtOption = None,
    side: SideOption = None,
    json: JsonOption = False,
) -> None:
    """Show who may send what where, as a matrix."""
    now_ms = at_ms(at)
    try:
        found = table(read_lawbook(path, now_ms, side=side).bundle, now_ms, tenant)
    except FileError as error:
        _fail(str(error))
    except KeyError:
        _fail(f"--tenant: expected a tenant of the bundle, which has no {tenant}")
    if html is not None:
        try:
            html.write_text(to_html(found, "Who may send what where"), encoding="utf-8")
        except OSError as error:
            _fail(f"--html: {html}: {error.strerror or 'cannot be written'}")
    if json:
        _say(dumps(found.to_json(), indent=2))
    elif html is None:
        render_table(found, Console())


@policy.command("schema")
def schema_command(
    kind: Annotated[str | None, typer.Argument(help="Kind of file; without one, every schema is written.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for every schema.")] = Path("docs/schemas"),
) -> None:
    """Print the JSON Schema of a kind of file, or write all of them."""
    if kind is None:
        try:
            for written in write_schemas(out):
                _say(str(written))
        except OSError as error:
            _fail(f"--out: {out}: {error.strerror or 'cannot be written'}")
    elif kind in SCHEMAS:
        sys.stdout.write(schema_text(kind))
    else:
        _fail(f"expected one of {', '.join(SCHEMAS)}")


def explain_command(
    decision: Annotated[str | None, typer.Argument(help="Id of a recorded decision, dec_...")] = None,
    request: Annotated[Path | None, typer.Option("--request", help="File with a request.")] = None,
    path: Annotated[Path | None, typer.Option("--bundle", help="Folder as publish takes it, or exported file.")] = None,
    config: ConfigOption = None,
    roots: RootsOption = None,
    at: AtOption = None,
    side: SideOption = None,
    json: JsonOption = False,
) -> None:
    """Explain where a request may go and why not elsewhere, or make a recorded decision again and compare."""
    try:
        if decision is not None and request is None:
            found = _explain_decision(decision, path, config, roots)
        elif request is not None and decision is None and path is not None:
            now_ms = at_ms(at)
            asked = read_as(read_document(request), RequestDocument, request_of)
            book = read_lawbook(path, now_ms, side=side, roots=None if roots is None else read_roots(roots))
            if book.note:
                sys.stderr.write(f"{book.note}\n")
            found = explain_request(book.bundle, asked, now_ms)
        else:
            _fail("expected --request FILE with --bundle PATH, or the id of a decision with --config FILE")
    except (FileError, CannotExplain) as error:
        _fail(str(error))
    if json:
        _say(dumps(found.value, indent=2))
    else:
        render_explanation(found, Console())


@bundle.command("export")
def export_command(
    config: Annotated[Path, typer.Option("--config", help="Settings file of an edge or a scheduler.")],
    out: Annotated[Path, typer.Option("--out", help="File to write.")],
    number: Annotated[int, typer.Option("--number", help="Number of a kept manifest; 0 is the newest.")] = 0,
    side: Annotated[str | None, typer.Option("--side", help="Of this side; default is the program's own.")] = None,
) -> None:
    """Write a bundle that a program holds into one signed file."""
    try:
        files = read_program_files(config)
        data = _export(files, side or files.side, number)
        _write_private(out, data)
        exported = open_export(data, None)
    except (FileError, CannotExplain) as error:
        _fail(str(error))
    except BundleRefused as refusal:
        _fail(refusal.sentence)
    except OSError as error:
        _fail(f"{out}: {error.strerror or 'cannot be written'}")
    _say(f"manifest {exported.number} of {exported.side} {exported.digest}")


def _export(files: ProgramFiles, side: str, number: int) -> bytes:
    store, trusted = store_of(files)
    if side not in trusted.sides:
        raise CannotExplain(f"--side: expected a side with a pinned root: {', '.join(sorted(trusted.sides)) or 'none'}")
    every = store.held(SideId(side))
    held = [one for one in every if number in (0, one.manifest.number)]
    if not held:
        kept = ", ".join(str(one.manifest.number) for one in every) or "none"
        raise CannotExplain(f"--number: expected a manifest of {side} that is kept: {kept}")
    return export_bundle(store, files.roots, held[-1])


def _explain_decision(decision: str, path: Path | None, config: Path | None, roots: Path | None) -> Explanation:
    if config is None:
        raise CannotExplain("expected --config FILE: the settings of the edge that decided")
    each = read_program_files(config).each()
    found = ((one, find(one.data_dir / "spool", "decision", "id", decision)) for one in each)
    files, record = next((pair for pair in found if pair[1] is not None), (each[0], None))
    if record is None:
        raise CannotExplain(f"expected a decision that the edge's spool holds, which has no {decision}")
    if path is not None:
        trusted = store_of(files)[1] if roots is None else read_roots(roots)
        return explain_record(read_lawbook(path, record["decided_ms"], roots=trusted).bundle, record)
    return explain_record(cited_bundle(files, record), record)


def _write_private(path: Path, data: bytes) -> None:
    """A bundle holds what tenants agreed: a file that is new is its owner's alone."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(data)


def at_ms(text: str | None) -> int:
    """Return the moment that `--at` names, now without. Ends the command with one sentence where it names none."""
    if text is None:
        return time.time_ns() // 1_000_000
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        _fail("--at: expected a time of ISO 8601, such as 2026-12-31T16:00:00Z")
    if not 1970 <= moment.year < 9998:
        _fail("--at: expected a year between 1970 and 9997")
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _fail(sentence: str) -> NoReturn:
    sys.stderr.write(f"{sentence}\n")
    raise typer.Exit(EXIT_BAD_INPUT)
