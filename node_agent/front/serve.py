"""The HTTP server: granian inside the program's own loop, round an ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from node_agent.front.app import Front
from orchestrator.telemetry.logs import logger
from orchestrator.telemetry.names import Event

BACKLOG = 1_024
CONNECTIONS_MAX = 4_096
"""Connections that are held at once, idle ones among them; one more waits until another ends."""
IDLE_TIMEOUT_MS = 15_000
"""How long headers may take, and how long a connection may stay without a request."""
HEADER_BYTES_MAX = 32 * 1024
START_TIMEOUT_S = 10.0
START_POLL_S = 0.005
CUT_TIMEOUT_S = 2.0
"""How long the answers that were cut at the deadline have for their last event."""

# Without this the library would close every log handler of the process when a server is made.
_NO_LOGGING: dict[str, Any] = {"incremental": True, "formatters": {}, "handlers": {}, "loggers": {}}

log = logger("node_agent.front")


class FrontServer:
    """Listens, and stops in an orderly way. It installs no signal handlers."""

    def __init__(
        self,
        app: Front,
        host: str,
        port: int,
        *,
        idle_timeout_ms: int = IDLE_TIMEOUT_MS,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        """`host` is an address. Port 0 lets the system choose; `on_lost` is told when the server ended by itself."""
        self._app = app
        self._host = host
        self._idle_timeout_ms = idle_timeout_ms
        self._on_lost = on_lost
        self._server: Any = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self.port = port
        """Where it listens; with port 0 only after `start`."""

    async def start(self) -> None:
        """Listen. Returns when the port answers. Raises OSError when it cannot be had."""
        with _reserved(self._host, self.port) as reserved:
            self.port = reserved.getsockname()[1]
            self._server = Server(
                self._app,
                address=self._host,
                port=self.port,
                # Not its RSGI, which takes an answer of any size for a client that reads nothing of it.
                interface=Interfaces.ASGINL,
                # In the automatic mode a connection that says nothing is never dropped.
                http=HTTPModes.http1,
                http1_settings=HTTP1Settings(
                    header_read_timeout=self._idle_timeout_ms, max_buffer_size=HEADER_BYTES_MAX
                ),
                websockets=False,
                backlog=BACKLOG,
                backpressure=CONNECTIONS_MAX,
                log_enabled=False,
                log_dictconfig=_NO_LOGGING,
            )
            self._task = asyncio.create_task(self._server.serve())
            self._task.add_done_callback(self._ended)
            try:
                await self._answering(self._task)
            except BaseException:
                await self._leave()
                raise

    async def stop(self, deadline_s: float) -> None:
        """Take no new connections, let running answers end until the deadline, cut the rest, and return.

        The requests of connections that are open are refused as `draining` from now on.
        """
        if self._task is None:
            return
        self._stopping = True
        self._app.drain()
        self._server.stop()
        await asyncio.wait([self._task], timeout=deadline_s)
        if not self._task.done():
            self._app.cut()
            await asyncio.wait([self._task], timeout=CUT_TIMEOUT_S)
        await self._leave()

    async def _answering(self, task: asyncio.Task[None]) -> None:
        """Return when the port answers. Raises what the server raised, or OSError."""
        end_s = asyncio.get_running_loop().time() + START_TIMEOUT_S
        while asyncio.get_running_loop().time() < end_s and not task.done():
            with contextlib.suppress(OSError):
                async with asyncio.timeout(START_TIMEOUT_S):
                    _, writer = await asyncio.open_connection(self._host, self.port)
                writer.close()
                await writer.wait_closed()
                return
            await asyncio.sleep(START_POLL_S)
        if task.done():
            task.result()
        raise OSError(f"nothing answers on port {self.port}")

    async def _leave(self) -> None:
        """Make sure that the server's task is over."""
        task, self._task = self._task, None
        self._stopping = True
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._stopping:
            return
        failure = None if task.cancelled() else task.exception()
        log.error(Event.TASK_FAILED, detail="the HTTP server ended", exception=type(failure).__name__)
        self._on_lost()


def _reserved(host: str, port: int) -> socket.socket:
    """Return a socket that holds the port. Raises OSError when somebody has it.

    The server shares its port with whoever asks (SO_REUSEPORT), so a second edge by mistake would take half of the
    requests without a word. A socket that does not share is refused; one that shares then holds the port for us.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as alone:
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        alone.bind((host, port))
        port = alone.getsockname()[1]
    shared = socket.socket(family, socket.SOCK_STREAM)
    try:
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shared.bind((host, port))
    except OSError:
        shared.close()
        raise
    return shared
