"""The benchmarks measure what they say: real programs on real paths, and answers that can be compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from benchmarks.agent import start_times
from benchmarks.client import AnswerError, Client
from benchmarks.overhead import DIRECT, DURABLE, Case, measure, raw, rendered, summary, target_of
from benchmarks.path.rounds import LOADS, right_bytes
from benchmarks.path.systems import PERSONAL, of_stand
from benchmarks.stand import EDGE_ONLY, INSTANT, TWO_HOP, Stand
from orchestrator.cli.evidence import records
from tests.values import replace

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

CASE = Case(INSTANT, 2, 2, 1, (DIRECT, EDGE_ONLY, TWO_HOP, DURABLE))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stand(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stand]:
    """A stand without the engine that has a model, up and whole."""
    made = Stand(tmp_path_factory.mktemp("stand"), None)
    try:
        await made.start()
        yield made
    finally:
        await made.stop()


async def test_every_path_answers_alike_and_takes_the_way_it_is_named_for(stand: Stand) -> None:
    times = await measure(stand, CASE, lambda _: None)
    assert {one.path: {timed.tokens for timed in one.all} for one in times} == {path: {100} for path in CASE.paths}
    assert all(0 < timed.first_ns <= timed.last_ns <= timed.done_ns for one in times for timed in one.all)
    assert {path: len(rounds) for path, rounds in raw(times).items()} == dict.fromkeys(CASE.paths, CASE.rounds)
    assert DURABLE in rendered(CASE, summary(times))

    # A block of warming up, then the rounds; the direct path leaves no record.
    asked = CASE.concurrency * (3 + CASE.rounds * CASE.per_client)
    edge = Counter((one["pool"], one["regulated"]) for one in records(stand.data("edge") / "spool", "decision"))
    assert edge == {("sg-instant", False): asked, ("sg-instant", True): asked, ("cn-instant", False): asked}
    site = Counter(one["outcome"] for one in records(stand.data("scheduler") / "spool", "decision"))
    assert site == {"permitted": asked}


async def test_personal_data_goes_to_china_under_its_contract_and_is_recorded_as_regulated(stand: Stand) -> None:
    personal = next(one for one in of_stand(stand) if one.name == PERSONAL)
    before = _regulated(stand)
    for load in LOADS:
        await right_bytes(personal, load)
    assert _regulated(stand) == before + len(LOADS)


def _regulated(stand: Stand) -> int:
    sent = [one for one in records(stand.data("edge") / "spool", "decision") if one["pool"] == "cn-instant"]
    return sum(bool(one["regulated"]) for one in sent)


async def test_a_refusal_is_an_error_and_no_sample(stand: Stand) -> None:
    target = target_of(stand, stand.engines[0], TWO_HOP)
    stranger = target.request.replace(stand.api_key.encode(), b"tg_nobody00_" + b"A" * 43)
    async with Client(replace(target, request=stranger)) as client:
        with pytest.raises(AnswerError, match="HTTP 401"):
            await client.ask()


async def test_the_edge_starts_from_its_disk_when_everything_else_is_stopped(tmp_path: Path) -> None:
    alone = Stand(tmp_path, None)
    try:
        await alone.start(serving=False)
        await alone.stop()
        starts = await start_times(alone, 1)
    finally:
        await alone.stop()
    assert len(starts.agent_s) == len(starts.floor_s) == 1
    assert starts.agent_s[0] > starts.floor_s[0]
    assert starts.memory["rss_mb"] > 0
