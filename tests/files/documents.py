"""Whole documents that are valid, and a way to break one in one place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import yaml

from orchestrator.files.document import FileError, load_document
from orchestrator.files.domain_error import read_as

Shape = TypeVar("Shape")
Value = TypeVar("Value")
Path = tuple[str | int, ...]

DROP = object()
"""Stands for a field that is taken away."""

OPEN_VECTORS: list[dict[str, Any]] = [
    {"label": {"personal": "none"}, "from": ["DE"], "target": ["CN"], "action": "infer", "expect": "holds"},
    {"label": {"personal": "personal"}, "from": ["DE"], "target": ["CN"], "action": "infer", "expect": "not"},
]
CLOSED_VECTORS: list[dict[str, Any]] = [
    {"label": {"personal": "personal"}, "from": ["DE"], "target": ["CN"], "action": "infer", "expect": "holds"},
    {"label": {"personal": "none"}, "from": ["DE"], "target": ["CN"], "action": "infer", "expect": "not"},
]
SOURCE = {"instrument": "GDPR", "article": "Art. 46", "dated": "2016-04-27"}


def rule(name: str, effect: str, **fields: Any) -> dict[str, Any]:
    """A rule about personal payloads that fits its effect."""
    grant = effect == "grant"
    return {
        "id": name,
        "effect": effect,
        "when": [{"personal": {"at_most": "none"} if grant else {"at_least": "personal"}}],
        "sentence": "A sentence.",
        "source": dict(SOURCE),
        "confidence": "high",
        "vectors": copy.deepcopy(OPEN_VECTORS if grant else CLOSED_VECTORS),
        **fields,
    }


PACK: dict[str, Any] = {
    "version": 1,
    "id": "eu-test",
    "title": "A pack",
    "topic": "transfer",
    "jurisdictions": ["EEA"],
    "effective_from": "2026-01-01",
    "effective_until": "2027-01-01",
    "mode": "enforce",
    "rules": [
        rule("EU-1", "grant"),
        rule("EU-2", "require", requires=["eu_scc"], needs="Clauses."),
        rule("EU-3", "oblige", obligations=[{"retain": "P6M"}]),
        rule("EU-4", "forbid"),
    ],
}

FLEET: dict[str, Any] = {
    "version": 1,
    "entities": [
        {"id": "operator-sg", "country": "SG", "owners": [{"entity": "holding", "country": "US", "share_percent": 60}]},
        {"id": "holding", "country": "US"},
    ],
    "edges": [
        {
            "id": "edge-a",
            "region": "a",
            "place": {"infers": ["SG"], "stores": ["SG"], "operator": "operator-sg"},
            "keys": [{"id": "edge-a-1", "public_key": "LejwUW7ylHIdHRRRkddFdksbsPCxEsZUochwKt8j2Vc="}],
        }
    ],
    "pools": [
        {
            "id": "pool-a",
            "region": "a",
            "accelerator": "cpu",
            "place": {"infers": ["CN"], "operator": "operator-sg", "accessors": ["holding"]},
            "assurance": "two-party",
            "scheduler": "a",
            "intake": "127.0.0.1:18101",
            "slots": 8,
            "models": [
                {
                    "id": "m",
                    "context_tokens": 2048,
                    "capabilities": ["chat", "stream"],
                    "prefill_us_per_token": 1,
                    "decode_us_per_token": 1,
                }
            ],
        },
        {
            "id": "pool-b",
            "region": "b",
            "accelerator": "cpu",
            "place": {"infers": ["SG"], "operator": "operator-sg"},
            "assurance": "edge-only",
            "engine": "llamacpp",
            "reachable_from": ["edge-a"],
            "slots": 1,
            "models": [
                {
                    "id": "Org/Model-1.5B",
                    "context_tokens": 1,
                    "capabilities": [],
                    "prefill_us_per_token": 0,
                    "decode_us_per_token": 0,
                }
            ],
        },
    ],
    "sinks": [
        {"id": "logs-a", "kind": "log", "place": {"infers": ["SG"], "stores": ["SG"], "operator": "operator-sg"}},
        {
            "id": "results-a",
            "kind": "results",
            "place": {"infers": ["DE"], "operator": "operator-sg", "accessors": ["holding"]},
        },
    ],
}

TENANTS: dict[str, Any] = {
    "version": 1,
    "tenants": [
        {
            "id": "acme",
            "entity": {"id": "acme-entity", "country": "SG"},
            "keys": [{"id": "acme01", "sha256": "ab" * 32}],
            "attested": {"personal": "none", "grade": "general", "domestic": "no", "origin": ["SG"]},
            "floor": {"grade": "general"},
            "models": ["m"],
            "edges": ["edge-a"],
            "price_book": "standard",
            "role": "controller",
            "critical_infrastructure": False,
            "notices": [{"id": "sg-notice", "version": "2026-03"}],
            "pathways": [
                {
                    "id": "contract-1",
                    "kind": "sg_contract",
                    "exporter": "acme-entity",
                    "exporter_role": "controller",
                    "importer": "operator-cn",
                    "importer_role": "processor",
                    "countries": ["CN"],
                    "personal_max": "personal",
                    "categories": ["contact", "work"],
                    "valid_from": "2026-01-01",
                    "valid_until": "2027-01-01",
                    "reference": "drawer 3",
                }
            ],
        },
        {
            "id": "other",
            "entity": {"id": "other-entity", "country": "DE"},
            "keys": [{"id": "other01", "sha256": "cd" * 32}],
            "attested": {"origin": ["DE"]},
            "models": [],
            "edges": [],
            "price_book": "standard",
        },
    ],
}

PRICES: dict[str, Any] = {
    "version": 1,
    "costs": [
        {
            "pool": "pool-a",
            "model": "m",
            "currency": "USD",
            "input_per_million": "0.25",
            "cached_per_million": "0",
            "output_per_million": "1.000001",
            "egress_per_gb": "0.08",
        }
    ],
    "books": [
        {
            "id": "standard",
            "prices": [
                {
                    "model": "m",
                    "currency": "EUR",
                    "input_per_million": "2",
                    "cached_per_million": "1",
                    "output_per_million": "4",
                }
            ],
        }
    ],
}

SETTINGS: dict[str, Any] = {
    "version": 1,
    "currency": "USD",
    "value_of_time_per_second": "0.00001",
    "late_price_per_second": "0.5",
    "slo_first_ms": 10000,
    "slo_token_ms": 250,
    "epsilon_ppm": 20000,
    "unknown_rtt_ms": 400,
    "expected_output_tokens": 128,
    "drains": ["pool-a"],
}


def broken(document: dict[str, Any], path: Path, value: object) -> dict[str, Any]:
    """Return a copy of `document` in which the field at `path` holds `value`, or is gone."""
    copied = copy.deepcopy(document)
    *outer, last = path
    here: Any = copied
    for step in outer:
        here = here[step]
    if value is DROP:
        del here[last]
    elif isinstance(last, int) and last == len(here):
        here.append(value)
    else:
        here[last] = value
    return copied


class _Plain(yaml.SafeDumper):
    """Writes every value out."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def load(document: dict[str, Any], shape: type[Shape], to_domain: Callable[[Shape], Value]) -> Value:
    """Load a document as people load it: from YAML text."""
    return read_as(load_document(yaml.dump(document, Dumper=_Plain), "file.yaml"), shape, to_domain)


def refusal(document: dict[str, Any], shape: type[Shape], to_domain: Callable[[Shape], Value]) -> FileError:
    """Return the error with which a document is refused."""
    try:
        load(document, shape, to_domain)
    except FileError as error:
        return error
    raise AssertionError("the document was accepted")
