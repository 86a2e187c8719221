"""The short set of scenarios: the real programs on one stand, with six faults one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.__main__ import run_all
from tests.chaos.report import table
from tests.chaos.scenarios import SHORT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(290)]


async def test_nothing_is_lost_doubled_or_misplaced_when_programs_and_links_fail(tmp_path: Path) -> None:
    results = await run_all(SHORT, tmp_path)

    print(table(results))
    assert [result.name for result in results if not result.passed] == []
    assert len(results) == len(SHORT)
    assert all(result.answered for result in results)
