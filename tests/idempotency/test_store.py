"""The store of keys on a real disk: what is held, how much and for how long, who reads it, what a SIGKILL leaves."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from node_agent.idempotency.rules import KEEP_MS, BodyDigest, KeyDigest, State, TenantDigest, Why
from node_agent.idempotency.sealing import Sealer
from node_agent.idempotency.store import PURGE_ROWS, Bounds, KeyStore, StoreError, StoreFull
from node_agent.idempotency.turns import StoreThread
from orchestrator.policy.ids import EdgeId, RequestId, TenantId
from tests.idempotency.victim import KEY, REQUEST, STEPS, TENANT

NOW_MS = 1_790_000_000_000
BOUNDS = Bounds(1_000, 500, 1 << 20, 1 << 19)
BODY = BodyDigest(b"b" * 32)
ROOT = Path(__file__).parents[2]


def key(number: int) -> KeyDigest:
    return KeyDigest(number.to_bytes(32, "big"))


def request(number: int) -> RequestId:
    return RequestId(f"req_{number:032x}")


def begin(store: KeyStore, number: int, tenant: TenantDigest = TENANT, now_ms: int = NOW_MS) -> None:
    with store.transaction():
        store.begin(key(number), tenant, BODY, request(number), now_ms, now_ms + KEEP_MS)


def state(store: KeyStore, number: int, now_ms: int = NOW_MS, tenant: TenantDigest = TENANT) -> State | None:
    with store.transaction():
        held = store.find(key(number), tenant, now_ms)
    return None if held is None else held.state


def test_a_key_is_held_as_it_was_noted_over_a_restart(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.db", BOUNDS)
    for number in range(4):
        begin(store, number)
    with store.transaction():
        store.end(key(1), request(1), 7, Why.CUT)
        assert store.keep(key(2), TENANT, request(2), 9, b"shut")
        store.free(key(3), request(3))
    store.close()
    again = KeyStore(tmp_path / "keys.db", BOUNDS)
    assert [state(again, number) for number in range(5)] == [State.RUNNING, State.ENDED, State.KEPT, None, None]
    with again.transaction():
        assert again.result(key(2)) == b"shut"
        assert (again.result(key(1)), again.totals()) == (None, (3, 4))
        assert [again.delivered(key(number)) for number in range(4)] == [0, 7, 9, None]
        held = again.find(key(1), TENANT, NOW_MS)
        assert held is not None
        assert (held.request, held.body, held.until_ms) == (request(1), BODY, NOW_MS + KEEP_MS)
        assert held.why is Why.CUT
    again.close()


def test_what_is_over_stays_as_it_ended(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.db", BOUNDS)
    begin(store, 1)
    with store.transaction():
        assert store.keep(key(1), TENANT, request(1), 9, b"shut")
        store.end(key(1), request(1), 3, Why.CUT)
        store.free(key(1), request(1))
        assert not store.keep(key(1), TENANT, request(1), 1, b"other")
    assert state(store, 1) is State.KEPT
    with pytest.raises(StoreError, match="the key is held"):
        begin(store, 1)
    store.close()


def test_a_request_ends_nobody_elses_key(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.db", BOUNDS)
    begin(store, 1)
    with store.transaction():
        store.end(key(1), request(2), 3, Why.CUT)
        store.free(key(1), request(2))
        assert not store.keep(key(1), TENANT, request(2), 1, b"other")
    assert state(store, 1) is State.RUNNING
    store.close()


def test_a_key_whose_time_is_over_is_free_and_its_result_goes(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.db", BOUNDS)
    for number in range(PURGE_ROWS + 10):
        begin(store, number)
        with store.transaction():
            assert store.keep(key(number), TENANT, request(number), 1, b"x" * 100)
    late_ms = NOW_MS + KEEP_MS
    assert state(store, 5, late_ms - 1) is State.KEPT
    assert state(store, 5, late_ms) is None
    begin(store, 5, now_ms=late_ms)
    assert state(store, 5, late_ms) is State.RUNNING
    with store.transaction():
        assert store.result(key(5)) is None
        assert [store.purge(late_ms), store.purge(late_ms), store.purge(late_ms)] == [PURGE_ROWS, 9, 0]
        assert store.totals() == (1, 0)
    store.close()


def test_a_full_store_says_so_and_a_tenant_has_its_share(tmp_path: Path) -> None:
    other = TenantDigest(b"o" * 32)
    store = KeyStore(tmp_path / "keys.db", Bounds(3, 2, 100, 60))
    begin(store, 1)
    begin(store, 2)
    with store.transaction(), pytest.raises(StoreFull):
        store.find(key(3), TENANT, NOW_MS)
    with pytest.raises(StoreFull):
        begin(store, 3)
    assert state(store, 1) is State.RUNNING, "what is held is told also when it is full"
    begin(store, 3, other)
    with pytest.raises(StoreFull):
        begin(store, 4, other)
    with store.transaction():
        assert store.keep(key(1), TENANT, request(1), 1, b"x" * 50)
        assert not store.keep(key(2), TENANT, request(2), 1, b"x" * 11), "more than a tenant's share"
        assert not store.keep(key(3), other, request(3), 1, b"x" * 51), "more than there is"
        assert store.keep(key(3), other, request(3), 1, b"x" * 50)
    # Room comes back with time, and with keys that are free again.
    with store.transaction():
        store.free(key(2), request(2))
    begin(store, 4)
    begin(store, 5, other, NOW_MS + KEEP_MS)
    store.close()


def test_the_file_grows_no_further_than_its_bounds(tmp_path: Path) -> None:
    bounds = Bounds(40, 40, 200_000, 200_000)
    store = KeyStore(tmp_path / "keys.db", bounds)
    for number in range(200):
        now_ms = NOW_MS + number * KEEP_MS // 30
        begin(store, number, now_ms=now_ms)
        with store.transaction():
            store.keep(key(number), TENANT, request(number), 1, b"x" * 6_000)
    store.close()
    assert (tmp_path / "keys.db").stat().st_size <= bounds.pages_max() * 4096


def test_only_its_user_can_open_it_and_nobody_reads_a_key_a_body_or_a_result(tmp_path: Path) -> None:
    canary, folder = "marmalade", tmp_path / "idempotency"
    sealer = Sealer(b"secret", EdgeId("edge"))
    sealed = sealer.of(TenantId(f"{canary}-ltd"), "/v1/chat", f"{canary} 17", f"purpose={canary}", canary.encode())
    store = KeyStore(folder / "keys.db", BOUNDS)
    before = os.umask(0)
    try:
        with store.transaction():
            store.begin(sealed.key, sealed.tenant, sealed.body, request(1), NOW_MS, NOW_MS + KEEP_MS)
            assert store.keep(sealed.key, sealed.tenant, request(1), 1, sealed.shut(canary.encode()))
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}
    assert modes == {"idempotency": 0o700, "keys.db": 0o600, "keys.db-wal": 0o600}
    with store.transaction():
        shut = store.result(sealed.key)
    store.close()
    written = b"".join(path.read_bytes() for path in folder.iterdir())
    assert request(1).encode() in written, "the positive control"
    assert canary.encode() not in written
    assert shut is not None
    assert sealed.open(shut) == canary.encode()
    assert sealed.open(shut[:-1]) is None
    # Nor is it opened by another tenant, with another key, with another secret, or for another body.
    named = (TenantId(f"{canary}-ltd"), "/v1/chat", f"{canary} 17", f"purpose={canary}", canary.encode())
    for other in (
        sealer.of(TenantId("other"), *named[1:]),
        sealer.of(*named[:2], "other", *named[3:]),
        sealer.of(*named[:4], b"other"),
        Sealer(b"other", EdgeId("edge")).of(*named),
        Sealer(b"secret", EdgeId("other")).of(*named),
    ):
        assert other.open(shut) is None


def test_another_process_is_held_off(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.db", BOUNDS)
    begin(store, 1)
    script = (
        "import sys; from pathlib import Path; from node_agent.idempotency.store import *\n"
        "store = KeyStore(Path(sys.argv[1]), Bounds(9, 9, 9, 9))\n"
        "try:\n    with store.transaction(): pass\nexcept StoreError as failure: print(failure)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "keys.db")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.stdout.strip() == "the store failed: SQLITE_BUSY", ended.stderr
    store.close()


def test_a_file_of_another_version_is_not_opened(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.db", BOUNDS)
    begin(store, 1)
    store.close()
    with sqlite3.connect(tmp_path / "keys.db") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StoreError, match="version 99"):
        begin(KeyStore(tmp_path / "keys.db", BOUNDS), 2)


@pytest.mark.parametrize("step", range(len(STEPS)))
def test_after_a_kill_between_two_steps_the_store_holds_what_was_told_durable(tmp_path: Path, step: int) -> None:
    command = [sys.executable, "-m", "tests.idempotency.victim", str(tmp_path / "keys.db"), str(step)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"done\n"
        victim.send_signal(signal.SIGKILL)
        victim.wait(timeout=60)
    store = KeyStore(tmp_path / "keys.db", BOUNDS)
    with store.transaction():
        held = store.find(KEY, TENANT, NOW_MS)
        result = store.result(KEY)
        entries = store.totals()[0]
    expected = STEPS[step][1]
    assert (None if held is None else held.state) == expected
    assert (result is not None) is (expected is State.KEPT)
    assert entries == (0 if expected is None else 1)
    if held is not None:
        assert held.request == REQUEST
    store.close()


async def test_what_waits_for_the_disk_together_shares_one_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = KeyStore(tmp_path / "keys.db", BOUNDS)
    commits = 0
    real = store.transaction

    def counted() -> AbstractContextManager[None]:
        nonlocal commits
        commits += 1
        return real()

    monkeypatch.setattr(store, "transaction", counted)
    turns = StoreThread(store)

    async def note(number: int) -> None:
        await turns.do(lambda one: one.begin(key(number), TENANT, BODY, request(number), NOW_MS, NOW_MS + KEEP_MS))

    await asyncio.gather(*(note(number) for number in range(100)))
    # The first goes alone; all that came meanwhile go together.
    assert commits == 2
    # One that cannot be done is told so, and the others of its turn are done all the same.
    told = await asyncio.gather(*(note(number) for number in (200, 7, 201, 8)), return_exceptions=True)
    assert [type(one) for one in told] == [type(None), StoreError, type(None), StoreError]
    assert await turns.do(KeyStore.totals) == (102, 0)
    await turns.close()
    with pytest.raises(StoreError, match="closed"):
        await turns.do(KeyStore.totals)
