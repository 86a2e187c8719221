"""`tidegate policy check`: does a folder of declared files say what it seems to say?

Every file is read, so that one run shows every error; then what is odd without being wrong. Pure, apart from reading.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.bundles.assemble import Bundle
from orchestrator.cli.law.lawbook import read_lawbook, side_folders
from orchestrator.cli.publish import check_files
from orchestrator.evidence.canonical import JsonValue
from orchestrator.evidence.duties import DISCHARGERS
from orchestrator.files.document import FileError
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import UNKNOWN_SET
from orchestrator.policy.lint import Finding, Remark, lint

WARNINGS = frozenset(
    {
        Finding.CONTRADICTED,
        Finding.NEVER_TRUE,
        Finding.NO_LAW,
        Finding.NO_GRANT,
        Finding.FOREIGN_GRANT,
        Finding.EXPIRED,
        Finding.EXPIRING,
        Finding.NO_DISCHARGER,
    }
)
"""Findings that `--strict` fails for; the others are for reading."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found."""

    errors: tuple[FileError, ...]
    remarks: tuple[Remark, ...]
    packs: int
    rules: int
    vectors: int

    def warnings(self) -> tuple[Remark, ...]:
        """Return the remarks that somebody should act on."""
        return tuple(remark for remark in self.remarks if remark.kind in WARNINGS)

    def to_json(self) -> dict[str, JsonValue]:
        """Return everything that was found."""
        return {
            "v": 1,
            "packs": self.packs,
            "rules": self.rules,
            "vectors": self.vectors,
            "errors": [
                {"file": error.file, "line": error.line, "field": error.field, "expected": error.expected}
                for error in self.errors
            ],
            "remarks": [
                {
                    "kind": remark.kind.value,
                    "subject": remark.subject,
                    "sentence": remark.sentence,
                    "warning": remark.kind in WARNINGS,
                }
                for remark in self.remarks
            ],
        }


def check(path: Path, now_ms: int, side: str | None) -> Checked:
    """Check every file below `path`, then the law that they make together at `now_ms`."""
    errors: list[FileError] = []
    vectors = 0
    for folder in side_folders(path) if path.is_dir() else ():
        found = check_files(folder)
        errors += found.errors
        vectors += found.vectors
    if errors:
        return Checked(tuple(errors), (), 0, 0, vectors)
    try:
        bundle = read_lawbook(path, now_ms, side=side).bundle
    except FileError as error:
        return Checked((error,), (), 0, 0, vectors)
    remarks = lint(bundle.law, countries_of(bundle), bundle.tenants, DISCHARGERS.keys(), now_ms)
    rules = sum(len(admitted.pack.rules) for admitted in bundle.law.packs)
    return Checked((), remarks, len(bundle.law.packs), rules, vectors)


def countries_of(bundle: Bundle) -> dict[Jurisdiction, str]:
    """Return every country that the fleet and the tenants touch, each with who touches it first."""
    found: dict[Jurisdiction, str] = {}
    fleet = bundle.fleet
    places = [(f"edge {edge.id}", edge.place) for edge in fleet.edges]
    places += [(f"pool {pool.id}", pool.place) for pool in fleet.pools]
    places += [(f"sink {sink.id}", sink.place) for sink in fleet.sinks]
    for what, place in places:
        for country in place.reach():
            found.setdefault(country, what)
    for tenant in bundle.tenants:
        origin = tenant.attested.origin | tenant.floor.origin
        located = (tenant.attested.located or frozenset()) | (tenant.floor.located or frozenset())
        for country in (origin | located) - UNKNOWN_SET:
            found.setdefault(country, f"tenant {tenant.id}")
    return found
