"""Where the processes of one edge listen for each other: a socket in a folder that is their user's alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from node_agent.front.app import Front
from node_agent.front.connection import Connection
from node_agent.front.serve import BACKLOG, FrontServer


class LocalServer(FrontServer):
    """Serves what other processes hand over, like what tenants send: the key is checked again, every limit holds."""

    def __init__(self, front: Front, path: Path) -> None:
        super().__init__(front, "", 0)
        self.app = front.handed_over
        self._path = path

    async def stop(self, deadline_s: float) -> None:
        """As `FrontServer.stop`; the socket's name is gone afterwards."""
        try:
            await super().stop(deadline_s)
        finally:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()

    async def _listen(self, loop: asyncio.AbstractEventLoop) -> asyncio.Server:
        # What a killed process left is in the way.
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        server = await loop.create_unix_server(lambda: Connection(self, loop), str(self._path), backlog=BACKLOG)
        os.chmod(self._path, 0o600)
        return server
