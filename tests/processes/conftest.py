"""Every test here ends with none of its processes left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil
import pytest

from tests.processes.marks import Marked


@pytest.fixture
def marked() -> Iterator[Marked]:
    mine = Marked()
    yield mine
    left = mine.processes()
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    assert not left, "the test left processes behind"
