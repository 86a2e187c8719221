"""The metrics of all processes of an edge as one page: whichever process a scraper meets, it is told of each.

Counters of one process alone would jump from scrape to scrape, as each meets another process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from node_agent.front.endpoints import METRICS
from node_agent.front.framing import HEAD_END
from orchestrator.telemetry.names import PROCESS

ANSWER_S = 1.0
"""How long a process may take. One that does not answer is left out of the page."""
PAGE_BYTES_MAX = 8 << 20

_ASKED = f"GET {METRICS} HTTP/1.1\r\nhost: edge\r\nconnection: close\r\n\r\n".encode()
_HELP = b"# HELP "


def merged(pages: Iterable[tuple[int, bytes]]) -> bytes:
    """Return the series of all pages, each with the label of its process, the families in their order. Pure."""
    families: dict[bytes, list[bytes]] = {}
    for index, page in pages:
        label = b'%b="%d"' % (PROCESS.name.encode(), index)
        family: list[bytes] = []
        for line in page.splitlines():
            if line.startswith(_HELP):
                family = families.setdefault(line, [])
            elif line.startswith(b"#"):
                if line not in family:
                    family.append(line)
            elif line:
                family.append(_labelled(line, label))
    return b"".join(line + b"\n" for help_, family in families.items() for line in (help_, *family))


def _labelled(line: bytes, label: bytes) -> bytes:
    name, space, value = line.partition(b" ")
    if b"{" in name:
        # A label's value may hold a space, the name of a metric no brace.
        name, _, rest = line.partition(b"{")
        return b"%b{%b,%b" % (name, label, rest)
    return b"%b{%b}%b%b" % (name, label, space, value)


async def page_of(path: Path) -> bytes | None:
    """Return the metrics of the process that listens at `path`, or None where it does not tell them in time."""
    try:
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await asyncio.open_unix_connection(str(path), limit=PAGE_BYTES_MAX)
            try:
                writer.write(_ASKED)
                head = await reader.readuntil(HEAD_END)
                page = await reader.read(-1)
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return None
    return page if head.startswith(b"HTTP/1.1 200 ") else None
