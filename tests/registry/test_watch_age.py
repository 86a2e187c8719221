"""A watch knows how old what it holds is, believes no silence, and ends clean."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import time
from pathlib import Path

import pytest

from orchestrator.control.entries import ABSENT, Guard, Put, RegistryKey, RegistryUnavailable
from orchestrator.control.watch import QUIET_INTERVALS, Changes, PendingBatches, Resync
from tests.etcd_process import EtcdProcess
from tests.registry.conftest import OpenRegistry
from tests.registry.link import Link
from tests.registry.recording import Reader, Writer, until

pytestmark = pytest.mark.e2e

K = RegistryKey("k")
PROGRESS_S = 0.3
QUIET_S = QUIET_INTERVALS * PROGRESS_S


async def test_the_age_stays_small_while_nothing_happens(open_registry: OpenRegistry) -> None:
    watch = open_registry(progress_s=PROGRESS_S).watch_prefix()
    assert watch.age_s(time.monotonic()) == math.inf
    await watch.ready(2.0)
    ages = []
    for _ in range(30):
        await asyncio.sleep(0.05)
        ages.append(watch.age_s(time.monotonic()))
    assert max(ages) < 2 * PROGRESS_S + 0.1
    assert watch.counts.streams == 1


async def test_the_age_grows_while_etcd_hangs_and_the_hang_is_noticed(
    open_registry: OpenRegistry, etcd: EtcdProcess
) -> None:
    watch = open_registry(timeout_s=0.5, progress_s=PROGRESS_S).watch_prefix()
    await watch.ready(2.0)
    await until(lambda: watch.connected, 2.0)
    etcd.pause()
    paused_s = time.monotonic()
    noticed_s = await until(lambda: not watch.connected, QUIET_S + 1.0)
    assert noticed_s <= QUIET_S + 0.3
    await asyncio.sleep(1.0)
    assert watch.age_s(time.monotonic()) >= time.monotonic() - paused_s
    etcd.resume()
    await until(lambda: watch.connected and watch.age_s(time.monotonic()) < 2 * PROGRESS_S, 5.0)


async def test_a_watch_that_cannot_list_says_so_and_goes_on_trying(open_registry: OpenRegistry, link: Link) -> None:
    await link.cut()
    watch = open_registry(link.url).watch_prefix()
    with pytest.raises(RegistryUnavailable):
        await watch.ready(0.5)
    assert watch.age_s(time.monotonic()) == math.inf
    link.mend()
    await watch.ready(3.0)
    assert watch.age_s(time.monotonic()) < 1.0


async def test_a_slow_consumer_gets_the_state_instead_of_a_growing_queue(open_registry: OpenRegistry) -> None:
    registry = open_registry()
    await registry.create(K, b"first")
    watch = registry.watch_prefix(pending=PendingBatches(most_changes=20))
    first = await anext(watch)
    assert isinstance(first, Resync)
    assert first.state[K].value == b"first"
    writer = Writer(registry, [RegistryKey("w")])
    await writer.write(50)
    await until(lambda: watch.get(RegistryKey("w")) is not None and watch.counts.overflows == 1, 3.0)
    await until(lambda: watch.state[RegistryKey("w")].mod_revision == writer.written[-1].mod_revision, 3.0)
    second = await anext(watch)
    assert isinstance(second, Resync)
    assert second.state[RegistryKey("w")].value == writer.written[-1].value
    await writer.write(1)
    third = await anext(watch)
    assert isinstance(third, Changes)
    assert [change.mod_revision for change in third.changes] == [writer.written[-1].mod_revision]


async def test_a_watch_sees_its_prefix_only_and_a_commit_as_one_batch(open_registry: OpenRegistry) -> None:
    registry = open_registry()
    watch = registry.watch_prefix("in/")
    assert isinstance(await anext(watch), Resync)
    await registry.create(RegistryKey("out/a"), b"")
    keys = [RegistryKey("in/a"), RegistryKey("in/b")]
    revision = await registry.commit([Put(key, b"") for key in keys], guards=[Guard(key, ABSENT) for key in keys])
    batch = await anext(watch)
    assert isinstance(batch, Changes)
    assert [(change.key, change.mod_revision) for change in batch.changes] == [(key, revision) for key in keys]
    await registry.delete(keys[0], revision)
    batch = await anext(watch)
    assert isinstance(batch, Changes)
    assert [(change.key, change.entry) for change in batch.changes] == [(keys[0], None)]
    assert list(watch.state) == [keys[1]]


async def test_what_is_closed_ends_its_consumer_and_leaves_no_socket(open_registry: OpenRegistry) -> None:
    def sockets() -> int:
        return sum(1 for fd in Path("/proc/self/fd").iterdir() if _target(fd).startswith("socket:"))

    await open_registry().get(K)
    await asyncio.sleep(0.1)
    before = sockets()
    for _ in range(5):
        registry = open_registry()
        watch = registry.watch_prefix()
        reader = Reader(watch)
        await registry.grant(1)
        await watch.ready(2.0)
        await until(lambda watch=watch: watch.connected, 2.0)  # type: ignore[misc]
        await watch.close()
        await watch.close()
        await reader.finish()
        assert not watch.connected
        await registry.close()
        with pytest.raises(StopAsyncIteration):
            await anext(watch)
    await until(lambda: sockets() <= before, 3.0)


async def test_a_backup_that_was_restored_is_listed_again(tmp_path: Path, open_registry: OpenRegistry) -> None:
    """After a restore etcd is behind the watch. It would wait in silence until etcd reaches the old place again."""
    with EtcdProcess(tmp_path / "restored") as own:
        registry = open_registry(own.url, timeout_s=0.5, prefix="/restored/")
        await Writer(registry, [RegistryKey(f"k{n}") for n in range(5)]).write(50)
        watch = registry.watch_prefix()
        await watch.ready(2.0)
        await until(lambda: watch.connected and len(watch.state) == 5, 2.0)
        own.kill()
        shutil.rmtree(tmp_path / "restored")
        await asyncio.to_thread(own.start)
        await Writer(registry, [K]).write(1)
        await until(lambda: list(watch.state) == [K], 5.0)
        assert watch.counts.listings == 2
        await registry.close()


def _target(fd: Path) -> str:
    try:
        return os.readlink(fd)
    except OSError:
        return ""
