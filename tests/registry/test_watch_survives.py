"""2,500 writes over a killed, a hung and a compacted etcd reach the reader of a watch exactly once and in order."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.control import registry as registry_module
from orchestrator.control.entries import RegistryKey
from orchestrator.control.watch import QUIET_INTERVALS, Watch
from tests.etcd_process import EtcdProcess
from tests.registry.conftest import OpenRegistry
from tests.registry.link import Link
from tests.registry.recording import Reader, Writer, until

pytestmark = pytest.mark.e2e

KEYS = [RegistryKey(f"k{n}") for n in range(10)]
PROGRESS_S = 0.5
QUIET_S = QUIET_INTERVALS * PROGRESS_S
LIVE, BACKLOG, AFTER_KILL, OVER_HANG, WHILE_AWAY, AT_LAST = 300, 1300, 200, 400, 290, 10
TOTAL = 2500


async def killed_while_the_watch_catches_up(
    etcd: EtcdProcess, link: Link, writer: Writer, reader: Reader, watch: Watch
) -> None:
    """The watch is away while much is written, comes back, and etcd dies when it has handed over a part."""
    await link.cut()
    await writer.write(BACKLOG, size_bytes=3000)
    assert len(reader.live) == LIVE
    link.bytes_per_s = 4 << 20
    link.mend()
    await reader.until_seen(LIVE + 1)
    etcd.kill()
    handed_over = len(reader.live)
    await until(lambda: not watch.connected, 5.0)
    assert LIVE < handed_over <= len(reader.live) < LIVE + BACKLOG, "etcd died too late to show anything"
    link.bytes_per_s = None
    await asyncio.to_thread(etcd.start)
    await writer.write(AFTER_KILL)
    await reader.until_seen(LIVE + BACKLOG + AFTER_KILL)


async def hung_under_an_established_watch(etcd: EtcdProcess, writer: Writer, reader: Reader, watch: Watch) -> None:
    """Etcd stops in the midst of writes, is noticed by its silence, and goes on."""
    assert watch.connected
    seen, unknown, streams = len(reader.live), writer.unknown, watch.counts.streams
    writing = asyncio.create_task(writer.write(OVER_HANG))
    await reader.until_seen(seen + OVER_HANG // 4)
    etcd.pause()
    noticed_s = await until(lambda: not watch.connected, QUIET_S + 2.0)
    assert noticed_s <= QUIET_S + 0.5
    await asyncio.sleep(1.0)
    assert len(reader.live) < seen + OVER_HANG
    etcd.resume()
    await writing
    await reader.until_seen(seen + OVER_HANG)
    assert writer.unknown > unknown
    assert watch.counts.streams > streams


async def compacted_while_the_watch_is_away(
    etcd: EtcdProcess, link: Link, writer: Writer, reader: Reader, watch: Watch
) -> None:
    """What was written while the watch was away is compacted: only the last values can still be known."""
    seen, before = len(reader.live), dict(watch.state)
    await link.cut()
    await writer.write(WHILE_AWAY)
    deleted_at = await writer.delete(KEYS[-1])
    await asyncio.to_thread(etcd.compact)
    link.mend()
    await until(lambda: watch.counts.listings == 2, 5.0)
    await until(lambda: len(reader.relisted) == 1, 5.0)
    assert len(reader.live) == seen
    last = {one.key: one for one in writer.written}
    derived = {change.key: change for change in reader.relisted[0]}
    assert set(derived) == set(before) == set(KEYS)
    for key in KEYS[:-1]:
        entry = derived[key].entry
        assert entry is not None
        assert (entry.value, entry.mod_revision) == (last[key].value, last[key].mod_revision)
    assert derived[KEYS[-1]].entry is None
    assert derived[KEYS[-1]].mod_revision >= deleted_at


async def test_2500_writes_over_kill_hang_and_compaction_lose_and_repeat_nothing(
    etcd: EtcdProcess, link: Link, open_registry: OpenRegistry
) -> None:
    writer = Writer(open_registry(timeout_s=0.5), KEYS)
    watch = open_registry(link.url, progress_s=PROGRESS_S).watch_prefix()
    reader = Reader(watch)
    await watch.ready(5.0)

    await writer.write(LIVE)
    await reader.until_seen(LIVE)
    assert watch.counts.streams == 1
    await killed_while_the_watch_catches_up(etcd, link, writer, reader, watch)
    await hung_under_an_established_watch(etcd, writer, reader, watch)
    exact = len(writer.written)
    assert reader.seen == writer.written
    assert (watch.counts.listings, watch.counts.repeats) == (1, 0)

    await compacted_while_the_watch_is_away(etcd, link, writer, reader, watch)
    await until(lambda: watch.connected, 5.0)
    await writer.write(AT_LAST)
    await reader.until_seen(exact + AT_LAST)

    assert len(writer.written) == TOTAL
    assert reader.seen == writer.written[:exact] + writer.written[-AT_LAST:]
    truth = await open_registry().get_prefix()
    assert dict(watch.state) == truth.entries
    assert (watch.counts.listings, watch.counts.repeats, watch.counts.overflows) == (2, 0, 0)
    assert reader.resyncs == 1
    await watch.close()
    await reader.finish()


async def test_a_reply_in_fragments_arrives_whole(
    link: Link, open_registry: OpenRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    fragments: list[int] = []
    real = registry_module._reply

    def counted(message: object, keys: object) -> object:
        reply = real(message, keys)  # type: ignore[arg-type]
        fragments.extend([len(reply.changes)] if reply.fragment else [])
        return reply

    monkeypatch.setattr(registry_module, "_reply", counted)
    writer = Writer(open_registry(), KEYS)
    watch = open_registry(link.url).watch_prefix()
    reader = Reader(watch)
    await watch.ready(5.0)
    await link.cut()
    await writer.write(9, size_bytes=900_000)
    link.mend()
    await reader.until_seen(9)
    assert reader.seen == writer.written
    assert fragments
    await watch.close()
    await reader.finish()
