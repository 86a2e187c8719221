"""Control planes for tests: settings, keys and folders of two sides, run in this loop or as programs of their own."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestrator.bundles.assemble import Bundle
from orchestrator.bundles.blobs import Report
from orchestrator.bundles.clock import HighestTime
from orchestrator.bundles.follow import BundleFollower, Following
from orchestrator.bundles.formats import SectionKind
from orchestrator.bundles.holdings import Holdings
from orchestrator.bundles.roots import RootSetting, pinned
from orchestrator.bundles.store import BundleStore
from orchestrator.cli.publish import Published, publish
from orchestrator.cli.status import fetch_status, status_to_json
from orchestrator.config.secret import Secret
from orchestrator.control.assembly import serve
from orchestrator.control.settings import ControlSettings, EtcdSettings
from orchestrator.policy.ids import SideId
from tests.bundles.sides import File, Side

TOKEN = "operator-token-of-tests"
PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Plane:
    """One control plane that can be started."""

    side: Side
    settings: ControlSettings
    folder: Path

    @property
    def address(self) -> str:
        return self.settings.listen

    def write(self, files: Sequence[File] | None = None, revocations: dict[str, Any] | None = None) -> Path:
        """Write the side's documents as an operator keeps them; return the folder."""
        source = self.folder / f"source-{len(list(self.folder.glob('source-*')))}"
        folders = {SectionKind.PACK: "packs", SectionKind.TENANTS: "tenants"}
        for kind, name, document in self.side.files if files is None else files:
            folder = source / folders.get(kind, ".")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name if kind in folders else kind.value}.yaml").write_text(json.dumps(document, indent=1))
        if revocations is not None:
            (source / "revocations.yaml").write_text(json.dumps({"version": 1, **revocations}))
        return source

    async def publish(
        self, files: Sequence[File] | None = None, revocations: dict[str, Any] | None = None, expected: int = 0
    ) -> Published:
        return await publish(self.address, Secret(TOKEN), self.write(files, revocations), expected)

    async def status(self) -> dict[str, Any]:
        found = await fetch_status([(self.address, Secret(TOKEN))])
        return json.loads(json.dumps(status_to_json(found)[0]))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run in this loop."""
        stop, ready = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(serve(self.settings, stop, lambda _: ready.set()), name=f"control {self.side.name}")
        waiting = asyncio.create_task(ready.wait())
        try:
            await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
            yield
        finally:
            waiting.cancel()
            stop.set()
            await asyncio.wait_for(task, 10)

    @asynccontextmanager
    async def as_program(self) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run as a program of its own."""
        config = self.folder / "control.yaml"
        config.write_text(yaml.safe_dump(self._plain()))
        command = [sys.executable, "-m", "orchestrator", "--config", str(config)]
        with (self.folder / "control.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *command, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            await until(lambda: _listens(self.address), 20, f"{self.side.name} listens")
            yield process
        finally:
            if process.returncode is None:
                process.terminate()
            await asyncio.wait_for(process.wait(), 10)

    @asynccontextmanager
    async def followed(
        self, member: str, role: str = "edge", law_sides: frozenset[SideId] = frozenset(), folder: Path | None = None
    ) -> AsyncIterator[BundleFollower]:
        """A member of this side."""
        roots = pinned(self.settings.roots)
        place = folder if folder is not None else self.folder / f"member-{member}"
        place.mkdir(parents=True, exist_ok=True)
        holdings = Holdings(self.side.name, BundleStore(place / "bundles", roots), roots)
        following = Following(self.address, self.side.name, member, law_sides)
        seen: list[Bundle] = []
        follower = BundleFollower(
            following, holdings, HighestTime(place / "time"), lambda: Report(role, "test"), seen.append
        )
        await follower.start()
        try:
            yield follower
        finally:
            await follower.stop()

    def _plain(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "side": settings.side,
            "listen": settings.listen,
            "etcd": {"endpoints": list(settings.etcd.endpoints), "timeout_ms": 1000, "progress_ms": 500},
            "root_key_file": str(settings.root_key_file),
            "operator_token_file": str(settings.operator_token_file),
            "data_dir": str(settings.data_dir),
            "roots": [
                {"side": root.side, "public_key": root.public_key, "jurisdictions": list(root.jurisdictions)}
                for root in settings.roots
            ],
            "peer": settings.peer,
        }


def make_plane(
    folder: Path, etcd: str, side: Side, others: Sequence[Side], peer: str | None = None, fresh_ms: int = 900_000
) -> Plane:
    """Write keys and token of a side, and return its control plane on a port that was free."""
    folder.mkdir(parents=True)
    key, token = folder / "root.pem", folder / "token"
    side.key.write(key)
    token.touch(0o600)
    token.write_text(TOKEN)
    settings = ControlSettings(
        side=side.name,
        listen=f"127.0.0.1:{free_port()}",
        etcd=EtcdSettings((etcd,), timeout_ms=1_000, progress_ms=500),
        root_key_file=key,
        operator_token_file=token,
        data_dir=folder / "data",
        roots=tuple(_pin(one) for one in (side, *others)),
        peer=peer,
        fresh_ms=fresh_ms,
    )
    return Plane(side, settings, folder)


def _pin(side: Side) -> RootSetting:
    public_key = base64.b64encode(side.root.public_key).decode()
    return RootSetting(side.name, public_key, tuple(sorted(side.root.jurisdictions)))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until(condition: Any, within_s: float, what: str) -> None:
    """Wait for a condition, plain or awaitable."""
    deadline = asyncio.get_running_loop().time() + within_s
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return
        assert asyncio.get_running_loop().time() < deadline, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.02)


def _listens(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex((host, int(port))) == 0
