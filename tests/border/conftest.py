"""Edges whose spools are closed when a test is over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest_asyncio

from tests.border.edge import ALL, Edge
from tests.border.example import Plan


@pytest_asyncio.fixture
async def make_edge(tmp_path: Path) -> AsyncIterator[Callable[..., Edge]]:
    made: list[Edge] = []

    def make(name: str = "edge-singapore", **plans: Plan) -> Edge:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        chosen = {**ALL, **{pool.replace("_", "-"): plan for pool, plan in plans.items()}}
        made.append(Edge(folder, name, chosen))
        return made[-1]

    yield make
    for edge in made:
        await edge.spool.close_async()
