"""The five requests of `tidegate up`, on the real house."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Standing

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]


async def test_the_five_samples_go_as_they_must(standing: Standing) -> None:
    await standing.up.samples()
    text = "\n".join(standing.said)
    assert "EU-46" in text, "the refusal must name the rule"
    assert "J = " in text, "the choice must show its cost terms"
