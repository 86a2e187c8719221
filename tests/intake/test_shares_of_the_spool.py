"""A tenant at one edge that sends much to a site leaves the others room for their records there."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.spool.records import DECISION, USAGE, RecordId, SpoolFull
from orchestrator.wire.frames import Done, Refused
from scheduler.intake.keeping import flow_in
from tests.intake.site_stand import EDGE, ScriptedReplica, standing
from tests.intake.test_bad_days_of_a_site import answer, ask, refused, until, work_of


async def test_what_one_has_too_much_of_is_refused_and_what_it_has_is_kept(tmp_path: Path) -> None:
    async with standing(tmp_path) as stand:
        replica = ScriptedReplica(stand.replica_port)
        await replica.start()
        await stand.live(1)
        asked = ask(stand)
        await answer(replica, await work_of(replica), "a")
        assert isinstance(await asked.last(), Done)
        await until(lambda: stand.site.busy() == 0)
        await refused(stand, stand.sendable(signature=bytes(64)))
        await until(lambda: stand.site.busy() == 0)
        entries = list(stand.spool.read_from())
        flow = f"{EDGE}\x00{stand.sendable().facts.tenant.id}"
        assert [(entry.kind, flow_in(entry.kind, entry.data)) for entry in entries] == [
            (DECISION, flow),
            (USAGE, None),
            (DECISION, None),
            (USAGE, None),
        ]
        # The rest of what it may have.
        (holder,) = stand.spool._holders._held
        assert holder == flow
        with pytest.raises(SpoolFull, match="share"):
            for number in range(1_000):
                stand.spool.append(DECISION, RecordId(f"r{number}"), bytes(20_000), durable=False, holder=holder)
        frame = await ask(stand).last()
        assert isinstance(frame, Refused)
        assert (frame.code, frame.retry_after_ms) == ("evidence_share", 30_000)
        assert stand.spool.free_bytes > (4 << 20) * 9 // 20
        await replica.close()


@pytest.mark.parametrize("data", [b"", b"{}", b'{"edge":"e","facts":{},"outcome":"permitted"}', b"\xff"])
def test_a_record_that_names_no_flow_is_nobodys(data: bytes) -> None:
    assert flow_in(DECISION, data) is None
