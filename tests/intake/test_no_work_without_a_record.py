"""The decision on an attempt is kept before anything is done for it, whenever it shows that it cannot be."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from orchestrator.spool.records import Position, SpoolBroken
from orchestrator.wire.frames import Refused
from tests.intake.site_stand import POOL, ScriptedReplica, standing
from tests.intake.test_bad_days_of_a_site import ask, until


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
