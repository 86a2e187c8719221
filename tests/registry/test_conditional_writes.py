"""Writes apply only where their guards hold, all or nothing."""

from __future__ import annotations

import asyncio
import time

import pytest

from orchestrator.control.entries import (
    ABSENT,
    Guard,
    Put,
    RegistryConflict,
    RegistryKey,
    RegistryUnavailable,
    Revision,
)
from orchestrator.control.registry import MAX_COMMIT_KEYS, MAX_VALUE_BYTES, PAGE_KEYS
from tests.etcd_process import EtcdProcess
from tests.registry.conftest import OpenRegistry

pytestmark = pytest.mark.e2e

A, B, C = RegistryKey("a"), RegistryKey("b"), RegistryKey("c")
SECRET = b"canary-value-4711"
MANY = tuple(RegistryKey(str(n)) for n in range(MAX_COMMIT_KEYS + 1))


async def test_what_was_written_is_read(open_registry: OpenRegistry) -> None:
    registry = open_registry()
    assert await registry.get(A) is None
    revision = await registry.create(A, b"one")
    entry = await registry.get(A)
    assert entry is not None
    assert (entry.value, entry.mod_revision) == (b"one", revision)
    assert await registry.replace(A, b"two", revision) > revision


async def test_a_key_is_created_once(open_registry: OpenRegistry) -> None:
    registry = open_registry()
    outcomes = await asyncio.gather(*(registry.create(A, str(n).encode()) for n in range(10)), return_exceptions=True)
    won = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, int)]
    assert len(won) == 1
    assert all(isinstance(outcome, RegistryConflict) for n, outcome in enumerate(outcomes) if n not in won)
    entry = await registry.get(A)
    assert entry is not None
    assert entry.value == str(won[0]).encode()


async def test_a_stale_revision_conflicts_and_names_the_key(open_registry: OpenRegistry) -> None:
    registry = open_registry()
    first = await registry.create(A, b"1")
    await registry.replace(A, b"2", first)
    with pytest.raises(RegistryConflict) as raised:
        await registry.replace(A, SECRET, first)
    assert raised.value.keys == (A,)
    with pytest.raises(RegistryConflict):
        await registry.delete(A, first)


async def test_a_deleted_key_that_came_back_is_another(open_registry: OpenRegistry) -> None:
    registry = open_registry()
    first = await registry.create(A, b"1")
    await registry.delete(A, first)
    await registry.create(A, b"1")
    with pytest.raises(RegistryConflict):
        await registry.replace(A, b"2", first)


async def test_a_commit_applies_whole_or_not_at_all(open_registry: OpenRegistry) -> None:
    registry = open_registry()
    a = await registry.create(A, b"a")
    b = await registry.create(B, b"b")
    with pytest.raises(RegistryConflict) as raised:
        await registry.commit(
            (Put(A, b"a2"), Put(C, b"c")), (B,), (Guard(A, a), Guard(B, Revision(b - 1)), Guard(C, b))
        )
    assert raised.value.keys == (B, C)
    assert {key: entry.value for key, entry in (await registry.get_prefix()).entries.items()} == {A: b"a", B: b"b"}
    revision = await registry.commit((Put(A, b"a2"), Put(C, b"c")), (B,), (Guard(A, a), Guard(B, b), Guard(C, ABSENT)))
    listing = await registry.get_prefix()
    assert {key: entry.value for key, entry in listing.entries.items()} == {A: b"a2", C: b"c"}
    assert {entry.mod_revision for entry in listing.entries.values()} == {revision}


async def test_a_guard_on_another_key_fences_a_writer(open_registry: OpenRegistry) -> None:
    registry = open_registry()
    leader = await registry.create(RegistryKey("leader"), b"me")
    await registry.commit((Put(A, b"1"),), guards=(Guard(A, ABSENT), Guard(RegistryKey("leader"), leader)))
    await registry.delete(RegistryKey("leader"), leader)
    with pytest.raises(RegistryConflict):
        await registry.commit((Put(B, b"2"),), guards=(Guard(B, ABSENT), Guard(RegistryKey("leader"), leader)))


@pytest.mark.parametrize(
    ("puts", "deletes", "guards"),
    [
        ((), (), (Guard(A, ABSENT),)),
        ((Put(A, b""),), (), ()),
        ((Put(A, b""),), (), (Guard(B, ABSENT),)),
        ((), (A,), ()),
        ((Put(A, b""), Put(A, b"")), (), (Guard(A, ABSENT),)),
        ((Put(A, b""),), (A,), (Guard(A, ABSENT),)),
        ((Put(RegistryKey(""), b""),), (), (Guard(RegistryKey(""), ABSENT),)),
        ((Put(A, bytes(MAX_VALUE_BYTES + 1)),), (), (Guard(A, ABSENT),)),
        ((), MANY, tuple(Guard(key, ABSENT) for key in MANY)),
    ],
)
async def test_an_unguarded_or_oversized_commit_is_refused_before_it_is_sent(
    open_registry: OpenRegistry, puts: tuple[Put, ...], deletes: tuple[RegistryKey, ...], guards: tuple[Guard, ...]
) -> None:
    registry = open_registry()
    with pytest.raises(ValueError):
        await registry.commit(puts, deletes, guards)


async def test_the_largest_commits_are_taken(open_registry: OpenRegistry) -> None:
    registry = open_registry()
    await registry.create(A, bytes(MAX_VALUE_BYTES))
    keys = [RegistryKey(f"many/{n}") for n in range(MAX_COMMIT_KEYS)]
    await registry.commit([Put(key, b"x") for key in keys], (), [Guard(key, ABSENT) for key in keys])
    assert len((await registry.get_prefix("many/")).entries) == MAX_COMMIT_KEYS


async def test_a_listing_of_many_pages_is_of_one_revision(open_registry: OpenRegistry) -> None:
    registry = open_registry()
    keys = [RegistryKey(f"page/{n:04}") for n in range(2 * PAGE_KEYS + 7)]
    for start in range(0, len(keys), PAGE_KEYS):
        some = keys[start : start + PAGE_KEYS]
        await registry.commit([Put(key, b"0") for key in some], (), [Guard(key, ABSENT) for key in some])

    stop = asyncio.Event()

    async def rewrite() -> None:
        """Write the first and the last key together, over and over: a torn listing would show them apart."""
        revision = (await registry.get_prefix("page/")).entries[keys[0]].mod_revision
        last = (await registry.get_prefix("page/")).entries[keys[-1]].mod_revision
        n = 0
        while not stop.is_set():
            n += 1
            revision = last = await registry.commit(
                (Put(keys[0], b"%d" % n), Put(keys[-1], b"%d" % n)),
                guards=(Guard(keys[0], revision), Guard(keys[-1], last)),
            )

    writer = asyncio.create_task(rewrite())
    for _ in range(10):
        listing = await registry.get_prefix("page/")
        assert list(listing.entries) == keys
        assert listing.entries[keys[0]].value == listing.entries[keys[-1]].value
    stop.set()
    await writer


async def test_the_prefix_of_one_registry_hides_the_others(open_registry: OpenRegistry) -> None:
    here, there = open_registry(), open_registry(prefix="/tests/other-side/")
    await here.create(RegistryKey("hidden/k"), b"v")
    assert "hidden/k" not in (await there.get_prefix()).entries
    assert list((await here.get_prefix("hidden/")).entries) == ["hidden/k"]


async def test_errors_and_reprs_hold_no_value(open_registry: OpenRegistry, etcd: EtcdProcess) -> None:
    registry = open_registry()
    revision = await registry.create(A, SECRET)
    texts = [repr(await registry.get(A)), repr(Put(A, SECRET))]
    with pytest.raises(RegistryConflict) as conflict:
        await registry.create(A, SECRET)
    etcd.pause()
    with pytest.raises(RegistryUnavailable) as unavailable:
        await registry.replace(A, SECRET, revision, timeout_s=0.3)
    etcd.resume()
    for raised in (conflict, unavailable):
        texts += [str(raised.value), repr(raised.value), repr(raised.value.__cause__), repr(vars(raised.value))]
    assert not [text for text in texts if "canary" in text]
    # The positive control: what is looked for would be found in the plain value.
    assert "canary" in repr(SECRET)


async def test_a_write_to_a_hung_server_is_unknown_and_can_be_sent_again(
    open_registry: OpenRegistry, etcd: EtcdProcess
) -> None:
    registry = open_registry()
    revision = await registry.create(A, b"1")
    etcd.pause()
    began = time.monotonic()
    with pytest.raises(RegistryUnavailable) as raised:
        await registry.replace(A, b"2", revision, timeout_s=0.5)
    assert 0.4 < time.monotonic() - began < 1.0
    assert raised.value.may_have_applied
    with pytest.raises(RegistryUnavailable) as raised:
        await registry.get(A, timeout_s=0.3)
    assert not raised.value.may_have_applied
    etcd.resume()
    try:
        await registry.replace(A, b"2", revision)
    except RegistryConflict:
        # The first one was stuck in the server and applied when it went on.
        pass
    entry = await registry.get(A)
    assert entry is not None
    assert entry.value == b"2"
