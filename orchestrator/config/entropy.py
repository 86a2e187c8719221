"""Random bytes for ids and seeds, drawn from the kernel many at a time: a system call costs more than an id.

Not for keys: what is drawn lies in memory until it is taken.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

BLOCK_BYTES: Final = 1024


class Entropy:
    """The random bytes of one process, each given once. It must not outlive a fork: both would give the same."""

    __slots__ = ("_block", "_draw", "_taken")

    def __init__(self, draw: Callable[[int], bytes] = os.urandom) -> None:
        self._draw = draw
        self._block = b""
        self._taken = BLOCK_BYTES

    def take(self, size_bytes: int) -> bytes:
        """Return so many random bytes. Raises ValueError for more than a block holds."""
        begin = self._taken
        end = begin + size_bytes
        if end > BLOCK_BYTES:
            if size_bytes > BLOCK_BYTES:
                raise ValueError(f"expected at most {BLOCK_BYTES} bytes at once")
            self._block = self._draw(BLOCK_BYTES)
            begin, end = 0, size_bytes
        self._taken = end
        return self._block[begin:end]
