"""Room on the disk for what closes something: a file of real blocks, given up when the disk is full.

The capacity of a spool keeps a reserve for usage records, but another program may fill the disk below it. Then the
requests that were admitted before could not be billed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

BALLAST_BYTES_MAX: Final = 1024 * 1024
"""Usage records of about a thousand requests: as many as an edge serves at once."""
_NAME: Final = "BALLAST"


class Ballast:
    """The file. Used under the lock of its spool."""

    __slots__ = ("_path", "_size_bytes", "held")

    def __init__(self, folder: Path, size_bytes: int) -> None:
        """Nothing is taken yet. With a size of 0 there is never anything to take or to give."""
        self._path = folder / _NAME
        self._size_bytes = size_bytes
        self.held = size_bytes == 0
        """Whether the room is there."""

    def take(self) -> bool:
        """Take the room where it is not held, and say whether it is."""
        if not self.held:
            try:
                descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    os.posix_fallocate(descriptor, 0, self._size_bytes)
                finally:
                    os.close(descriptor)
                self.held = True
            except OSError:
                self._path.unlink(missing_ok=True)  # a part of it helps nobody
        return self.held

    def give_up(self) -> bool:
        """Give the room back to the disk, and say whether there was any."""
        if not self.held or self._size_bytes == 0:
            return False
        self._path.unlink(missing_ok=True)
        self.held = False
        return True
