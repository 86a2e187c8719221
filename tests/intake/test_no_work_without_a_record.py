"""The decision on an attempt is kept before anything is done for it, whenever it shows that it cannot be."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from orchestrator.spool.records import (
    DECISION,
    USAGE,
    FullReason,
    Position,
    Rank,
    RecordId,
    RecordKind,
    SpoolBroken,
    SpoolFull,
)
from orchestrator.wire.frames import Done, Refused
from tests.intake.site_stand import POOL, ScriptedReplica, standing
from tests.intake.test_bad_days_of_a_site import answer, ask, refused, until, work_of


@pytest.mark.parametrize(
    ("failure", "code"),
    [(SpoolBroken("the disk is gone"), "evidence_unavailable"), (RuntimeError("words of a library"), "internal_error")],
    ids=["the disk", "a fault"],
)
async def test_nothing_runs_whose_record_fails_after_it_was_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, code: str
) -> None:
    taken: asyncio.Future[Position] = asyncio.get_running_loop().create_future()
    async with standing(tmp_path) as stand:
        replica = ScriptedReplica(stand.replica_port)
        await replica.start()
        await stand.live(1)
        with monkeypatch.context() as failing:
            failing.setattr(stand.spool, "append_async", lambda *_, **__: taken)
            asked = ask(stand)
            await until(lambda: stand.site._permitting)
        assert not asked.task.done()
        assert replica.got.empty(), "it is not known yet whether the record is kept"
        taken.set_exception(failure)
        frame = await asked.last()
        assert isinstance(frame, Refused)
        assert frame.code == code
        assert "library" not in frame.detail
        assert replica.got.empty()
        await until(lambda: stand.site.busy() == 0)
        assert not stand.site._permitting
        assert stand.site._pools[POOL].grants.arriving == 0
        await replica.close()


async def test_on_a_full_disk_there_is_room_for_what_closes_and_none_for_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[RecordKind, Rank]] = []
    async with standing(tmp_path) as stand:
        replica = ScriptedReplica(stand.replica_port)
        await replica.start()
        await stand.live(1)
        append = stand.spool.append_async

        def noted(
            kind: RecordKind, record_id: RecordId, data: bytes, *, rank: Rank, **more: Any
        ) -> asyncio.Future[Position]:
            kept.append((kind, rank))
            return append(kind, record_id, data, rank=rank, **more)

        monkeypatch.setattr(stand.spool, "append_async", noted)
        asked = ask(stand)
        await answer(replica, await work_of(replica), "a")
        assert isinstance(await asked.last(), Done)
        await until(lambda: stand.site.busy() == 0)
        assert kept == [(DECISION, Rank.NEW), (USAGE, Rank.CLOSES)]
        kept.clear()
        await refused(stand, stand.sendable(signature=bytes(64)))
        await until(lambda: stand.site.busy() == 0)
        assert kept[0] == (DECISION, Rank.SPARE)
        assert all(rank is Rank.CLOSES for _, rank in kept[1:])
        await replica.close()


async def test_attempts_that_a_full_spool_refuses_fill_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(kind: RecordKind, *_: Any, **__: Any) -> asyncio.Future[Position]:
        if kind == USAGE:
            return asyncio.get_running_loop().create_future()
        raise SpoolFull(kind, FullReason.CAPACITY)

    async with standing(tmp_path) as stand:
        replica = ScriptedReplica(stand.replica_port)
        await replica.start()
        await stand.live(1)
        monkeypatch.setattr(stand.spool, "append_async", full)
        with monkeypatch.context() as still:
            still.setattr(stand.site._keeping, "_hands", replace(stand.site._keeping._hands, now_us=lambda: 7))
            for _ in range(5):
                frame = await ask(stand).last()
                assert isinstance(frame, Refused)
                assert frame.code == "evidence_unavailable"
        (line,) = [one for one in caplog.records if one.msg == "spool_failed"]
        assert cast(Any, line).tidegate_fields["reason"] == "capacity"
        await until(lambda: stand.site.busy() == 0)
        await replica.close()
