"""The house that `tidegate up` builds on one machine: folders, keys, declared files and each program's settings.

Two sides. *Domestic*: a control plane and two Chinese sites. *Overseas*: a control plane, two edges and an in-region
engine in Frankfurt. Everything lies in one folder; keys are made once and kept, the rest is written at every start.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import secrets
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestrator.bundles.roots import SigningKey, key_id_of
from orchestrator.files.document import read_document
from orchestrator.files.sides import SideDocument
from orchestrator.policy.ids import KeyId, format_api_key

LOOPBACK = "127.0.0.1"
MODEL = "smollm2-135m-instruct"
SITES = ("guizhou", "shanghai")
EDGES = {"edge-singapore": "singapore", "edge-frankfurt": "frankfurt"}
TENANTS = {"acme-sg": "singapore", "rhein-gmbh": "frankfurt"}
SIDES = ("overseas", "domestic")
ENGINE = "frankfurt-llamacpp"
ENGINE_SLOTS = 2
REPLICA_SLOTS = 4
CONTEXT_TOKENS = 2048
SPOOL_BYTES = 1 << 30
PORTS = 16
PORT_RANGE = range(20_000, 32_000)
DRAIN_GRACE_MS = 6_000
"""How long answers have that run when the house is told to stop. Whoever stops it at a desk does not wait longer."""
REPLICA_DEAD_MS = 15_000
"""Two engines and a third-party server share two cores here: silence means less than on a machine of one's own."""

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "two-sides"


def side_soil(side: str) -> tuple[str, ...]:
    """Return under whose law the root of a side of the example may grant, as its `side.yaml` says."""
    document = read_document(EXAMPLES / side / "side.yaml").convert(SideDocument)
    return document.jurisdictions


class HouseError(Exception):
    """The house cannot be built here; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Every port of the house. All on loopback."""

    singapore: int
    frankfurt: int
    etcd: Mapping[str, int]
    etcd_peer: Mapping[str, int]
    control: Mapping[str, int]
    intake: Mapping[str, int]
    replicas: Mapping[str, int]
    border: Mapping[str, int]
    """What stands before each site, and before the domestic control plane (`control`)."""
    engine: int


def choose_ports(singapore: int, frankfurt: int) -> Ports:
    """Return free ports: the two edges' as given, the rest as the system offers. Raises HouseError on a taken one."""
    for port in (singapore, frankfurt):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                raise HouseError(f"port {port} is taken; stop what uses it or pass another port") from None
    free = iter(_free_ports(PORTS))
    return Ports(
        singapore=singapore or next(free),
        frankfurt=frankfurt or next(free),
        etcd={side: next(free) for side in ("overseas", "domestic")},
        etcd_peer={side: next(free) for side in ("overseas", "domestic")},
        control={side: next(free) for side in ("overseas", "domestic")},
        intake={site: next(free) for site in SITES},
        replicas={site: next(free) for site in SITES},
        border={name: next(free) for name in (*SITES, "control")},
        engine=next(free),
    )


def _free_ports(count: int) -> list[int]:
    """Return free ports from a range that neither the system's outgoing connections nor Ray's workers draw from."""
    found: list[int] = []
    for port in random.SystemRandom().sample(PORT_RANGE, len(PORT_RANGE)):
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise HouseError(f"fewer than {count} ports are free between {PORT_RANGE[0]} and {PORT_RANGE[-1]}")


@dataclass(frozen=True, slots=True)
class Keys:
    """Public halves and tokens that the files need. Secret halves stay in their files."""

    roots: Mapping[str, str]
    edges: Mapping[str, str]
    api: Mapping[str, str]
    """Tenant to API key, for `demo.env` and the samples."""

    def __repr__(self) -> str:
        return "Keys(...)"


class House:
    """Folders of one house and the files in them."""

    def __init__(self, folder: Path, ports: Ports) -> None:
        self.folder = folder
        self.ports = ports
        self.keys_dir = folder / "keys"
        self.config_dir = folder / "config"
        self.declared_dir = folder / "declared"
        self.data_dir = folder / "data"
        for made in (self.keys_dir, self.config_dir, self.declared_dir, self.data_dir, folder / "ray"):
            made.mkdir(parents=True, exist_ok=True)
        self.keys_dir.chmod(0o700)
        self.keys = self._make_keys()

    def declared(self, side: str) -> Path:
        """Return the folder that `tidegate publish` takes for a side."""
        return self.declared_dir / side

    def config(self, program: str) -> Path:
        """Return the settings file of a program."""
        return self.config_dir / f"{program}.yaml"

    def data(self, program: str) -> Path:
        """Return the data folder of a program."""
        return self.data_dir / program

    def secret(self, name: str) -> Path:
        """Return the file of a secret."""
        return self.keys_dir / name

    def write_declared(self) -> None:
        """Copy the example's declared files, with this house's keys and ports in them."""
        if not EXAMPLES.is_dir():
            raise HouseError(f"the example files are missing at {EXAMPLES}; run from a checkout")
        for side in ("overseas", "domestic"):
            shutil.rmtree(self.declared(side), ignore_errors=True)
            shutil.copytree(EXAMPLES / side, self.declared(side))
        overseas = self._load("overseas", "fleet.yaml")
        for edge in overseas["edges"]:
            public = self.keys.edges[edge["id"]]
            edge["keys"] = [{"id": key_id_of(base64.b64decode(public)), "public_key": public}]
        self._save("overseas", "fleet.yaml", overseas)
        domestic = self._load("domestic", "fleet.yaml")
        for pool in domestic["pools"]:
            pool["intake"] = f"{LOOPBACK}:{self.ports.border[pool['scheduler']]}"
        self._save("domestic", "fleet.yaml", domestic)
        for path in sorted((self.declared("overseas") / "tenants").glob("*.yaml")):
            document = yaml.safe_load(path.read_text(encoding="utf-8"))
            for tenant in document["tenants"]:
                _, key_id, secret = self.keys.api[tenant["id"]].split("_", 2)
                digest = hashlib.sha256(base64.urlsafe_b64decode(secret + "=")).hexdigest()
                tenant["keys"] = [{"id": key_id, "sha256": digest}]
            _write_document(path, document)

    def write_variant(self, name: str, change: Mapping[str, Any]) -> Path:
        """Copy the overseas declared files with a change, and return the folder.

        `change` holds `without_pool` (an id) or `drains` (a list of ids).
        """
        target = self.declared_dir / f"overseas-{name}"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.declared("overseas"), target)
        if "without_pool" in change:
            for file, field in (("fleet.yaml", "id"), ("prices.yaml", "pool")):
                document = yaml.safe_load((target / file).read_text(encoding="utf-8"))
                part = "pools" if file == "fleet.yaml" else "costs"
                document[part] = [entry for entry in document[part] if entry[field] != change["without_pool"]]
                _write_document(target / file, document)
        if "drains" in change:
            document = yaml.safe_load((target / "settings.yaml").read_text(encoding="utf-8"))
            document["drains"] = change["drains"]
            _write_document(target / "settings.yaml", document)
        return target

    def write_configs(self, model_dir: Path) -> None:
        """Write the settings of every program."""
        ports = self.ports
        for side in ("overseas", "domestic"):
            control: dict[str, Any] = {
                "side": side,
                "listen": f"{LOOPBACK}:{ports.control[side]}",
                "etcd": {"endpoints": [f"http://{LOOPBACK}:{ports.etcd[side]}"]},
                "root_key_file": str(self.secret(f"{side}-root.pem")),
                "operator_token_file": str(self.secret(f"{side}-operator.token")),
                "data_dir": str(self.data(f"control-{side}")),
                "roots": self._roots(),
            }
            if side == "overseas":
                control["peer"] = f"{LOOPBACK}:{ports.border['control']}"
            self._write_config(f"control-{side}", control)
        for site in SITES:
            self._write_config(f"scheduler-{site}", self._scheduler(site, model_dir))
        for edge, town in EDGES.items():
            self._write_config(edge, self._edge(edge, town))

    def write_demo_env(self) -> Path:
        """Write keys and URLs for people, readable by this user only."""
        lines = []
        for tenant, town in TENANTS.items():
            name = town.upper()
            port = self.ports.singapore if town == "singapore" else self.ports.frankfurt
            lines.append(f"TIDEGATE_DEMO_{name}_URL=http://{LOOPBACK}:{port}/v1")
            lines.append(f"TIDEGATE_DEMO_{name}_KEY={self.keys.api[tenant]}")
        for side in ("overseas", "domestic"):
            lines.append(f"TIDEGATE_DEMO_{side.upper()}_CONTROL={LOOPBACK}:{self.ports.control[side]}")
            lines.append(f"TIDEGATE_DEMO_{side.upper()}_TOKEN_FILE={self.secret(f'{side}-operator.token')}")
        _write_private(self.env_file, "\n".join(lines) + "\n")
        return self.env_file

    @property
    def env_file(self) -> Path:
        """Where keys and URLs are for people."""
        return self.folder / "demo.env"

    def _scheduler(self, site: str, model_dir: Path) -> dict[str, Any]:
        labels = {"region": f"cn-{site}", "jurisdiction": "CN", "accelerator": "cpu-emulated", "model": MODEL}
        return {
            "id": site,
            "side": "domestic",
            "listen": f"{LOOPBACK}:{self.ports.intake[site]}",
            "replica_listen": f"{LOOPBACK}:{self.ports.replicas[site]}",
            "control": f"{LOOPBACK}:{self.ports.control['domestic']}",
            "data_dir": str(self.data(f"scheduler-{site}")),
            "replica_token_file": str(self.secret(f"{site}-replica.token")),
            "roots": self._roots(),
            "ray": {
                "address_file": str(self.ray_address(site)),
                "token_file": str(self.secret(f"{site}-ray.token")),
            },
            "spool_bytes": SPOOL_BYTES,
            "drain_grace_ms": DRAIN_GRACE_MS,
            "replica_dead_ms": REPLICA_DEAD_MS,
            "pools": [
                {
                    "id": f"cn-{site}",
                    "replicas": {
                        "model": MODEL,
                        "model_dir": str(model_dir),
                        "count": 1,
                        "slots": REPLICA_SLOTS,
                        "context_tokens": CONTEXT_TOKENS,
                        "threads": 1,
                        "node_labels": labels,
                    },
                }
            ],
        }

    def _edge(self, edge: str, town: str) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "id": edge,
            "side": "overseas",
            "host": LOOPBACK,
            "port": self.ports.singapore if town == "singapore" else self.ports.frankfurt,
            "control": f"{LOOPBACK}:{self.ports.control['overseas']}",
            "data_dir": str(self.data(edge)),
            "signing_key_file": str(self.secret(f"{edge}.pem")),
            "commitment_key_file": str(self.secret(f"{edge}.commitment")),
            "roots": self._roots(),
            "spool_bytes": SPOOL_BYTES,
            "drain_grace_ms": DRAIN_GRACE_MS,
        }
        if town == "frankfurt":
            engine = {"name": ENGINE, "base_url": f"http://{LOOPBACK}:{self.ports.engine}", "served_model": MODEL}
            settings["engines"] = [engine]
        return settings

    def ray_address(self, site: str) -> Path:
        """Return the file in which a site's Ray cluster writes its address."""
        return self.folder / "ray" / f"{site}.address"

    def _roots(self) -> list[dict[str, Any]]:
        return [
            {"side": side, "public_key": self.keys.roots[side], "jurisdictions": list(side_soil(side))}
            for side in SIDES
        ]

    def _make_keys(self) -> Keys:
        roots = {side: self._signing_key(f"{side}-root.pem") for side in ("overseas", "domestic")}
        edges = {edge: self._signing_key(f"{edge}.pem") for edge in EDGES}
        for edge in EDGES:
            self._token(f"{edge}.commitment", secrets.token_hex(32))
        for name in (*(f"{side}-operator.token" for side in roots), *(f"{site}-replica.token" for site in SITES)):
            self._token(name, secrets.token_urlsafe(32))
        for site in SITES:
            self._token(f"{site}-ray.token", secrets.token_hex(32))
        api: dict[str, str] = {}
        for tenant in TENANTS:
            # A letter first: digits around an e are a number to YAML, and no id.
            fresh = format_api_key(KeyId(f"k{secrets.token_hex(6)}"), secrets.token_bytes(32))
            api[tenant] = self._token(f"{tenant}.api-key", fresh)
        return Keys(roots, edges, api)

    def _signing_key(self, name: str) -> str:
        """Make a key where there is none, and return its public half in base64."""
        path = self.secret(name)
        if not path.exists():
            SigningKey.generate().write(path)
        public = SigningKey.from_pem(path.read_text(encoding="ascii")).public_key
        return base64.b64encode(public).decode("ascii")

    def _token(self, name: str, fresh: str) -> str:
        path = self.secret(name)
        if not path.exists():
            _write_private(path, fresh)
        return path.read_text(encoding="ascii").strip()

    def _load(self, side: str, file: str) -> dict[str, Any]:
        loaded: dict[str, Any] = yaml.safe_load((self.declared(side) / file).read_text(encoding="utf-8"))
        return loaded

    def _save(self, side: str, file: str, document: Mapping[str, Any]) -> None:
        _write_document(self.declared(side) / file, document)

    def _write_config(self, program: str, settings: Mapping[str, Any]) -> None:
        _write_document(self.config(program), settings)


def _write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write a file of settings or declarations as JSON, which is YAML in which every text is quoted.

    A YAML writer leaves a key id such as 12e456789012 bare, and a YAML 1.2 reader takes that for a number.
    """
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
