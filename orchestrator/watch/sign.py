"""By what the watch sees that a process listens, where that opens no local socket for anything else."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


@asynccontextmanager
async def shown(path: Path | None) -> AsyncIterator[None]:
    """Have a socket at `path` while the block runs, which says nothing; none for None. Raises OSError."""
    if path is None:
        yield
        return
    _take_away(path)  # what a killed process left is in the way
    server = await asyncio.start_unix_server(_say_nothing, str(path))
    try:
        os.chmod(path, 0o600)
        yield
    finally:
        server.close()
        _take_away(path)


def _take_away(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


async def _say_nothing(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()
