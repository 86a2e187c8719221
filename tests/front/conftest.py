"""The loop of production: the HTTP server and the front share it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

# The library under the first loop opens a pipe for signals and keeps it for the life of the process.
uvloop.new_event_loop().close()


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run these tests in a uvloop, as an edge runs."""
    return {"uvloop": uvloop.new_event_loop}
