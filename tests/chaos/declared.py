"""What the stand declares: one side on the soil of Singapore and China, three tenants, three pools of one model.

The packs are those of `examples/two-sides`. Data about nobody may go anywhere; personal data of Singapore stays there:
so the law knows one pool for it, and two more for the rest.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestrator.bundles.roots import key_id_of
from orchestrator.policy.ids import KeyId

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "two-sides"
PACKS = (EXAMPLE / "overseas" / "packs" / "sg.yaml", *sorted((EXAMPLE / "domestic" / "packs").glob("*.yaml")))
SIDE = "stand"
EDGES = ("edge-a", "edge-b")
SITES = ("guizhou", "shanghai")
HOME = "sg-home"
"""The pool in the region, an engine that the edges reach themselves."""
HOME_ENGINE = "engine-home"
MODEL = "words"
TENANTS = ("calm", "noisy", "third")
KEEPER = "third"
"""The tenant whose results are kept."""
GENERAL = "general"
PERSONAL = "personal"
LABELS = {GENERAL: None, PERSONAL: 'personal=personal, grade=general, origin="SG"'}
"""What a request of each kind declares; None declares nothing, and the tenants' contracts say general data."""
CONTEXT_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A tenant's key. Its repr shows nothing of it."""

    tenant: str
    key_id: KeyId
    secret: bytes

    def __repr__(self) -> str:
        return f"ApiKey({self.tenant})"


def pool_of(site: str) -> str:
    """Return the pool of a site."""
    return f"cn-{site}"


def permitted(kind: str) -> frozenset[str]:
    """Return the pools that the law allows for a kind of data."""
    everywhere = {HOME, *map(pool_of, SITES)}
    return frozenset({HOME} if kind == PERSONAL else everywhere)


def write_declared(
    folder: Path, edge_keys: Mapping[str, bytes], intakes: Mapping[str, str], keys: Sequence[ApiKey], slots: int
) -> None:
    """Write the folder that `tidegate publish` takes. `slots` are those of one engine."""
    for made in ("packs", "tenants"):
        (folder / made).mkdir(parents=True, exist_ok=True)
    for pack in PACKS:
        shutil.copyfile(pack, folder / "packs" / pack.name)
    write_yaml(folder / "fleet.yaml", _fleet(edge_keys, intakes, slots))
    pools = (HOME, *map(pool_of, SITES))
    # The pool at home costs more, so that general data goes abroad while it can.
    costs = [
        {"pool": pool, "model": MODEL, **_amounts(4 if pool == HOME else 1), "egress_per_gb": "0.08"} for pool in pools
    ]
    book = {"id": "standard", "prices": [{"model": MODEL, **_amounts(1)}]}
    write_yaml(folder / "prices.yaml", {"version": 1, "costs": costs, "books": [book]})
    write_settings(folder, 0)
    for key in keys:
        write_yaml(folder / "tenants" / f"{key.tenant}.yaml", {"version": 1, "tenants": [_tenant(key)]})


def write_settings(folder: Path, revision: int, drains: Sequence[str] = ()) -> None:
    """Write the settings, different for each revision in a way that changes no choice. `drains` are pools."""
    settings: dict[str, Any] = {
        "version": 1,
        "currency": "USD",
        "value_of_time_per_second": "0.00001",
        "late_price_per_second": "0.00002",
        "slo_first_ms": 10_000 + revision,
        "slo_token_ms": 250,
        "epsilon_ppm": 20_000,
        "unknown_rtt_ms": 400,
        "expected_output_tokens": 64,
        "drains": list(drains),
    }
    write_yaml(folder / "settings.yaml", settings)


def write_yaml(path: Path, document: Mapping[str, Any]) -> None:
    """Write one document."""
    path.write_text(yaml.safe_dump(dict(document), sort_keys=False), encoding="utf-8")


def _fleet(edge_keys: Mapping[str, bytes], intakes: Mapping[str, str], slots: int) -> dict[str, Any]:
    edges = [
        {
            "id": edge,
            "region": "singapore",
            "place": _place("SG", "stand-overseas"),
            "keys": [{"id": key_id_of(public), "public_key": base64.b64encode(public).decode("ascii")}],
        }
        for edge, public in edge_keys.items()
    ]
    home = {
        "id": HOME,
        "region": "singapore",
        "accelerator": "cpu",
        "slots": slots,
        "models": [_model()],
        "place": _place("SG", "stand-overseas"),
        "assurance": "edge-only",
        "engine": HOME_ENGINE,
        "reachable_from": list(edge_keys),
    }
    abroad = [
        {
            "id": pool_of(site),
            "region": "china",
            "accelerator": "cpu",
            "slots": 2 * slots,
            "models": [_model()],
            "place": _place("CN", "stand-domestic"),
            "assurance": "two-party",
            "scheduler": site,
            "intake": intake,
        }
        for site, intake in intakes.items()
    ]
    entities = [{"id": "stand-overseas", "country": "SG"}, {"id": "stand-domestic", "country": "CN"}]
    return {"version": 1, "entities": entities, "edges": edges, "pools": [home, *abroad]}


def _model() -> dict[str, Any]:
    return {
        "id": MODEL,
        "context_tokens": CONTEXT_TOKENS,
        "capabilities": ["chat", "stream", "seed", "stop"],
        "prefill_us_per_token": 100,
        "decode_us_per_token": 10_000,
    }


def _place(country: str, operator: str) -> dict[str, Any]:
    return {"infers": [country], "stores": [country], "accessors": [operator], "operator": operator}


def _amounts(times: int) -> dict[str, str]:
    return {
        "currency": "USD",
        "input_per_million": f"{0.20 * times:.2f}",
        "cached_per_million": f"{0.05 * times:.2f}",
        "output_per_million": f"{0.40 * times:.2f}",
    }


def _tenant(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.tenant,
        "entity": {"id": f"{key.tenant}-singapore", "country": "SG"},
        "keys": [{"id": key.key_id, "sha256": hashlib.sha256(key.secret).hexdigest()}],
        "attested": {
            "personal": "none",
            "grade": "general",
            "domestic": "no",
            "origin": ["SG"],
            "located": ["SG"],
            "collected": ["SG"],
        },
        "role": "controller",
        "critical_infrastructure": False,
        "models": [MODEL],
        "edges": list(EDGES),
        "price_book": "standard",
        # Of requests with a key, so that asking again after a fault gives the same answer.
        "keep_results": key.tenant == KEEPER,
    }
