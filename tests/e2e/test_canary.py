"""A regulated prompt leaves no trace across the border, as text, compressed or as token ids; the same words as general
data show that we would see it.
"""

from __future__ import annotations

import aiohttp
import pytest
from tokenizers import Tokenizer

from orchestrator.cli.samples import ask
from tests.e2e.canary import canary_of, model_tokenizer
from tests.e2e.conftest import Standing

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]

REGULATED = "Zylophonquartz-7731-stays-at-home-here"
GENERAL = "Brimstonewaltz-4482-crosses-over-there"
LABELS = 'personal=sensitive, grade=general, origin="DE"'


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The tokenizer of the demo model."""
    return model_tokenizer()


async def test_a_regulated_canary_stays_and_a_general_one_is_seen_crossing(
    standing: Standing, tokenizer: Tokenizer
) -> None:
    regulated, general = canary_of(REGULATED, tokenizer), canary_of(GENERAL, tokenizer)
    silent: list[str] = []
    frankfurt, singapore = standing.up.caller("frankfurt"), standing.up.caller("singapore")
    stayed = await ask(frankfurt, silent.append, f"Repeat: {REGULATED}", LABELS, max_tokens=12)
    crossed = await ask(singapore, silent.append, f"Repeat: {GENERAL}", max_tokens=12)
    assert (stayed.status, stayed.pool) == (200, "eu-frankfurt")
    assert (crossed.status, crossed.pool) == (200, "cn-guizhou")
    house = standing.house.folder

    assert general.hits(standing.capture), "the scanner must find what did cross"
    assert regulated.hits(standing.capture) == []
    # Logs, records, bundles, Ray's and etcd's files of both sides: payloads are in none of them.
    assert regulated.hits(house) == []
    assert [path for path in general.hits(house) if not path.startswith("border/")] == []

    for caller in (frankfurt, singapore):
        url = f"{caller.url.removesuffix('/v1')}/metrics"
        async with aiohttp.ClientSession() as session, session.get(url) as reply:
            metrics = await reply.read()
        assert b"tidegate_placements_total" in metrics
        assert not any(canary.within(metrics) for canary in (regulated, general))


async def test_api_keys_are_in_no_log_and_cross_no_border(standing: Standing) -> None:
    silent: list[str] = []
    for town in ("singapore", "frankfurt"):
        caller = standing.up.caller(town)
        await ask(caller, silent.append, "Hello", max_tokens=4)
        secret = caller.key.split("_", 2)[2]
        where = [path for path in canary_of(secret, None).hits(standing.house.folder) if not path.startswith("keys/")]
        assert where == []
