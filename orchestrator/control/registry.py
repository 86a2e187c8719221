"""The registry: the shared truth of one side, in etcd. The only importer of etcd3aio.

etcd3aio gives the stubs, the messages and the prefix arithmetic; calls, watches and leases over them are ours, because
its own retries, watches and keepalives lose events, repeat writes and believe silence.

Every write is conditional on the mod_revision of each key that it writes. So a write whose outcome is unknown
(`RegistryUnavailable.may_have_applied`) can be sent again: either it applies now, or it conflicts because it had
applied, or another had. Put something of the writer into the value, read after the conflict, and it is known which.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

import grpc
from etcd3aio import prefix_range_end
from etcd3aio._protobuf import (
    Compare,
    DeleteRangeRequest,
    KVStub,
    LeaseGrantRequest,
    LeaseKeepAliveRequest,
    LeaseRevokeRequest,
    LeaseStub,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
    WatchCreateRequest,
    WatchRequest,
    WatchStub,
)

from orchestrator.control.entries import (
    ABSENT,
    Change,
    Entry,
    Guard,
    LeaseId,
    Listing,
    Put,
    RegistryConflict,
    RegistryKey,
    RegistryRefused,
    RegistryUnavailable,
    Revision,
)
from orchestrator.control.lease import Lease, LeaseStream
from orchestrator.control.members import REQUIRE_LEADER, Member, Members, RegistrySettings, Stream, open_channels
from orchestrator.control.watch import FeedStream, PendingBatches, Reply, Watch

MAX_VALUE_BYTES = 1 << 20
MAX_COMMIT_BYTES = 5 << 18
"""etcd refuses a request above 1.5 MiB; this leaves room for keys and framing."""
MAX_COMMIT_KEYS = 128
"""etcd's default of --max-txn-ops."""
PAGE_KEYS = 64
LISTING_TRIES = 3
DELETE = 1
"""The type of a delete event; the stubs of etcd3aio leave the enum out."""


class _Keys:
    """Keys of this registry as etcd has them: behind a prefix, in bytes. A foreign key that is not UTF-8 survives."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def encode(self, key: RegistryKey) -> bytes:
        if not key:
            raise ValueError("a key is not empty")
        return (self._prefix + key).encode("utf-8", "surrogateescape")

    def decode(self, key: bytes) -> RegistryKey:
        return RegistryKey(key.decode("utf-8", "surrogateescape")[len(self._prefix) :])

    def span(self, prefix: str) -> tuple[bytes, bytes]:
        """Return the first key that begins with `prefix` and the end of the range."""
        start = (self._prefix + prefix).encode("utf-8", "surrogateescape")
        return start, bytes(prefix_range_end(start))


class Registry:
    """The keys below one prefix of one etcd cluster.

    Every method that calls etcd takes `timeout_s`, the deadline of each call (None: the default of the settings), and
    raises `RegistryUnavailable` when etcd is not reachable or hung, and `RegistryRefused` when it will not.
    """

    def __init__(self, settings: RegistrySettings, members: Members) -> None:
        self._settings = settings
        self._keys = _Keys(settings.prefix)
        self._members = members
        # Each is held by its own task as long as it runs.
        self._running: WeakSet[Watch | Lease] = WeakSet()

    @classmethod
    def open(cls, settings: RegistrySettings) -> Self:
        """Return a registry, without waiting for etcd. To be called in a running loop.

        Raises ValueError when the settings are wrong and OSError when a PEM file cannot be read.
        """
        members = [
            Member(channel, kv=KVStub(channel), lease=LeaseStub(channel), watch=WatchStub(channel))
            for channel in open_channels(settings)
        ]
        return cls(settings, Members(members))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every watch and lease opened here, then the channels. Raises nothing; may be called again."""
        await asyncio.gather(*(one.close() for one in list(self._running)))
        await self._members.close()

    async def get(self, key: RegistryKey, *, timeout_s: float | None = None) -> Entry | None:
        """Return the entry of a key as a majority has it, or None."""
        response = await self._range("get", RangeRequest(key=self._keys.encode(key)), timeout_s)
        return _entry(response.kvs[0]) if response.kvs else None

    async def get_prefix(self, prefix: str = "", *, timeout_s: float | None = None) -> Listing:
        """Return all entries whose keys begin with `prefix`, as they were at one revision, read in pages."""
        for _ in range(LISTING_TRIES):
            listing = await self._list(prefix, timeout_s)
            if listing is not None:
                return listing
        raise RegistryUnavailable("list", "compacted while it was read")

    async def create(
        self, key: RegistryKey, value: bytes, *, lease: LeaseId | None = None, timeout_s: float | None = None
    ) -> Revision:
        """Write a key that does not exist; return its mod_revision. Raises RegistryConflict when it exists."""
        return await self.commit((Put(key, value, lease),), guards=(Guard(key, ABSENT),), timeout_s=timeout_s)

    async def replace(
        self,
        key: RegistryKey,
        value: bytes,
        expected_mod_revision: Revision,
        *,
        lease: LeaseId | None = None,
        timeout_s: float | None = None,
    ) -> Revision:
        """Write a key over the revision that was read; return the new one. Raises RegistryConflict when it moved."""
        guards = (Guard(key, expected_mod_revision),)
        return await self.commit((Put(key, value, lease),), guards=guards, timeout_s=timeout_s)

    async def delete(
        self, key: RegistryKey, expected_mod_revision: Revision, *, timeout_s: float | None = None
    ) -> Revision:
        """Delete a key at the revision that was read. Raises RegistryConflict when it moved."""
        return await self.commit(deletes=(key,), guards=(Guard(key, expected_mod_revision),), timeout_s=timeout_s)

    async def commit(
        self,
        puts: Sequence[Put] = (),
        deletes: Sequence[RegistryKey] = (),
        guards: Sequence[Guard] = (),
        *,
        timeout_s: float | None = None,
    ) -> Revision:
        """Write and delete all or nothing, if every guard holds; return the revision of the commit.

        Every key that is written or deleted needs a guard of its own: a request that was stuck in a hung server may
        still be applied long after its caller gave up, and only the guard keeps it from writing over newer values.
        Guards on other keys (a leader's key, an epoch) may be added. Raises RegistryConflict when a guard did not
        hold, RegistryUnavailable with `may_have_applied` when the outcome is not known, ValueError when the commit
        is too large or not guarded.
        """
        _check_commit(puts, deletes, guards)
        request = TxnRequest(
            compare=[self._compare(guard) for guard in guards],
            success=[*(self._put(put) for put in puts), *(self._delete(key) for key in deletes)],
            failure=[self._look(guard) for guard in guards],
        )
        response = await self._members.once("commit", lambda member: member.kv.Txn, request, self._timeout(timeout_s))
        if not response.succeeded:
            raise RegistryConflict("commit", _conflicts(guards, response))
        return Revision(int(response.header.revision))

    async def grant(self, ttl_s: int, *, timeout_s: float | None = None) -> Lease:
        """Return a new lease of at least `ttl_s` seconds that renews itself until it is closed or lost."""
        if ttl_s < 1:
            raise ValueError("a lease lasts at least a second")
        request = LeaseGrantRequest(TTL=ttl_s)
        sent_at_s = time.monotonic()
        response = await self._members.once(
            "grant", lambda member: member.lease.LeaseGrant, request, self._timeout(timeout_s)
        )
        lease_id = LeaseId(int(response.ID))
        home = _EtcdLease(self._members, lease_id, self._settings.timeout_s)
        lease = Lease(home, lease_id, sent_at_s=sent_at_s, ttl_s=float(response.TTL))
        self._running.add(lease)
        return lease

    def watch_prefix(self, prefix: str = "", *, pending: PendingBatches | None = None) -> Watch:
        """Follow all keys that begin with `prefix`, without waiting for etcd: see `Watch.ready`.

        Raises RegistryUnavailable when this registry is closed.
        """
        self._members.check_open("watch")
        feed = _EtcdFeed(self, self._members, self._keys, prefix)
        watch = Watch(feed, name=self._settings.prefix + prefix, progress_s=self._settings.progress_s, pending=pending)
        self._running.add(watch)
        return watch

    def _compare(self, guard: Guard) -> Any:
        key = self._keys.encode(guard.key)
        return Compare(result=Compare.EQUAL, target=Compare.MOD, key=key, mod_revision=guard.mod_revision)

    def _put(self, put: Put) -> Any:
        request = PutRequest(key=self._keys.encode(put.key), value=put.value, lease=put.lease or 0)
        return RequestOp(request_put=request)

    def _delete(self, key: RegistryKey) -> Any:
        return RequestOp(request_delete_range=DeleteRangeRequest(key=self._keys.encode(key)))

    def _look(self, guard: Guard) -> Any:
        return RequestOp(request_range=RangeRequest(key=self._keys.encode(guard.key), keys_only=True))

    def _timeout(self, timeout_s: float | None) -> float:
        return self._settings.timeout_s if timeout_s is None else timeout_s

    async def _range(self, operation: str, request: Any, timeout_s: float | None) -> Any:
        return await self._members.any(operation, lambda member: member.kv.Range, request, self._timeout(timeout_s))

    async def _list(self, prefix: str, timeout_s: float | None) -> Listing | None:
        """Return one listing, or None when its revision was compacted between two pages."""
        start, end = self._keys.span(prefix)
        revision = cluster_id = 0
        entries: dict[RegistryKey, Entry] = {}
        while True:
            request = RangeRequest(key=start, range_end=end, limit=PAGE_KEYS, revision=revision)
            try:
                page = await self._range("list", request, timeout_s)
            except RegistryRefused as refused:
                if revision > 0 and refused.reason == grpc.StatusCode.OUT_OF_RANGE.name:
                    return None
                raise
            if revision == 0:
                revision, cluster_id = int(page.header.revision), int(page.header.cluster_id)
            entries.update((self._keys.decode(kv.key), _entry(kv)) for kv in page.kvs)
            if not page.more:
                return Listing(Revision(revision), cluster_id, entries)
            start = bytes(page.kvs[-1].key) + b"\0"


class _EtcdFeed:
    def __init__(self, registry: Registry, members: Members, keys: _Keys, prefix: str) -> None:
        self._registry = registry
        self._members = members
        self._keys = keys
        self._prefix = prefix

    async def list_all(self) -> Listing:
        return await self._registry.get_prefix(self._prefix)

    def open(self, start: Revision) -> FeedStream:
        member = self._members.current
        key, range_end = self._keys.span(self._prefix)
        create = WatchCreateRequest(
            key=key, range_end=range_end, start_revision=start, progress_notify=True, fragment=True
        )
        stream = Stream(self._members, member, "watch", member.watch.Watch(metadata=REQUIRE_LEADER))
        return _EtcdWatchStream(stream, WatchRequest(create_request=create), self._keys)


class _EtcdWatchStream:
    def __init__(self, stream: Stream, create: Any, keys: _Keys) -> None:
        self._stream = stream
        self._create = create
        self._keys = keys

    async def begin(self, timeout_s: float) -> None:
        await self._stream.write(self._create, timeout_s)

    async def ask_progress(self, timeout_s: float) -> None:
        await self._stream.write(WatchRequest(progress_request={}), timeout_s)

    async def read(self, timeout_s: float) -> Reply | None:
        message = await self._stream.read(timeout_s)
        return None if message is None else _reply(message, self._keys)

    def abandon(self) -> None:
        self._stream.unanswered()

    async def close(self) -> None:
        await self._stream.close()


class _EtcdLeaseStream:
    def __init__(self, stream: Stream, lease_id: LeaseId) -> None:
        self._stream = stream
        self._lease_id = lease_id

    async def renew(self, timeout_s: float) -> float:
        await self._stream.write(LeaseKeepAliveRequest(ID=self._lease_id), timeout_s)
        message = await self._stream.read(timeout_s)
        if message is None:
            raise self._stream.unanswered()
        return float(message.TTL)

    async def close(self) -> None:
        await self._stream.close()


class _EtcdLease:
    def __init__(self, members: Members, lease_id: LeaseId, timeout_s: float) -> None:
        self._members = members
        self._lease_id = lease_id
        self._timeout_s = timeout_s

    def open(self) -> LeaseStream:
        member = self._members.current
        call = member.lease.LeaseKeepAlive(metadata=REQUIRE_LEADER)
        return _EtcdLeaseStream(Stream(self._members, member, "renew", call), self._lease_id)

    async def revoke(self) -> None:
        request = LeaseRevokeRequest(ID=self._lease_id)
        await self._members.any("revoke", lambda member: member.lease.LeaseRevoke, request, self._timeout_s)


def _check_commit(puts: Sequence[Put], deletes: Sequence[RegistryKey], guards: Sequence[Guard]) -> None:
    written = [*(put.key for put in puts), *deletes]
    if not written or len(set(written)) != len(written):
        raise ValueError("a commit writes at least one key, and each key once")
    if not set(written) <= {guard.key for guard in guards}:
        raise ValueError("every key of a commit needs a guard")
    if max(len(written), len(guards)) > MAX_COMMIT_KEYS:
        raise ValueError(f"a commit has at most {MAX_COMMIT_KEYS} keys")
    sizes = [len(put.value) for put in puts]
    if max(sizes, default=0) > MAX_VALUE_BYTES or sum(sizes) > MAX_COMMIT_BYTES:
        raise ValueError(f"a value has at most {MAX_VALUE_BYTES} bytes, a commit {MAX_COMMIT_BYTES}")


def _conflicts(guards: Sequence[Guard], response: Any) -> tuple[RegistryKey, ...]:
    looks = [look.response_range.kvs for look in response.responses]
    found = [Revision(int(kvs[0].mod_revision)) if kvs else ABSENT for kvs in looks]
    return tuple(guard.key for guard, now in zip(guards, found, strict=True) if now != guard.mod_revision)


def _entry(kv: Any) -> Entry:
    return Entry(bytes(kv.value), Revision(int(kv.mod_revision)))


def _change(event: Any, keys: _Keys) -> Change:
    entry = None if event.type == DELETE else _entry(event.kv)
    return Change(keys.decode(event.kv.key), entry, Revision(int(event.kv.mod_revision)))


def _reply(message: Any, keys: _Keys) -> Reply:
    return Reply(
        revision=Revision(int(message.header.revision)),
        cluster_id=int(message.header.cluster_id),
        watch_id=int(message.watch_id),
        changes=tuple(_change(event, keys) for event in message.events),
        created=bool(message.created),
        fragment=bool(message.fragment),
        canceled=bool(message.canceled),
        compacted=message.compact_revision > 0,
    )
