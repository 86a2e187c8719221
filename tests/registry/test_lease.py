"""A lease is lost at its TTL by our own clock, whatever etcd says or does not say."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.control.entries import (
    ABSENT,
    Guard,
    Put,
    RegistryConflict,
    RegistryKey,
    RegistryRefused,
    RegistryUnavailable,
)
from orchestrator.control.lease import LeaseFence
from tests.etcd_process import EtcdProcess
from tests.registry.conftest import OpenRegistry
from tests.registry.link import Link
from tests.registry.recording import until

pytestmark = pytest.mark.e2e

K = RegistryKey("leader")
TTL_S = 2


async def test_a_lease_outlives_its_ttl_while_etcd_answers_and_ends_with_close(open_registry: OpenRegistry) -> None:
    registry = open_registry()
    lease = await registry.grant(TTL_S)
    await registry.create(K, b"me", lease=lease.id)
    await asyncio.sleep(1.3 * TTL_S)
    assert lease.held(time.monotonic())
    assert await registry.get(K) is not None
    await lease.close()
    await lease.close()
    assert not lease.held(time.monotonic())
    await asyncio.wait_for(lease.lost(), 0.1)
    assert await registry.get(K) is None


async def test_a_lease_is_lost_at_its_ttl_with_etcd_hung_and_does_not_come_back(
    open_registry: OpenRegistry, etcd: EtcdProcess
) -> None:
    registry = open_registry(timeout_s=0.5)
    lease = await registry.grant(TTL_S)
    await registry.create(K, b"me", lease=lease.id)
    await asyncio.sleep(1.0)
    etcd.pause()
    paused_s = time.monotonic()
    assert lease.held(paused_s)
    await asyncio.wait_for(lease.lost(), TTL_S + 1.0)
    lost_s = time.monotonic()
    # The last renewal was sent before the pause: so at most a TTL after it, and a third of the TTL earlier at the most.
    assert TTL_S - TTL_S / 3 - 0.2 <= lost_s - paused_s <= TTL_S + 0.2
    assert not lease.held(lost_s)
    etcd.resume()
    await asyncio.sleep(0.5)
    assert not lease.held(time.monotonic())


async def test_a_lease_survives_a_cut_shorter_than_its_ttl(open_registry: OpenRegistry, link: Link) -> None:
    registry = open_registry(link.url)
    lease = await registry.grant(TTL_S)
    await asyncio.sleep(0.8)
    await link.cut()
    await asyncio.sleep(0.6)
    link.mend()
    await asyncio.sleep(TTL_S)
    assert lease.held(time.monotonic())


async def test_a_lease_that_the_server_no_longer_has_is_lost_at_the_next_renewal(
    open_registry: OpenRegistry, etcd: EtcdProcess
) -> None:
    registry = open_registry()
    lease = await registry.grant(60)
    short = await registry.grant(TTL_S)
    await asyncio.to_thread(etcd.revoke, short.id)
    await asyncio.wait_for(short.lost(), TTL_S)
    assert not short.held(time.monotonic())
    assert lease.held(time.monotonic())
    with pytest.raises(RegistryRefused):
        await registry.create(K, b"late", lease=short.id)


async def test_a_write_of_a_lost_leader_is_fenced_by_its_key(open_registry: OpenRegistry) -> None:
    """A paused leader wakes up, believes nothing but its guard, and cannot write."""
    registry = open_registry()
    lease = await registry.grant(TTL_S)
    elected = await registry.create(K, b"me", lease=lease.id)
    await lease.close()
    await registry.create(K, b"you")
    with pytest.raises(RegistryConflict) as raised:
        await registry.commit(
            (Put(RegistryKey("a"), b""),), guards=(Guard(RegistryKey("a"), ABSENT), Guard(K, elected))
        )
    assert raised.value.keys == (K,)


async def test_a_grant_from_a_hung_server_fails_in_time(open_registry: OpenRegistry, etcd: EtcdProcess) -> None:
    registry = open_registry()
    etcd.pause()
    began_s = time.monotonic()
    with pytest.raises(RegistryUnavailable):
        await registry.grant(TTL_S, timeout_s=0.3)
    assert time.monotonic() - began_s < 0.8
    etcd.resume()
    with pytest.raises(ValueError):
        await registry.grant(0)


async def test_closing_with_etcd_hung_takes_no_longer_than_a_call(
    open_registry: OpenRegistry, etcd: EtcdProcess
) -> None:
    registry = open_registry(timeout_s=0.5)
    lease = await registry.grant(60)
    watch = registry.watch_prefix()
    await watch.ready(2.0)
    await until(lambda: watch.connected, 2.0)
    etcd.pause()
    began_s = time.monotonic()
    await registry.close()
    assert time.monotonic() - began_s < 1.0
    assert not lease.held(time.monotonic())


TIMES = st.floats(0, 100, allow_nan=False)


@given(TIMES, st.floats(0.5, 20), st.lists(st.tuples(TIMES, TIMES, st.floats(-1, 20)), max_size=12))
def test_no_answer_brings_a_lost_lease_back_nor_holds_it_beyond_a_ttl_from_sending(
    granted_s: float, ttl_s: float, renewals: list[tuple[float, float, float]]
) -> None:
    fence = LeaseFence(granted_s, ttl_s)
    latest = granted_s + ttl_s
    lost = False
    now_s = granted_s
    for wait_s, delay_s, answered_ttl_s in renewals:
        sent_s = now_s + wait_s
        now_s = sent_s + delay_s
        lost = lost or not fence.held(now_s) or answered_ttl_s <= 0
        held = fence.renewed(sent_s, answered_ttl_s, now_s)
        latest = max(latest, sent_s + answered_ttl_s)
        assert not (lost and held)
        assert held == fence.held(now_s)
        lost = lost or not held
    assert not fence.held(latest)
    fence.end()
    assert not fence.held(granted_s)
