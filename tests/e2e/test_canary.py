"""A regulated prompt leaves no trace across the border; the same words as general data show that we would see."""

from __future__ import annotations

import base64
from pathlib import Path

import aiohttp
import pytest

from orchestrator.cli.samples import ask
from tests.e2e.conftest import Standing

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]

REGULATED = "Zylophonquartz-7731-regulated"
GENERAL = "Zylophonquartz-7731-general"
LABELS = 'personal=sensitive, grade=general, origin="DE"'


def spellings(canary: str) -> list[bytes]:
    """The canary as text, UTF-16, and base64 at each of the three alignments."""
    found = [canary.encode(), canary.encode("utf-16-le"), canary.encode("utf-16-be")]
    for lead in range(3):
        coded = base64.b64encode(b"\0" * lead + canary.encode())
        # Leave out what the neighbours of the canary would change.
        found.append(coded[(lead * 8 + 5) // 6 : len(coded) - 4])
    return found


def hits(folder: Path, canary: str) -> list[str]:
    """Every file below `folder` that holds the canary in any spelling."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            if any(spelling in data for spelling in spellings(canary)):
                found.append(str(path.relative_to(folder)))
    return found


async def test_a_regulated_canary_stays_and_a_general_one_is_seen_crossing(standing: Standing) -> None:
    silent: list[str] = []
    frankfurt, singapore = standing.up.caller("frankfurt"), standing.up.caller("singapore")
    stayed = await ask(frankfurt, silent.append, f"Repeat: {REGULATED}", LABELS, max_tokens=12)
    crossed = await ask(singapore, silent.append, f"Repeat: {GENERAL}", max_tokens=12)
    assert (stayed.status, stayed.pool) == (200, "eu-frankfurt")
    assert (crossed.status, crossed.pool) == (200, "cn-guizhou")
    house = standing.house.folder

    assert hits(standing.capture, GENERAL), "the scanner must find what did cross"
    assert hits(standing.capture, REGULATED) == []
    # Logs, records, bundles, Ray's and etcd's files of both sides: payloads are in none of them.
    assert hits(house, REGULATED) == []
    assert [path for path in hits(house, GENERAL) if not path.startswith("border/")] == []

    for caller in (frankfurt, singapore):
        url = f"{caller.url.removesuffix('/v1')}/metrics"
        async with aiohttp.ClientSession() as session, session.get(url) as reply:
            metrics = await reply.read()
        assert b"tidegate_placements_total" in metrics
        for canary in (REGULATED, GENERAL):
            assert not any(spelling in metrics for spelling in spellings(canary))


async def test_api_keys_are_in_no_log_and_cross_no_border(standing: Standing) -> None:
    silent: list[str] = []
    for town in ("singapore", "frankfurt"):
        caller = standing.up.caller(town)
        await ask(caller, silent.append, "Hello", max_tokens=4)
        secret = caller.key.split("_", 2)[2]
        where = [path for path in hits(standing.house.folder, secret) if not path.startswith("keys/")]
        assert where == []
