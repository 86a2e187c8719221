"""The stand: etcd, control, two edges, two sites with two engines each, and one engine in the region, as processes.

Between the edges and each intake stands a fault proxy of this process. Everything lies in one folder, and every process
dies with this one, whatever happens.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import secrets
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Any

import psutil

from benchmarks.ports import KeptPorts
from orchestrator.bundles.roots import SigningKey
from orchestrator.cli.processes import ProcessExit, ProcessSpec, Supervisor, port_accepts
from orchestrator.cli.publish import PublishFailed, publish
from orchestrator.cli.status import fetch_status
from orchestrator.cli.up import etcd_binary
from orchestrator.config.secret import Secret, read_secret
from orchestrator.policy.ids import KeyId, format_api_key
from orchestrator.watch.places import folders_in
from orchestrator.watch.shares import member_name
from tests.chaos import engine
from tests.chaos.declared import (
    EDGES,
    GENERAL,
    HOME,
    HOME_ENGINE,
    PERSONAL,
    ROOT,
    SIDE,
    SITES,
    TENANTS,
    ApiKey,
    pool_of,
    write_declared,
    write_settings,
    write_yaml,
)
from tests.chaos.proxy import HEALTHY, Proxy
from tests.values import replace

LOOPBACK = "127.0.0.1"
SPOOL_BYTES = 2 << 30
"""One tenant gets to half of it: an hour of the soak."""
START_MS = 60_000
WHOLE_S = 60.0
STOP_MS = 20_000
POLL_S = 0.1
LOG_BYTES = 256 << 20
PROGRAM_ENV = {"GRPC_ENABLE_FORK_SUPPORT": "0"}
DRAIN_GRACE_MS = 5_000
CANARIES = (f"chaos {GENERAL} ".encode(), f"chaos {PERSONAL} ".encode())
"""What the proxies look for: how each kind's prompts begin."""


class StandError(Exception):
    """The stand does not come up, or does not come back."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How the engines of the stand work."""

    slots: int = 8
    token_ms: float = 20.0
    first_ms: float = 5.0


def engine_name(site: str, number: int) -> str:
    """Return the name of a site's engine."""
    return f"engine-{site}-{number}"


def program_of(site: str) -> str:
    """Return the name of a site's scheduler process."""
    return f"scheduler-{site}"


class Stand:
    """The processes of the stand, the files they are told by, and the links between them."""

    def __init__(self, folder: Path, pace: Pace | None = None, processes: int = 1) -> None:
        """`folder` must be there. `processes` are those of each edge and of each scheduler."""
        self.folder = folder
        self._processes = processes
        self.pace = Pace() if pace is None else pace
        self._starts: Counter[str] = Counter()
        self.drains: tuple[str, ...] = ()
        """Pools that the next publishing drains."""
        self._drained = False
        """Whether some may be drained by what is published."""
        self.exits: list[ProcessExit] = []
        """Programs that ended, unless they were told to."""
        self.supervisor = Supervisor(folder, log_bytes=LOG_BYTES, on_exit=self.exits.append)
        self._engines = (HOME_ENGINE, *(engine_name(site, number) for site in SITES for number in (0, 1)))
        names = ["etcd", "etcd-peer", "control", *EDGES, *self._engines]
        names += [f"{what}-{site}" for site in SITES for what in ("intake", "link", "replicas")]
        self._kept = KeptPorts(len(names))
        self.ports = dict(zip(names, self._kept.numbers, strict=True))
        for made in ("keys", "config", "data"):
            (folder / made).mkdir()
        (folder / "keys").chmod(0o700)
        self._root_public = self._key("root.pem")
        edge_keys = {edge: self._key(f"{edge}.pem") for edge in EDGES}
        for name in ("operator.token", "replica.token"):
            self._secret(name, secrets.token_urlsafe(32))
        for edge in EDGES:
            self._secret(f"{edge}.commitment", secrets.token_hex(32))
        self._keys = [ApiKey(one, KeyId(f"k{secrets.token_hex(6)}"), secrets.token_bytes(32)) for one in TENANTS]
        intakes = {site: f"{LOOPBACK}:{self.ports[f'link-{site}']}" for site in SITES}
        write_declared(self.declared, edge_keys, intakes, self._keys, self.pace.slots)
        self._write_configs()
        self.proxies = {
            site: Proxy(self.ports[f"link-{site}"], self.ports[f"intake-{site}"], CANARIES, seed)
            for seed, site in enumerate(SITES)
        }
        self.specs = {spec.name: spec for spec in self._specs()}

    @property
    def declared(self) -> Path:
        """The folder that is published."""
        return self.folder / "declared"

    def api_key(self, tenant: str) -> str:
        """Return a tenant's API key. Secret."""
        key = next(one for one in self._keys if one.tenant == tenant)
        return format_api_key(key.key_id, key.secret)

    def url(self, edge: str) -> str:
        """Return where tenants call an edge."""
        return f"http://{LOOPBACK}:{self.ports[edge]}"

    def data(self, program: str) -> Path:
        """Return the data folder of a program."""
        return self.folder / "data" / program

    def spools(self, program: str) -> Iterator[Path]:
        """Yield the spool of every process of a program."""
        for _, folder in folders_in(self.data(program)):
            yield folder / "spool"

    def journal(self, name: str) -> Path:
        """Return the journal of an engine."""
        return self.folder / "data" / f"{name}.jsonl"

    def engines(self, pool: str | None = None) -> tuple[str, ...]:
        """Return the engines, all or those of one pool."""
        if pool is None:
            return self._engines
        if pool == HOME:
            return (HOME_ENGINE,)
        return tuple(engine_name(site, number) for site in SITES if pool_of(site) == pool for number in (0, 1))

    async def start(self) -> None:
        """Start everything, and wait until both edges see every pool as up. Raises StandError and ProcessFailure."""
        for proxy in self.proxies.values():
            await proxy.start()
        await self._start(["etcd", *self._engines])
        await self._start(["control"])
        await self.publish(0)
        await self._start([*map(program_of, SITES), *EDGES])
        await self.until_whole()

    async def stop(self) -> None:
        """Stop everything."""
        for name in self.specs:
            self.signal(name, signal.SIGCONT)
        await self.supervisor.stop_all(STOP_MS)
        for proxy in self.proxies.values():
            await proxy.stop()

    async def publish(self, revision: int) -> None:
        """Publish the declared files, with settings of another number. Raises PublishFailed."""
        write_settings(self.declared, revision, self.drains)
        self._drained |= bool(self.drains)
        control, token = self.control_target()
        await publish(control, token, self.declared)

    def pid(self, name: str) -> int | None:
        """Return the process of a program, None when it does not run."""
        return self.supervisor.pid(name) if name in self.supervisor_names() else None

    def supervisor_names(self) -> frozenset[str]:
        """Return the processes that were ever started."""
        return frozenset(name for name in self.specs if self.supervisor.log_path(name).exists())

    def signal(self, name: str, number: Signals) -> None:
        """Send a signal to a program, and to every process of one that is several; nothing when it does not run."""
        pid = self.pid(name)
        if pid is not None:
            # SIGKILL of the first takes the others along; they may end in between.
            for one in (pid, *(self._workers(pid) if number != signal.SIGKILL else ())):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, number)

    def signal_one(self, name: str, index: int, number: Signals) -> None:
        """Send a signal to one process of a program that is several; nothing when it does not run."""
        pid = self.pid(name)
        workers = [] if pid is None else self._workers(pid)
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(workers[index], number)

    def _workers(self, pid: int) -> list[int]:
        """Return the processes of a program that is several, in their order."""
        if self._processes == 1:
            return []
        found: list[tuple[str, int]] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    if child.cmdline()[-1:] and "/run/" in child.cmdline()[-1]:
                        found.append((child.cmdline()[-1], child.pid))
        return [pid for _, pid in sorted(found)]

    async def kill(self, name: str) -> None:
        """End a program by SIGKILL, and return when it is gone."""
        starts, pid = self._starts[name], None
        # Somebody else may start it anew before this one looks again.
        while self.supervisor.alive(name) and self._starts[name] == starts:
            if pid is None:  # one that was just started has no process yet
                pid = self.pid(name)
                self.signal(name, signal.SIGKILL)
            await asyncio.sleep(0.005)

    async def restart(self, name: str, env: Mapping[str, str] | None = None, wrap: tuple[str, ...] = ()) -> None:
        """Start a program that has ended, and wait until it accepts. `wrap` is a command that runs the program's."""
        await self._launch(name, env, wrap)
        await self.supervisor.wait_ready(name, START_MS)

    async def begin(self, name: str, wrap: tuple[str, ...] = ()) -> None:
        """Start a program unless it runs, and do not wait for it."""
        if not self.supervisor.alive(name):
            await self._launch(name, wrap=wrap)

    async def heal(self) -> None:
        """Undo every fault: links, stopped and ended programs, drains. Returns when all is whole again."""
        for proxy in self.proxies.values():
            proxy.set(HEALTHY)
        for name in self.specs:
            self.signal(name, signal.SIGCONT)
        dead = [name for name in self.specs if not self.supervisor.alive(name)]
        for name in dead:
            await self._launch(name)
        for name in dead:
            await self.supervisor.wait_ready(name, START_MS)
        await self._undrain()
        await self.until_whole()

    async def _undrain(self) -> None:
        """Publish that no pool is drained, as soon as control takes it."""
        loop = asyncio.get_running_loop()
        end_at, self.drains = loop.time() + WHOLE_S, ()
        while self._drained:
            try:
                await self.publish(0)
                self._drained = False
            except PublishFailed as error:
                if loop.time() > end_at:
                    raise StandError(f"control takes nothing: {error}") from error
                await asyncio.sleep(POLL_S)

    async def until_whole(self) -> None:
        """Wait until both edges hold the bundle and report every pool as up, each replica too. Raises StandError."""
        target = self.control_target()
        members = [member_name(edge, index) for edge in EDGES for index in range(self._processes)]
        wanted = {(edge, pool): 0 if pool == HOME else 2 for edge in members for pool in (HOME, *map(pool_of, SITES))}
        loop = asyncio.get_running_loop()
        end_at = loop.time() + WHOLE_S
        lacking: dict[tuple[str, str], str] = {}
        while loop.time() < end_at:
            (status,) = await fetch_status([target])
            told = () if status.reply is None else status.reply.members
            seen = {
                (member.report.member, pool.pool): (pool.state, pool.replicas)
                for member in told
                for pool in member.report.pools
            }
            lacking = {
                key: str(seen.get(key))
                for key, replicas in wanted.items()
                if key not in seen or seen[key][0] != "up" or seen[key][1] < replicas
            }
            if not lacking:
                return
            await asyncio.sleep(POLL_S)
        raise StandError(f"the edges did not see every pool as up within {WHOLE_S:.0f} s: {lacking}")

    def control_target(self) -> tuple[str, Secret]:
        """Return where control listens, and the operator's token."""
        return self._control, read_secret(self._file("operator.token"))

    def processes(self, names: Iterable[str]) -> dict[str, psutil.Process]:
        """Return those of the programs that run."""
        found = {name: self.pid(name) for name in names}
        return {name: psutil.Process(pid) for name, pid in found.items() if pid is not None}

    @property
    def _control(self) -> str:
        return f"{LOOPBACK}:{self.ports['control']}"

    async def _launch(self, name: str, env: Mapping[str, str] | None = None, wrap: tuple[str, ...] = ()) -> None:
        spec = self.specs[name]
        self._starts[name] += 1
        await self.supervisor.start(replace(spec, env={**spec.env, **(env or {})}, argv=(*wrap, *spec.argv)))

    async def _start(self, names: list[str]) -> None:
        for name in names:
            await self._launch(name)
        for name in names:
            await self.supervisor.wait_ready(name, START_MS)

    # Files

    def _specs(self) -> list[ProcessSpec]:
        control = self._program("control", "orchestrator", self.ports["control"])
        sites = [self._program(program_of(site), "scheduler", self.ports[f"intake-{site}"]) for site in SITES]
        edges = [self._program(edge, "node_agent", self.ports[edge]) for edge in EDGES]
        return [self._etcd(), *map(self._engine, self._engines), control, *sites, *edges]

    def _program(self, name: str, module: str, port: int) -> ProcessSpec:
        argv = (sys.executable, "-m", module, "--config", str(self._config(name)))
        return ProcessSpec(name, argv, env=PROGRAM_ENV, cwd=ROOT, ready=port_accepts(LOOPBACK, port))

    def _engine(self, name: str) -> ProcessSpec:
        port, pace = self.ports[name], self.pace
        argv = (
            *(sys.executable, "-m", "tests.chaos.engine", "--port", str(port), "--journal", str(self.journal(name))),
            *("--slots", str(pace.slots), "--token-ms", str(pace.token_ms), "--first-ms", str(pace.first_ms)),
        )
        return ProcessSpec(name, argv, cwd=ROOT, ready=port_accepts(LOOPBACK, port))

    def _etcd(self) -> ProcessSpec:
        client, peer = f"http://{LOOPBACK}:{self.ports['etcd']}", f"http://{LOOPBACK}:{self.ports['etcd-peer']}"
        argv = (
            *(str(etcd_binary()), "--name", SIDE, "--data-dir", str(self.data("etcd"))),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", f"{SIDE}={peer}"),
            *("--experimental-watch-progress-notify-interval", "1s", "--log-level", "error"),
        )
        return ProcessSpec("etcd", argv, ready=port_accepts(LOOPBACK, self.ports["etcd"]))

    def _config(self, program: str) -> Path:
        return self.folder / "config" / f"{program}.yaml"

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

    def _write_configs(self) -> None:
        ports, public = self.ports, base64.b64encode(self._root_public).decode("ascii")
        common: dict[str, Any] = {
            "side": SIDE,
            "roots": [{"side": SIDE, "public_key": public, "jurisdictions": ["SG", "CN"]}],
        }
        control = {
            "listen": self._control,
            "etcd": {"endpoints": [f"http://{LOOPBACK}:{ports['etcd']}"]},
            "root_key_file": str(self._file("root.pem")),
            "operator_token_file": str(self._file("operator.token")),
            "data_dir": str(self.data("control")),
        }
        write_yaml(self._config("control"), {**common, **control})
        member = {
            **common,
            "control": self._control,
            "spool_bytes": SPOOL_BYTES,
            "drain_grace_ms": DRAIN_GRACE_MS,
            "processes": self._processes,
        }
        for edge in EDGES:
            write_yaml(self._config(edge), {**member, **self._edge(edge)})
        for site in SITES:
            write_yaml(self._config(program_of(site)), {**member, **self._site(site)})

    def _edge(self, edge: str) -> dict[str, Any]:
        home = {
            "name": HOME_ENGINE,
            "base_url": self._engine_url(HOME_ENGINE),
            "served_model": engine.MODEL,
            "resume": "text",
            "identity": identity(),
        }
        return {
            "id": edge,
            "host": LOOPBACK,
            "port": self.ports[edge],
            "data_dir": str(self.data(edge)),
            "signing_key_file": str(self._file(f"{edge}.pem")),
            "commitment_key_file": str(self._file(f"{edge}.commitment")),
            "engines": [home],
        }

    def _site(self, site: str) -> dict[str, Any]:
        replicas = [
            {
                "name": name,
                "model": engine.MODEL,
                "base_url": self._engine_url(name),
                "served_model": engine.MODEL,
                "slots": self.pace.slots,
                "resume": "text",
                "identity": identity(),
            }
            for name in self.engines(pool_of(site))
        ]
        return {
            "id": site,
            "listen": f"{LOOPBACK}:{self.ports[f'intake-{site}']}",
            "replica_listen": f"{LOOPBACK}:{self.ports[f'replicas-{site}']}",
            "data_dir": str(self.data(program_of(site))),
            "replica_token_file": str(self._file("replica.token")),
            "pools": [{"id": pool_of(site), "engines": replicas}],
        }

    def _engine_url(self, name: str) -> str:
        return f"http://{LOOPBACK}:{self.ports[name]}"


def identity() -> dict[str, str]:
    """Return what every engine of the stand is: one continues another's answer."""
    names = ("weights", "tokenizer", "template")
    parts = {f"{name}_sha256": hashlib.sha256(name.encode()).hexdigest() for name in names}
    return {**parts, "engine_family": "words-1", "quantisation": "none"}
