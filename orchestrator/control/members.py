"""Reaching the members of an etcd cluster: settings, channels, failover, and streams that end as errors of ours."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc

from orchestrator.control.entries import RegistryError, RegistryRefused, RegistryUnavailable

MAX_TIMEOUT_S = 30.0
CLOSE_S = 1.0
MAX_MESSAGE_BYTES = 96 << 20
"""A page of values of the greatest size, with room."""
MAX_DETAIL_CHARS = 160
CLOSED = "the registry is closed"

REQUIRE_LEADER = (("hasleader", "true"),)
"""Without it a member that is cut off from the majority would go on to serve a watch from the past."""

CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # How long one attempt to connect may take: a hung server accepts a connection and then says nothing.
    ("grpc.min_reconnect_backoff_ms", 2000),
    # etcd counts pings without calls, and pings more often than every 5 s, as abuse.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)

UNAVAILABLE_CODES = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)


@dataclass(frozen=True, slots=True)
class RegistryTls:
    """PEM files for `https` endpoints. They are read when the registry is opened."""

    ca: Path
    cert: Path | None = None
    key: Path | None = None
    """Certificate and key of this client; both or neither."""


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """How to reach the etcd of one side."""

    endpoints: tuple[str, ...]
    """``http://host:port`` or ``https://host:port`` of each member."""
    prefix: str
    """What all keys begin with, as ``/tidegate/domestic/``; ends with a slash."""
    tls: RegistryTls | None = None
    """Needed when the endpoints are `https`, refused when one is `http`."""
    timeout_s: float = 2.0
    """Deadline of a call that names none; at most `MAX_TIMEOUT_S`."""
    progress_s: float = 1.0
    """How often a watch asks the server how far it is. Three times this without an answer is a hung server."""


@dataclass(frozen=True, slots=True)
class Member:
    """One etcd member: a channel and the stubs on it. The stubs are untyped: their messages are read in `registry`."""

    channel: grpc.aio.Channel
    kv: Any
    lease: Any
    watch: Any


class Members:
    """The members of one cluster. All calls go to one of them until it fails, then to the next."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = tuple(members)
        self._index = 0
        self._closed = False

    def __len__(self) -> int:
        return len(self._members)

    @property
    def current(self) -> Member:
        """The member to call."""
        return self._members[self._index]

    def failure(
        self, member: Member, operation: str, error: grpc.aio.AioRpcError, *, may_have_applied: bool = False
    ) -> RegistryError:
        """Turn what gRPC raised into an error of ours; leave a member that cannot be reached."""
        code = error.code()
        if code not in UNAVAILABLE_CODES:
            return RegistryRefused(operation, code.name)
        self.leave(member)
        return RegistryUnavailable(operation, _reason(error), may_have_applied=may_have_applied)

    def leave(self, member: Member) -> None:
        """Use the next member, unless that was done already."""
        if member is self.current:
            self._index = (self._index + 1) % len(self._members)

    async def once(self, operation: str, pick: Callable[[Member], Any], request: Any, timeout_s: float) -> Any:
        """Send what must not be repeated blindly, to one member. Raises RegistryError."""
        timeout = bounded(timeout_s)
        self.check_open(operation)
        member = self.current
        try:
            return await self._call(operation, pick(member), request, timeout, may_have_applied=True)
        except grpc.aio.AioRpcError as error:
            raise self.failure(member, operation, error, may_have_applied=True) from None

    async def any(self, operation: str, pick: Callable[[Member], Any], request: Any, timeout_s: float) -> Any:
        """Send what may be repeated: each member is tried at most once within the deadline. Raises RegistryError."""
        deadline_s = time.monotonic() + bounded(timeout_s)
        failure: RegistryError = RegistryUnavailable(operation, "no member")
        for left in range(len(self._members), 0, -1):
            member = self.current
            self.check_open(operation)
            timeout = max(0.0, deadline_s - time.monotonic()) / left
            try:
                return await self._call(operation, pick(member), request, timeout)
            except grpc.aio.AioRpcError as error:
                failure = self.failure(member, operation, error)
            if isinstance(failure, RegistryRefused):
                break
        raise failure

    async def _call(
        self, operation: str, method: Any, request: Any, timeout_s: float, *, may_have_applied: bool = False
    ) -> Any:
        try:
            return await method(request, timeout=timeout_s, metadata=REQUIRE_LEADER)
        except asyncio.CancelledError:
            # To close a channel cancels its calls, which gRPC tells as if our own task were cancelled.
            task = asyncio.current_task()
            if not self._closed or task is None or task.cancelling() > 0:
                raise
            raise RegistryUnavailable(operation, CLOSED, may_have_applied=may_have_applied) from None

    def check_open(self, operation: str) -> None:
        """Raise RegistryUnavailable after `close`."""
        if self._closed:
            raise RegistryUnavailable(operation, CLOSED)

    async def close(self) -> None:
        """Close every channel. Raises nothing; may be called again."""
        self._closed = True
        for member in self._members:
            await member.channel.close()


class Stream:
    """A bidirectional call to one member. Whatever goes wrong with it becomes an error of ours."""

    def __init__(self, members: Members, member: Member, operation: str, call: Any) -> None:
        self._members = members
        self._member = member
        self._operation = operation
        self._call = call
        self._reading: asyncio.Task[Any] | None = None

    async def write(self, request: Any, timeout_s: float) -> None:
        """Send one message. Raises RegistryError."""
        try:
            # Not `wait_for`, which in Python 3.11 may drop a cancellation (see bundles.streams).
            async with asyncio.timeout(timeout_s):
                await self._call.write(request)
        except TimeoutError:
            raise self.unanswered() from None
        except grpc.aio.AioRpcError as error:
            raise self._members.failure(self._member, self._operation, error) from None
        except asyncio.InvalidStateError:
            raise self._ended() from None

    async def read(self, timeout_s: float) -> Any | None:
        """Return the next message, or None when there was none in time. Raises RegistryError."""
        # A read goes on over several calls: to cancel it would end the stream.
        if self._reading is None:
            self._reading = asyncio.create_task(self._call.read())
        await asyncio.wait((self._reading,), timeout=timeout_s)
        if not self._reading.done():
            return None
        reading, self._reading = self._reading, None
        # gRPC raises CancelledError for some ends of a call. Let through, it would end our task as if asked to.
        if reading.cancelled():
            raise self._ended()
        error = reading.exception()
        if isinstance(error, grpc.aio.AioRpcError):
            raise self._members.failure(self._member, self._operation, error)
        message = reading.result()
        if message is grpc.aio.EOF:
            raise self._ended()
        return message

    def unanswered(self) -> RegistryUnavailable:
        """Leave a member that does not answer."""
        self._members.leave(self._member)
        return RegistryUnavailable(self._operation, "no answer in time")

    def _ended(self) -> RegistryUnavailable:
        return RegistryUnavailable(self._operation, "the stream was ended")

    async def close(self) -> None:
        """End the call. Raises nothing; may be called again."""
        # The reader first: a call that is cancelled under its reader leaks.
        reading, self._reading = self._reading, None
        call, self._call = self._call, None
        try:
            if reading is not None:
                reading.cancel()
                # Bounded: on a busy machine gRPC was seen to keep a cancelled read until its call was cancelled too.
                await asyncio.wait({reading}, timeout=CLOSE_S)
        finally:
            if call is not None:
                call.cancel()


def _reason(error: grpc.aio.AioRpcError) -> str:
    # gRPC's and etcd's own words on a connection. Other codes may quote the request.
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return f"UNAVAILABLE ({(error.details() or '')[:MAX_DETAIL_CHARS]})"
    return error.code().name


def bounded(timeout_s: float) -> float:
    """Return a deadline in seconds as it is. Raises ValueError when it is not above 0 and at most `MAX_TIMEOUT_S`."""
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise ValueError(f"a timeout is above 0 and at most {MAX_TIMEOUT_S:g} s")
    return timeout_s


def open_channels(settings: RegistrySettings) -> tuple[grpc.aio.Channel, ...]:
    """Return a channel to each endpoint, without waiting for one. To be called in a running loop.

    Raises ValueError when the settings are wrong and OSError when a PEM file cannot be read.
    """
    if not settings.endpoints:
        raise ValueError("a registry needs an endpoint")
    if not settings.prefix.endswith("/"):
        raise ValueError("the prefix of a registry ends with a slash")
    bounded(settings.timeout_s)
    bounded(settings.progress_s)
    credentials = _credentials(settings.tls) if settings.tls is not None else None
    targets = [_target(endpoint, secure=credentials is not None) for endpoint in settings.endpoints]
    if credentials is None:
        return tuple(grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS) for target in targets)
    return tuple(grpc.aio.secure_channel(target, credentials, options=CHANNEL_OPTIONS) for target in targets)


def _target(endpoint: str, *, secure: bool) -> str:
    """Return the gRPC target of an endpoint. Raises ValueError."""
    parts = urlsplit(endpoint)
    if parts.scheme != ("https" if secure else "http"):
        raise ValueError("endpoints are https with RegistryTls, http without")
    if not parts.hostname or parts.port is None or parts.netloc.count("@") or parts.path not in ("", "/"):
        raise ValueError("an endpoint is scheme://host:port")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"dns:///{host}:{parts.port}"


def _credentials(tls: RegistryTls) -> grpc.ChannelCredentials:
    if (tls.cert is None) != (tls.key is None):
        raise ValueError("a client certificate needs its key")
    return grpc.ssl_channel_credentials(
        root_certificates=tls.ca.read_bytes(),
        private_key=tls.key.read_bytes() if tls.key is not None else None,
        certificate_chain=tls.cert.read_bytes() if tls.cert is not None else None,
    )
