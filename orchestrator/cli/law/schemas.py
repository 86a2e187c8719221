"""JSON Schemas of everything that people write, made from the types that read it, so that editors complete it.

`docs/schemas/` holds what this makes; a test holds the two equal. A schema says less than the loader: what a sentence,
a date or a jurisdiction is, and whether a rule makes sense, only the loader knows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from orchestrator.bundles.export import ExportForm
from orchestrator.bundles.revocations import RevocationsDocument
from orchestrator.files.fleet import FleetDocument
from orchestrator.files.pack_shapes import PackDocument
from orchestrator.files.prices import PricesDocument
from orchestrator.files.replay_fleet import ReplayFleetDocument
from orchestrator.files.requests import RequestDocument
from orchestrator.files.settings import SettingsDocument
from orchestrator.files.sides import SideDocument
from orchestrator.files.tenants import TenantsDocument
from orchestrator.policy.counters import CounterKind

SCHEMAS: dict[str, Any] = {
    "bundle": ExportForm,
    "fleet": FleetDocument,
    "pack": PackDocument,
    "prices": PricesDocument,
    "replay-fleet": ReplayFleetDocument,
    "request": RequestDocument,
    "revocations": RevocationsDocument,
    "settings": SettingsDocument,
    "side": SideDocument,
    "tenants": TenantsDocument,
}
"""By the name of the kind of file."""


def schema_of(kind: str) -> dict[str, Any]:
    """Return the schema of one kind of file (JSON Schema 2020-12). Raises KeyError."""
    schema = msgspec.json.schema(SCHEMAS[kind])
    for record in schema["$defs"].values():
        counters = record.get("properties", {}).get("counters")
        if counters is not None:  # msgspec says nothing of the keys of a mapping
            counters["propertyNames"] = {"enum": sorted(kind.value for kind in CounterKind)}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"Tidegate {kind} file", **schema}


def schema_text(kind: str) -> str:
    """Return the schema as the file holds it."""
    encoded = msgspec.json.encode(schema_of(kind), order="sorted")
    return msgspec.json.format(encoded, indent=2).decode() + "\n"


def write_schemas(folder: Path) -> tuple[Path, ...]:
    """Write every schema. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for kind in SCHEMAS:
        path = folder / f"{kind}.schema.json"
        path.write_text(schema_text(kind), encoding="utf-8")
        written.append(path)
    return tuple(written)
