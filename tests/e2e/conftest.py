"""The whole house, real in every part, started once for the tests of this folder.

Every program is a process of its own; the borders keep what crossed; the model is the real one. Tests that break
something mend it before they end, so that the order of tests does not matter.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from orchestrator.cli.house import House, choose_ports
from orchestrator.cli.processes import Supervisor
from orchestrator.cli.up import Options, Up
from scheduler.pools.prepare import default_cache, gguf_path, model_directory
from tests.values import replace

STOP_DEADLINE_MS = 20_000
OPTIONS = Options({"guizhou": 60, "shanghai": 40}, None, once=True)


@dataclass(slots=True)
class Standing:
    """The running house and what the tests need of it."""

    house: House
    up: Up
    supervisor: Supervisor
    capture: Path
    said: list[str]


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def standing(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Standing]:
    """Both sides of the border, up and whole."""
    folder = tmp_path_factory.mktemp("house")
    capture = folder / "border"
    said: list[str] = []
    house = House(folder, choose_ports(0, 0))
    house.write_declared()
    house.write_configs(model_directory(default_cache()))
    supervisor = Supervisor(house.folder, on_exit=lambda ended: said.append(f"{ended.name} ended {ended.status}"))
    options = replace(OPTIONS, capture=capture)
    up = Up(house, options, supervisor, gguf_path(), said.append)
    try:
        await up.start()
        yield Standing(house, up, supervisor, capture, said)
    finally:
        await supervisor.stop_all(STOP_DEADLINE_MS)
