"""What an edge says of records that its spool does not take: each reason seldom, none lost from the count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from orchestrator.spool.records import USAGE, FullReason, RecordKind, SpoolFull
from orchestrator.wire.catalogue import ProblemError
from tests.border.edge import Edge


@pytest.mark.parametrize(
    ("reason", "level"), [(FullReason.SPARE_ROOM, "WARNING"), (FullReason.CAPACITY, "ERROR")]
)
async def test_requests_that_a_full_spool_refuses_fill_no_log(
    make_edge: Callable[..., Edge],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    reason: FullReason,
    level: str,
) -> None:
    edge = make_edge()

    async def full(kind: RecordKind, *_: Any, **__: Any) -> None:
        raise SpoolFull(kind, reason)

    monkeypatch.setattr(edge.spool, "append_async", full)
    for _ in range(20):
        with pytest.raises(ProblemError):
            await edge.gate.ask(edge.asked("acme-sg"))
    (line,) = [one for one in caplog.records if one.msg == "spool_failed"]
    assert line.levelname == level
    assert cast(Any, line).tidegate_fields["reason"] == reason.value
    assert f'tidegate_spool_refusals_total{{reason="{reason.value}"}} 20.0' in edge.metrics.render().decode()


async def test_each_usage_record_that_is_lost_is_told(
    make_edge: Callable[..., Edge], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    edge = make_edge()
    append = edge.spool.append_async

    async def full(kind: RecordKind, *given: Any, **named: Any) -> Any:
        if kind == USAGE:
            raise SpoolFull(kind, FullReason.CAPACITY)
        return await append(kind, *given, **named)

    monkeypatch.setattr(edge.spool, "append_async", full)
    for _ in range(3):
        await edge.text(edge.asked("acme-sg"))
    lines = [one for one in caplog.records if one.msg == "spool_failed"]
    assert len({cast(Any, one).tidegate_fields["record_id"] for one in lines}) == len(lines) == 3
