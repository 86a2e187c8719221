"""Ports of the loopback for programs that are told their port before they start."""

from __future__ import annotations

import socket
import weakref

LOOPBACK = "127.0.0.1"


class KeptPorts:
    """Free ports that nobody else gets for as long as this object lives: they stay bound here, and nobody listens.

    A program that sets SO_REUSEADDR before it binds, as servers do, can listen there all the same, as often as it is
    started anew. Until it does, a connection is refused.
    """

    def __init__(self, count: int) -> None:
        """Take `count` ports. Raises OSError when the system has none left."""
        kept = [socket.socket() for _ in range(count)]
        weakref.finalize(self, _close, kept)
        for one in kept:
            one.bind((LOOPBACK, 0))
            # Only now: with it set before, the system could choose a port that another keeps in this way.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.numbers = tuple(int(one.getsockname()[1]) for one in kept)


def _close(kept: list[socket.socket]) -> None:
    for one in kept:
        one.close()
