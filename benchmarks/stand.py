"""A stand on one machine: one side, made of the real programs as processes, with real engines behind them.

One side stands on the soil of Singapore and of China, so that one control plane serves both: an edge in Singapore, a
site without Ray in China, and behind each of them the same engines. A request of general data reaches an engine on two
paths, by the model that it names: `<engine>-edge-only` (edge, engine) and `<engine>-two-hop` (edge, intake, engine).
The packs are those of `examples/two-sides`. Two tenants call: what the one sends is general, what the other sends is
personal and may go to China under a contract that its pathway records. No distance is emulated.

Everything lies in one folder and dies with the process that started it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks import engine as instant
from benchmarks.ports import KeptPorts
from orchestrator.bundles.roots import SigningKey, key_id_of
from orchestrator.cli.processes import ProcessSpec, Supervisor, port_accepts
from orchestrator.cli.publish import publish
from orchestrator.cli.status import fetch_status
from orchestrator.cli.up import etcd_binary
from orchestrator.config.secret import read_secret
from orchestrator.policy.ids import KeyId, format_api_key

LOOPBACK = "127.0.0.1"
ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "two-sides"
PACKS = (EXAMPLE / "overseas" / "packs" / "sg.yaml", *sorted((EXAMPLE / "domestic" / "packs").glob("*.yaml")))
SIDE = "stand"
EDGE = "edge-singapore"
SITE = "site"
TENANT = "acme-sg"
PERSONAL_TENANT = "clinic-sg"
"""Attested as personal: every record of it is on the disk before the first byte leaves."""
LLAMA_MODEL = "smollm2-135m-instruct"
LLAMA_CONTEXT_TOKENS = 1024
INSTANT_SLOTS = 64
SPOOL_BYTES = 4 << 30
"""One tenant gets to half of it. A quarter of a GiB was full for personal data after some 80,000 requests."""
START_DEADLINE_MS = 60_000
STAND_DEADLINE_S = 60.0
STOP_DEADLINE_MS = 20_000
POLL_S = 0.1
PROGRAM_ENV = {"GRPC_ENABLE_FORK_SUPPORT": "0"}

INSTANT = "instant"
LLAMA = "llama"
EDGE_ONLY = "edge-only"
TWO_HOP = "two-hop"
PATHS = (EDGE_ONLY, TWO_HOP)


class StandError(Exception):
    """The stand does not come up."""


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine of the stand."""

    name: str
    port: int
    served_model: str
    slots: int
    context_tokens: int
    spec: ProcessSpec

    @property
    def url(self) -> str:
        """The engine without `/v1`."""
        return f"http://{LOOPBACK}:{self.port}"

    def model(self, path: str) -> str:
        """Return the model that reaches this engine on a path."""
        return f"{self.name}-{path}"

    def pool(self, path: str) -> str:
        """Return the pool that stands for this engine on a path."""
        return f"{'sg' if path == EDGE_ONLY else 'cn'}-{self.name}"


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the stand is: what the engine without a model offers, what the edge takes, and what there is beside."""

    slots: int = INSTANT_SLOTS
    context_tokens: int = LLAMA_CONTEXT_TOKENS
    edge: Mapping[str, object] = field(default_factory=dict)
    """Settings of the edge beyond those that a stand needs."""
    site: Mapping[str, object] = field(default_factory=dict)
    """Settings of the scheduler, likewise."""
    through: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By module of a program: arguments of the interpreter that run it, in place of `-m`."""
    border: tuple[str, ...] = ()
    """Arguments of the interpreter that run a border between edge and intake; none: nothing lies between."""
    engines: tuple[Engine, ...] = ()
    """Further engines, each on both paths. Several may be of one program: of the same `spec`."""
    tenants: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Further tenants with general data: what the file of each says beyond what a stand needs."""


@dataclass(frozen=True, slots=True)
class _Ports:
    etcd: int
    etcd_peer: int
    control: int
    edge: int
    intake: int
    border: int
    replicas: int
    instant: int
    llama: int


class Stand:
    """The processes of one stand, and the files they are told by."""

    def __init__(self, folder: Path, gguf: Path | None, scale: Scale = Scale()) -> None:
        """`gguf` is the model of the llama.cpp engine; without it that engine is left out."""
        self.folder = folder
        self._scale = scale
        self.supervisor = Supervisor(folder)
        self._kept = KeptPorts(9)
        self._ports = _Ports(*self._kept.numbers)
        self.engines = _engines(self._ports, gguf, scale)
        for made in ("keys", "config", "declared/packs", "declared/tenants", "data"):
            (folder / made).mkdir(parents=True, exist_ok=True)
        (folder / "keys").chmod(0o700)
        self._root_key = self._key("root.pem")
        self._edge_key = self._key("edge.pem")
        for name in ("operator.token", "replica.token"):
            self._secret(name, secrets.token_urlsafe(32))
        self._secret("edge.commitment", secrets.token_hex(32))
        self._tenant_keys = {
            tenant: (KeyId(f"k{secrets.token_hex(6)}"), secrets.token_bytes(32))
            for tenant in (TENANT, PERSONAL_TENANT, *scale.tenants)
        }
        self._write_declared()
        self._write_configs()

    @property
    def edge_port(self) -> int:
        """Where tenants call."""
        return self._ports.edge

    @property
    def api_key(self) -> str:
        """The API key of the tenant with general data. Secret."""
        return self.api_key_of(TENANT)

    @property
    def personal_api_key(self) -> str:
        """The API key of the tenant with personal data. Secret."""
        return self.api_key_of(PERSONAL_TENANT)

    def api_key_of(self, tenant: str) -> str:
        """Return the API key of a tenant. Secret."""
        return format_api_key(*self._tenant_keys[tenant])

    def edge_argv(self) -> tuple[str, ...]:
        """Return the command of the edge."""
        return (sys.executable, "-m", "node_agent", "--config", str(self.config("edge")))

    async def start(self, *, serving: bool = True) -> None:
        """Start everything and wait until the edge sees every pool as up. Raises StandError and ProcessFailure.

        Without `serving`, engines and site are left out, and only the edge's bundle is waited for.
        """
        control = self._program("control", "orchestrator", self._ports.control)
        site = self._program("scheduler", "scheduler", self._ports.intake)
        edge = self._program("edge", "node_agent", self._ports.edge)
        engines = {engine.spec.name: engine.spec for engine in self.engines if serving}
        first = [self._etcd(), *engines.values()]
        for group in (first, [control]):
            await self._start(group)
        token = read_secret(self._file("operator.token"))
        await publish(self._control, token, self.folder / "declared")
        await self._start([site, *self._border(), edge] if serving else [edge])
        await self._until_whole(serving)

    async def stop(self) -> None:
        """Stop everything. The files stay: the edge can be started again on its last bundle, without control."""
        await self.supervisor.stop_all(STOP_DEADLINE_MS)

    def data(self, program: str) -> Path:
        """Return the data folder of a program."""
        return self.folder / "data" / program

    def config(self, program: str) -> Path:
        """Return the settings file of a program."""
        return self.folder / "config" / f"{program}.yaml"

    def process(self, name: str) -> psutil.Process:
        """Return a running process of the stand. Raises StandError when it does not run."""
        pid = self.supervisor.pid(name)
        if pid is None:
            raise StandError(f"{name} does not run; log: {self.supervisor.log_path(name)}")
        return psutil.Process(pid)

    async def _start(self, group: list[ProcessSpec]) -> None:
        for spec in group:
            await self.supervisor.start(spec)
        for spec in group:
            await self.supervisor.wait_ready(spec.name, START_DEADLINE_MS)

    async def _until_whole(self, serving: bool) -> None:
        """Wait until the edge holds the bundle and, when `serving`, reports every pool of it as up."""
        target = (self._control, read_secret(self._file("operator.token")))
        wanted = {engine.pool(path) for engine in self.engines for path in PATHS}
        loop = asyncio.get_running_loop()
        end_at = loop.time() + STAND_DEADLINE_S
        states: dict[str, str] = {}
        while loop.time() < end_at:
            (status,) = await fetch_status([target])
            members = () if status.reply is None else status.reply.members
            edge = next((member.report for member in members if member.report.member == EDGE), None)
            states = {} if edge is None else {pool.pool: pool.state for pool in edge.pools}
            if {pool for pool, state in states.items() if state == "up" or not serving} >= wanted:
                return
            await asyncio.sleep(POLL_S)
        raise StandError(f"the edge did not see every pool as up within {STAND_DEADLINE_S:.0f} s: {states}")

    @property
    def _control(self) -> str:
        return f"{LOOPBACK}:{self._ports.control}"

    def _program(self, name: str, module: str, port: int) -> ProcessSpec:
        through = self._scale.through.get(module, ("-m",))
        argv = (sys.executable, *through, module, "--config", str(self.config(name)))
        return ProcessSpec(name, argv, env=PROGRAM_ENV, cwd=ROOT, ready=port_accepts(LOOPBACK, port))

    def _border(self) -> list[ProcessSpec]:
        if not self._scale.border:
            return []
        ends = (f"{LOOPBACK}:{self._ports.border}", f"{LOOPBACK}:{self._ports.intake}")
        argv = (sys.executable, *self._scale.border, "--listen", ends[0], "--to", ends[1])
        return [ProcessSpec("border", argv, cwd=ROOT, ready=port_accepts(LOOPBACK, self._ports.border))]

    def _etcd(self) -> ProcessSpec:
        client, peer = f"http://{LOOPBACK}:{self._ports.etcd}", f"http://{LOOPBACK}:{self._ports.etcd_peer}"
        argv = (
            *(str(etcd_binary()), "--name", SIDE, "--data-dir", str(self.data("etcd"))),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", f"{SIDE}={peer}"),
            *("--experimental-watch-progress-notify-interval", "1s", "--log-level", "error"),
        )
        return ProcessSpec("etcd", argv, ready=port_accepts(LOOPBACK, self._ports.etcd))

    # Files

    def _file(self, secret: str) -> Path:
        return self.folder / "keys" / secret

    def _secret(self, name: str, text: str) -> None:
        descriptor = os.open(self._file(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(text)

    def _key(self, name: str) -> bytes:
        """Make a signing key and return its public half."""
        key = SigningKey.generate()
        key.write(self._file(name))
        return key.public_key

    def _write_declared(self) -> None:
        declared = self.folder / "declared"
        for pack in PACKS:
            shutil.copyfile(pack, declared / "packs" / pack.name)
        pools = [self._pool(engine, path) for engine in self.engines for path in PATHS]
        models = [engine.model(path) for engine in self.engines for path in PATHS]
        _write(declared / "fleet.yaml", self._fleet(pools))
        costs = [
            {"pool": engine.pool(path), "model": engine.model(path), **_AMOUNTS, "egress_per_gb": "0.08"}
            for engine in self.engines
            for path in PATHS
        ]
        book = {"id": "standard", "prices": [{"model": model, **_AMOUNTS} for model in models]}
        _write(declared / "prices.yaml", {"version": 1, "costs": costs, "books": [book]})
        _write(declared / "settings.yaml", _SETTINGS)
        further = ({**_tenant(name, "none"), **said} for name, said in self._scale.tenants.items())
        personal = {**_tenant(PERSONAL_TENANT, "personal"), "pathways": [_CONTRACT]}
        for tenant in (_tenant(TENANT, "none"), personal, *further):
            key_id, secret = self._tenant_keys[tenant["id"]]
            keys = [{"id": key_id, "sha256": hashlib.sha256(secret).hexdigest()}]
            whole = {**tenant, "keys": keys, "models": models}
            _write(declared / "tenants" / f"{tenant['id']}.yaml", {"version": 1, "tenants": [whole]})

    def _fleet(self, pools: list[dict[str, Any]]) -> dict[str, Any]:
        public = base64.b64encode(self._edge_key).decode("ascii")
        edge = {
            "id": EDGE,
            "region": "singapore",
            "place": _place("SG", "stand-overseas"),
            "keys": [{"id": key_id_of(self._edge_key), "public_key": public}],
        }
        entities = [{"id": "stand-overseas", "country": "SG"}, {"id": "stand-domestic", "country": "CN"}]
        return {"version": 1, "entities": entities, "edges": [edge], "pools": pools}

    def _pool(self, engine: Engine, path: str) -> dict[str, Any]:
        model = {
            "id": engine.model(path),
            "context_tokens": engine.context_tokens,
            "capabilities": ["chat", "stream", "seed", "stop"],
            "prefill_us_per_token": 1500,
            "decode_us_per_token": 15000,
        }
        pool = {"id": engine.pool(path), "accelerator": "cpu", "slots": engine.slots, "models": [model]}
        if path == EDGE_ONLY:
            there = {"region": "singapore", "place": _place("SG", "stand-overseas"), "assurance": "edge-only"}
            return {**pool, **there, "engine": engine.name, "reachable_from": [EDGE]}
        intake = self._ports.border if self._scale.border else self._ports.intake
        there = {"region": "china", "place": _place("CN", "stand-domestic"), "assurance": "two-party"}
        return {**pool, **there, "scheduler": SITE, "intake": f"{LOOPBACK}:{intake}"}

    def _write_configs(self) -> None:
        ports, public = self._ports, base64.b64encode(self._root_key).decode("ascii")
        common = {"side": SIDE, "roots": [{"side": SIDE, "public_key": public, "jurisdictions": ["SG", "CN"]}]}
        control = {
            "listen": self._control,
            "etcd": {"endpoints": [f"http://{LOOPBACK}:{ports.etcd}"]},
            "root_key_file": str(self._file("root.pem")),
            "operator_token_file": str(self._file("operator.token")),
            "data_dir": str(self.data("control")),
        }
        member = {**common, "control": self._control, "spool_bytes": SPOOL_BYTES}
        edge = {
            "id": EDGE,
            "host": LOOPBACK,
            "port": ports.edge,
            "data_dir": str(self.data("edge")),
            "signing_key_file": str(self._file("edge.pem")),
            "commitment_key_file": str(self._file("edge.commitment")),
            "engines": [
                {"name": engine.name, "base_url": engine.url, "served_model": engine.served_model}
                for engine in self.engines
            ],
        }
        scheduler = {
            "id": SITE,
            "listen": f"{LOOPBACK}:{ports.intake}",
            "replica_listen": f"{LOOPBACK}:{ports.replicas}",
            "data_dir": str(self.data("scheduler")),
            "replica_token_file": str(self._file("replica.token")),
            "pools": [{"id": engine.pool(TWO_HOP), "engines": [_replica(engine)]} for engine in self.engines],
        }
        _write(self.config("control"), {**common, **control})
        _write(self.config("edge"), {**member, **edge, **self._scale.edge})
        _write(self.config("scheduler"), {**member, **scheduler, **self._scale.site})


_AMOUNTS = {
    "currency": "USD",
    "input_per_million": "0.20",
    "cached_per_million": "0.05",
    "output_per_million": "0.40",
}
_SETTINGS: dict[str, Any] = {
    "version": 1,
    "currency": "USD",
    "value_of_time_per_second": "0.00001",
    "late_price_per_second": "0.00002",
    "slo_first_ms": 10_000,
    "slo_token_ms": 250,
    "epsilon_ppm": 20_000,
    "unknown_rtt_ms": 400,
    "expected_output_tokens": 128,
    "drains": [],
}


def _place(country: str, operator: str) -> dict[str, Any]:
    return {"infers": [country], "stores": [country], "accessors": [operator], "operator": operator}


def _tenant(name: str, personal: str) -> dict[str, Any]:
    """Return a tenant in Singapore that attests how personal its data is, without its keys and models."""
    attested = {
        "personal": personal,
        "grade": "general",
        "domestic": "no",
        "origin": ["SG"],
        "located": ["SG"],
        "collected": ["SG"],
    }
    return {
        "id": name,
        "entity": {"id": f"{name}-pte", "country": "SG"},
        "attested": attested,
        "role": "controller",
        "critical_infrastructure": False,
        "edges": [EDGE],
        "price_book": "standard",
    }


_CONTRACT: dict[str, Any] = {
    "id": "clinic-contract",
    "kind": "sg_contract",
    "exporter": f"{PERSONAL_TENANT}-pte",
    "exporter_role": "controller",
    "importer": "stand-domestic",
    "importer_role": "processor",
    "countries": ["CN"],
    "personal_max": "personal",
    "categories": ["all"],
    "valid_from": "2026-01-01",
    "valid_until": "2030-01-01",
    "reference": "Contract 1",
}


def _replica(engine: Engine) -> dict[str, Any]:
    return {
        "name": engine.name,
        "model": engine.model(TWO_HOP),
        "base_url": engine.url,
        "served_model": engine.served_model,
        "slots": engine.slots,
    }


def _engines(ports: _Ports, gguf: Path | None, scale: Scale) -> tuple[Engine, ...]:
    argv: tuple[str, ...] = (sys.executable, "-m", "benchmarks.engine", "--port", str(ports.instant))
    spec = ProcessSpec("engine-instant", argv, cwd=ROOT, ready=port_accepts(LOOPBACK, ports.instant))
    size = (scale.slots, scale.context_tokens)
    engines = [Engine(INSTANT, ports.instant, instant.MODEL, *size, spec)]
    if gguf is not None:
        argv = (
            *(sys.executable, "-m", "orchestrator.cli.llamacpp", "--model", str(gguf), "--alias", LLAMA_MODEL),
            *("--port", str(ports.llama), "--slots", "1"),
            *("--context-per-slot", str(LLAMA_CONTEXT_TOKENS), "--threads", "1"),
        )
        spec = ProcessSpec("engine-llama", argv, cwd=ROOT, ready=port_accepts(LOOPBACK, ports.llama))
        engines.append(Engine(LLAMA, ports.llama, LLAMA_MODEL, 1, LLAMA_CONTEXT_TOKENS, spec))
    return (*engines, *scale.engines)


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(dict(document), sort_keys=False), encoding="utf-8")
