"""The stand of the hostile tests, started once for all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.hostile.besieged import Besieged


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def besieged(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Besieged]:
    """The stand, up and whole."""
    made = Besieged(tmp_path_factory.mktemp("hostile"))
    try:
        await made.start()
        yield made
    finally:
        await made.stand.stop()
