"""The durable table of keys: SQLite in one file, used by one thread of one process. Every call here may block.

SQLite, and not a log of our own: it holds an index that need not fit into memory, forgets in any order, takes a write
that was cut anywhere for one that never was, and says "full" without losing what it has. A commit is one fdatasync of
its write-ahead log. The file is locked for as long as it is open, and overwrites what it forgets.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node_agent.idempotency.rules import BodyDigest, Held, KeyDigest, State, TenantDigest, Why
from orchestrator.policy.ids import RequestId

VERSION = 1
"""Of the file's layout. A file of another version is not opened."""
ENTRY_BYTES = 512
"""What one key takes in the file at most, its indexes included."""
PAGE_BYTES = 4096
PURGE_ROWS = 256
LOG_BYTES = 4 << 20
"""To this the write-ahead log is cut back."""

_ALL = TenantDigest(b"")
"""Stands for all tenants in the totals."""
_LAYOUT = (
    "CREATE TABLE keys (key BLOB PRIMARY KEY, tenant BLOB NOT NULL, body BLOB NOT NULL, request TEXT NOT NULL,"
    " state INTEGER NOT NULL, until_ms INTEGER NOT NULL, delivered INTEGER NOT NULL, size INTEGER NOT NULL,"
    " why INTEGER)"
    " STRICT, WITHOUT ROWID",
    "CREATE INDEX keys_until ON keys (until_ms)",
    "CREATE TABLE results (key BLOB PRIMARY KEY, shut BLOB NOT NULL) STRICT",
    "CREATE TABLE totals (tenant BLOB PRIMARY KEY, entries INTEGER NOT NULL, bytes INTEGER NOT NULL)"
    " STRICT, WITHOUT ROWID",
    f"PRAGMA user_version = {VERSION}",
)
_COLUMNS = "key, tenant, body, request, state, until_ms, delivered, size, why"
_PRAGMAS = (
    f"PRAGMA page_size = {PAGE_BYTES}",
    # One process has the file: others are held off, and no shared memory is mapped that a full disk could take away.
    "PRAGMA locking_mode = EXCLUSIVE",
    "PRAGMA synchronous = FULL",
    "PRAGMA secure_delete = ON",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA cache_size = -1024",
    f"PRAGMA journal_size_limit = {LOG_BYTES}",
)


class StoreError(Exception):
    """The store cannot do what was asked; nothing is known to be written."""


class StoreFull(StoreError):
    """There is no room for another key. Nothing was written."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is held, of all tenants and of one."""

    entries_max: int
    tenant_entries_max: int
    results_bytes_max: int
    tenant_results_bytes_max: int

    def pages_max(self) -> int:
        """Return the most pages that the file may have: what is forgotten is used again, so it grows no further."""
        return (self.entries_max * ENTRY_BYTES + self.results_bytes_max * 5 // 4) // PAGE_BYTES + 64


@dataclass(frozen=True, slots=True)
class Whole:
    """All that is held of one key, to be held elsewhere."""

    row: tuple[Any, ...]
    """Of the table `keys`, in the order of its columns."""
    shut: bytes | None
    """The result, as it was shut."""


class KeyStore:
    """Holds keys on disk. All that is asked of it is asked within a `transaction`, which opens the file at need."""

    def __init__(self, path: Path, bounds: Bounds) -> None:
        self._path = path
        self._bounds = bounds
        self._open: sqlite3.Connection | None = None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is done within is on the disk when this ends well, and undone when it does not. Raises StoreError."""
        with _told():
            database = self._opened()
            database.execute("BEGIN IMMEDIATE")
            try:
                yield
                database.execute("COMMIT")
            except BaseException:
                self._undo(database)
                raise

    def close(self) -> None:
        """Write back what is in the log, and close."""
        database, self._open = self._open, None
        if database is not None:
            with _told():
                database.close()

    def find(self, key: KeyDigest, tenant: TenantDigest, now_ms: int) -> Held | None:
        """Return what is held of a key. Raises StoreFull when nothing is, and there is no room for it either."""
        row = self._row("SELECT request, body, state, until_ms, why FROM keys WHERE key = ?", key)
        if row is not None and row[3] > now_ms:
            why = None if row[4] is None else Why(row[4])
            return Held(RequestId(row[0]), BodyDigest(row[1]), State(row[2]), row[3], why)
        self._make_room(tenant, now_ms)
        return None

    def begin(
        self, key: KeyDigest, tenant: TenantDigest, body: BodyDigest, request: RequestId, now_ms: int, until_ms: int
    ) -> None:
        """Note that the request of a free key is about to be sent. Raises StoreFull, and StoreError when it is held."""
        self._forget(self._rows("SELECT key, tenant, size FROM keys WHERE key = ? AND until_ms <= ?", key, now_ms))
        self._make_room(tenant, now_ms)
        if self._row("SELECT 1 FROM keys WHERE key = ?", key) is not None:
            raise StoreError("the key is held")
        self._do(
            "INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, 0, 0, NULL)",
            *(key, tenant, body, request, State.RUNNING.value, until_ms),
        )
        self._count(tenant, 1, 0)

    def end(self, key: KeyDigest, request: RequestId, delivered: int, why: Why) -> None:
        """Note that a running request is over, without a result. Does nothing when it is over already."""
        self._do(
            "UPDATE keys SET state = ?, delivered = ?, why = ? WHERE key = ? AND request = ? AND state = ?",
            *(State.ENDED.value, delivered, why.value, key, request, State.RUNNING.value),
        )

    def keep(self, key: KeyDigest, tenant: TenantDigest, request: RequestId, delivered: int, shut: bytes) -> bool:
        """Note that a running request is over, with its result. Returns False where there was no room for that."""
        size, bounds = len(shut), self._bounds
        if self._total(_ALL)[1] + size > bounds.results_bytes_max:
            return False
        if self._total(tenant)[1] + size > bounds.tenant_results_bytes_max:
            return False
        done = self._do(
            "UPDATE keys SET state = ?, delivered = ?, size = ? WHERE key = ? AND request = ? AND state = ?",
            *(State.KEPT.value, delivered, size, key, request, State.RUNNING.value),
        )
        if done != 1:
            return False
        self._do("INSERT INTO results VALUES (?, ?)", key, shut)
        self._count(tenant, 0, size)
        return True

    def result(self, key: KeyDigest) -> bytes | None:
        """Return the result of a key, as it was shut."""
        row = self._row("SELECT shut FROM results WHERE key = ?", key)
        return None if row is None else bytes(row[0])

    def delivered(self, key: KeyDigest) -> int | None:
        """Return how many tokens the request of a key delivered; None for a key that is not held."""
        row = self._row("SELECT delivered FROM keys WHERE key = ?", key)
        return None if row is None else int(row[0])

    def free(self, key: KeyDigest, request: RequestId) -> None:
        """Forget a running request: nothing was begun for it."""
        query = "SELECT key, tenant, size FROM keys WHERE key = ? AND request = ? AND state = ?"
        self._forget(self._rows(query, key, request, State.RUNNING.value))

    def purge(self, now_ms: int) -> int:
        """Forget keys whose time is over, up to a bound. Returns how many."""
        query = "SELECT key, tenant, size FROM keys WHERE until_ms <= ? LIMIT ?"
        return self._forget(self._rows(query, now_ms, PURGE_ROWS))

    def totals(self) -> tuple[int, int]:
        """Return how many keys are held, and how many bytes of results."""
        return self._total(_ALL)

    def held_keys(self) -> list[KeyDigest]:
        """Return every key that is held, past its time or not."""
        return [KeyDigest(row[0]) for row in self._opened().execute("SELECT key FROM keys ORDER BY key")]

    def whole(self, key: KeyDigest) -> Whole:
        """Return all that is held of a key. Raises StoreError when nothing is."""
        row = self._row(f"SELECT {_COLUMNS} FROM keys WHERE key = ?", key)  # noqa: S608 - names of ours alone
        if row is None:
            raise StoreError("the key is not held")
        return Whole(row, self.result(key))

    def take_in(self, whole: Whole) -> None:
        """Hold what another store held of a key, in place of what is held here where that is free sooner.

        Bounds do not count: what was noted once stays noted.
        """
        key, tenant, until_ms, size = whole.row[0], whole.row[1], whole.row[5], whole.row[7]
        held = self._rows("SELECT key, tenant, size FROM keys WHERE key = ?", key)
        if held and self.whole(key).row[5] >= until_ms:
            return
        self._forget(held)
        self._do("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", *whole.row)
        if whole.shut is not None:
            self._do("INSERT INTO results VALUES (?, ?)", key, whole.shut)
        self._count(tenant, 1, size)

    def let_go(self, whole: Whole) -> None:
        """Forget what another store holds now."""
        self._forget([(whole.row[0], whole.row[1], whole.row[7])])

    def _make_room(self, tenant: TenantDigest, now_ms: int) -> None:
        """Raises StoreFull when there is no room for another key of this tenant."""
        if self._has_room(tenant):
            return
        self.purge(now_ms)
        if not self._has_room(tenant):
            raise StoreFull("there is no room for another key")

    def _has_room(self, tenant: TenantDigest) -> bool:
        all_fit = self._total(_ALL)[0] < self._bounds.entries_max
        return all_fit and self._total(tenant)[0] < self._bounds.tenant_entries_max

    def _forget(self, rows: list[tuple[KeyDigest, TenantDigest, int]]) -> int:
        for key, tenant, size in rows:
            self._do("DELETE FROM keys WHERE key = ?", key)
            if size:
                self._do("DELETE FROM results WHERE key = ?", key)
            self._count(tenant, -1, -size)
        return len(rows)

    def _total(self, tenant: TenantDigest) -> tuple[int, int]:
        row = self._row("SELECT entries, bytes FROM totals WHERE tenant = ?", tenant)
        return (0, 0) if row is None else (int(row[0]), int(row[1]))

    def _count(self, tenant: TenantDigest, entries: int, size: int) -> None:
        for whose in (tenant, _ALL):
            self._do(
                "INSERT INTO totals VALUES (?1, ?2, ?3)"
                " ON CONFLICT (tenant) DO UPDATE SET entries = entries + ?2, bytes = bytes + ?3",
                *(whose, entries, size),
            )
        self._do("DELETE FROM totals WHERE tenant = ? AND entries = 0", tenant)

    def _opened(self) -> sqlite3.Connection:
        if self._open is not None:
            return self._open
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Made by us first, because it would be readable for others. The files beside it take over its mode.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        database = sqlite3.connect(self._path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            _set_up(database, self._bounds)
            _sync_folder(self._path.parent)
        except BaseException:
            database.close()
            raise
        self._open = database
        return database

    def _undo(self, database: sqlite3.Connection) -> None:
        try:
            if database.in_transaction:
                database.execute("ROLLBACK")
        except sqlite3.Error:
            # What it believes of the file may be wrong: the next transaction opens it anew, and recovers it.
            self._open = None
            database.close()

    def _do(self, command: str, *values: object) -> int:
        return self._opened().execute(command, values).rowcount

    def _row(self, query: str, *values: object) -> tuple[Any, ...] | None:
        found: tuple[Any, ...] | None = self._opened().execute(query, values).fetchone()
        return found

    def _rows(self, query: str, *values: object) -> list[tuple[KeyDigest, TenantDigest, int]]:
        return self._opened().execute(query, values).fetchall()


def _set_up(database: sqlite3.Connection, bounds: Bounds) -> None:
    """Make a connection fit, and the layout of a new file. Raises sqlite3.Error and StoreError."""
    for pragma in _PRAGMAS:
        database.execute(pragma)
    if database.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
        raise StoreError("the file cannot have a write-ahead log")
    database.execute(f"PRAGMA max_page_count = {bounds.pages_max()}")
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version == 0:
        database.execute("BEGIN IMMEDIATE")
        for command in _LAYOUT:
            database.execute(command)
        database.execute("COMMIT")
    elif version != VERSION:
        raise StoreError(f"the file has version {version}, this program knows {VERSION}")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _told() -> Iterator[None]:
    """Turn the failures of the library and the disk into StoreError, without a value in its words."""
    try:
        yield
    except sqlite3.Error as failure:
        # Errors that the library itself finds have no name.
        raise StoreError(f"the store failed: {getattr(failure, 'sqlite_errorname', 'misuse')}") from None
    except OSError as failure:
        raise StoreError(f"the store failed: {failure.strerror}") from None
