"""The one function that makes a channel, the one that makes a server, and the one that binds it.

Every connection between our programs is made here, so that identity (mTLS) has one place to go, and so that keep-alive
on both ends is read side by side: a server must accept pings more often than a client sends them.
"""

from __future__ import annotations

from typing import Any

import grpc

from orchestrator.wire.frames import MESSAGE_BYTES_MAX

CLIENT_PING_MS = 20_000
CLIENT_PING_TIMEOUT_MS = 10_000
SERVER_PING_FLOOR_MS = 10_000
"""Pings closer together than this are answered with GOAWAY; kept below `CLIENT_PING_MS`."""
RECONNECT_MIN_MS = 100
RECONNECT_MAX_MS = 1_000
CONNECT_MS = 5_000
"""How long one attempt to connect may take, over a border several round trips wide: gRPC's minimal backoff."""
STREAMS_MAX = 1_000
METADATA_BYTES_MAX = 16 * 1024

_COMMON: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)


def open_channel(target: str) -> grpc.aio.Channel:
    """Return a channel to `target` (``host:port``). It connects when first used and must be closed."""
    options = [
        *_COMMON,
        ("grpc.keepalive_time_ms", CLIENT_PING_MS),
        ("grpc.keepalive_timeout_ms", CLIENT_PING_TIMEOUT_MS),
        ("grpc.initial_reconnect_backoff_ms", RECONNECT_MIN_MS),
        ("grpc.min_reconnect_backoff_ms", CONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_MAX_MS),
        ("grpc.enable_retries", 0),  # a retry is a second send, and only the gate may send
        ("grpc.use_local_subchannel_pool", 1),
    ]
    return grpc.aio.insecure_channel(target, options=options)


def make_server(*, shared: bool = False) -> grpc.aio.Server:
    """Return a server without a socket. Add servicers, `bind` it, then start it.

    With `shared` other processes may listen at its address too, and the system spreads connections over them.
    """
    options = [
        *_COMMON,
        ("grpc.http2.min_recv_ping_interval_without_data_ms", SERVER_PING_FLOOR_MS),
        ("grpc.max_concurrent_streams", STREAMS_MAX),
        ("grpc.so_reuseport", int(shared)),
    ]
    return grpc.aio.server(options=options)


def bind(server: grpc.aio.Server, address: str) -> int:
    """Bind `server` to ``host:port`` and return the port (useful with port 0). Raises OSError when it cannot."""
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: is another program using it?") from error
    if port == 0:
        raise OSError(f"cannot listen on {address}: is another program using it?")
    return port
