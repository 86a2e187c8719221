"""A real etcd for the tests of the registry."""

from __future__ import annotations

import os

# Before gRPC is imported: its fork handlers complain when etcd is started again beside it.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from uuid import uuid4

import pytest

from orchestrator.control.members import RegistrySettings
from orchestrator.control.registry import Registry
from tests.etcd_process import EtcdProcess
from tests.registry.link import Link

OpenRegistry = Callable[..., Registry]


@pytest.fixture(scope="session")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdProcess]:
    with EtcdProcess(tmp_path_factory.mktemp("etcd") / "data") as process:
        yield process


@pytest.fixture
def etcd(shared_etcd: EtcdProcess) -> Iterator[EtcdProcess]:
    """The etcd of the session, running again after every test."""
    yield shared_etcd
    if shared_etcd.is_running():
        shared_etcd.resume()
    else:
        shared_etcd.start()


@pytest.fixture
async def no_task_left() -> AsyncIterator[None]:
    """What the fixtures above this one open must end with them."""
    before = asyncio.all_tasks()
    yield
    # gRPC ends a cancelled call over the next turns of the loop.
    await asyncio.sleep(0.05)
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left


@pytest.fixture
async def open_registry(etcd: EtcdProcess, no_task_left: None) -> AsyncIterator[OpenRegistry]:
    """Opens registries below a prefix of this test's own; all are closed after it."""
    prefix = f"/tests/{uuid4().hex}/"
    async with AsyncExitStack() as stack:

        def opened(*endpoints: str, timeout_s: float = 2.0, progress_s: float = 0.5, prefix: str = prefix) -> Registry:
            settings = RegistrySettings(endpoints or (etcd.url,), prefix, timeout_s=timeout_s, progress_s=progress_s)
            registry = Registry.open(settings)
            stack.push_async_callback(registry.close)
            return registry

        yield opened


@pytest.fixture
async def link(etcd: EtcdProcess, no_task_left: None) -> AsyncIterator[Link]:
    """A connection to etcd that can be cut and slowed without touching etcd."""
    async with Link(etcd.port) as between:
        yield between
