"""At the end: what both sides recorded is what was answered, and nothing of a prompt or a key stands in any log.

The last of this folder by its name; alone, it judges the few requests that it sends itself.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict

import pytest

from orchestrator.cli.evidence import records
from tests.chaos.complaints import complaint
from tests.chaos.evidence import Findings, Json, Seen, billed, decided
from tests.hostile import engine
from tests.hostile.besieged import PROGRAMS, Besieged
from tests.hostile.client import CANARY, Answer, body, request

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

CLOSED_S = 10.0


def seen(besieged: Besieged) -> Seen:
    """Return everything that both sides recorded."""
    edge, site = (besieged.stand.data(name) / "spool" for name in PROGRAMS)
    return Seen(
        [one for one in records(edge, "decision") if one["outcome"] == "sent"],
        list(records(edge, "usage")),
        [one for one in records(site, "decision") if one["outcome"] == "permitted"],
        list(records(site, "usage")),
        [],
    )


def wrong(answer: Answer, sends: int, usages: list[Json]) -> str | None:
    """Return what an answer and its records say differently, None where they agree."""
    complete = sum(one["outcome"] == "complete" for one in usages)
    delivered = sum(one["counts"]["edge"]["delivered"] for one in usages if "edge" in one["counts"])
    generated = answer.tokens is not None and answer.status == 200
    if answer.headers.get("idempotent-replayed") == "true":
        return None if sends == 0 else "a kept result was sent once more"
    if generated and answer.whole and (sends, complete, delivered) != (1, 1, answer.tokens):
        return f"{answer.tokens} tokens in a whole answer of {sends} sends, {complete} complete, {delivered} delivered"
    if not answer.whole and complete:
        return "complete, and was told an error"
    if generated and delivered != answer.tokens:
        return f"{answer.tokens} tokens told and {delivered} billed"
    if answer.status in (401, 404, 405, 408, 413, 415, 422, 431) and sends:
        return "sent and refused"
    return None


async def test_what_was_recorded_is_what_was_answered(besieged: Besieged) -> None:
    async with besieged.siege():
        for mode in ("ok", "error_event", "status_500", "usage_none"):
            for path in ("edge-only", "two-hop"):
                asked = body(besieged.model(0, path), f"MODE={mode}")
                assert (await besieged.door.ask(request(besieged.key, asked))).status
                await besieged.answers_well(besieged.model(0, path))
    found, all_seen = Findings(), await _closed(besieged)
    decided(all_seen, found)
    billed(all_seen, found, [])
    assert (found.sentences, found.lost) == ([], 0)
    sends = Counter(one["request"] for one in all_seen.decisions)
    usages: dict[str, list[Json]] = defaultdict(list)
    for one in all_seen.usages:
        usages[one["request"]].append(one)
    told = {answer.headers["x-request-id"]: answer for answer in besieged.door.answers}
    differ = {name: wrong(answer, sends[name], usages[name]) for name, answer in told.items()}
    assert {name: said for name, said in differ.items() if said is not None} == {}
    assert Counter(one["attempt"] for one in all_seen.pool_usages) == Counter(
        one["attempt"] for one in all_seen.permits
    )


async def _closed(besieged: Besieged) -> Seen:
    """Return all records once every attempt has its end, or else after CLOSED_S."""
    end_at = asyncio.get_running_loop().time() + CLOSED_S
    while True:
        found = seen(besieged)
        edge = {one["attempt"] for one in found.decisions} - {one["attempt"] for one in found.usages}
        site = {one["attempt"] for one in found.permits} - {one["attempt"] for one in found.pool_usages}
        if not (edge or site) or asyncio.get_running_loop().time() > end_at:
            return found
        await asyncio.sleep(0.5)


async def test_logs_hold_nothing_of_prompts_answers_or_keys_and_no_failed_task(besieged: Besieged) -> None:
    words = [CANARY, engine.POISON, besieged.key, besieged.good]
    words += [key.rpartition("_")[2] for key in words[2:]]
    for name in PROGRAMS:
        log = besieged.stand.supervisor.log_path(name).read_text(encoding="utf-8", errors="replace")
        assert [word for word in words if word in log] == []
        assert [said for line in log.splitlines() if (said := complaint(line)) is not None] == []
