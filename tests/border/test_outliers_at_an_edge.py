"""An edge says in its log which pool became an outlier, when it is tried, and when it is back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from node_agent.border.gate import Gate
from node_agent.uplink.sending import Sendable
from orchestrator.ledger.usage import PoolCounts
from orchestrator.placement.outliers import HOLD_MIN_US
from orchestrator.policy.ids import PoolId
from orchestrator.wire.frames import Done, StreamFrame, Tokens
from tests.border.edge import SECRET_WORDS, Edge
from tests.border.example import Plan
from tests.bundles.sides import NOW_MS
from tests.values import replace

GUIZHOU, SHANGHAI = PoolId("cn-guizhou"), PoolId("cn-shanghai")
EVENTS = {"pool_ejected", "pool_tried", "pool_back"}


class Slowed:
    """An edge whose two pools take turns, with a clock that moves by what they take."""

    def __init__(self, edge: Edge) -> None:
        self.edge = edge
        self.now_us = NOW_MS * 1000
        self.token_us = {GUIZHOU: 20_000, SHANGHAI: 20_000}
        edge.gate = Gate(edge.name, replace(edge.gate._hands, now_ns=lambda: self.now_us * 1000))
        for pool in self.token_us:
            edge.routes.plans[pool] = self._plan(pool)

    async def ask(self, pool: PoolId) -> str:
        """Have a request answered while all but one pool are drained."""
        assert self.edge.current is not None
        assert self.edge.current.settings is not None
        drains = frozenset(one.id for one in self.edge.current.fleet.pools if one.id != pool)
        settings = replace(self.edge.current.settings, drains=drains)
        self.edge.current = replace(self.edge.current, settings=settings)
        return (await self.edge.text(self.edge.asked("acme-sg")))[0]

    def _plan(self, pool: PoolId) -> Plan:
        def frames(sendable: Sendable) -> Iterator[StreamFrame]:
            for number in range(11):
                self.now_us += self.token_us[pool]
                yield Tokens(1, sendable.attempt, number, 1, "x", (7,))
            yield Done(1, sendable.attempt, "stop", PoolCounts(10, 0, 11, 11), 0, 0)

        return cast(Plan, frames)


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, dict[str, Any]]]:
    """Return the events of outliers, with their fields, and forget them."""
    found = [(one.msg, cast(Any, one).tidegate_fields) for one in caplog.records if one.msg in EVENTS]
    assert SECRET_WORDS not in caplog.text
    caplog.clear()
    return found


async def test_an_edge_says_when_a_pool_is_ejected_when_it_is_tried_and_when_it_is_back(
    make_edge: Callable[..., Edge], caplog: pytest.LogCaptureFixture
) -> None:
    slowed = Slowed(make_edge())
    for _ in range(4):
        assert await slowed.ask(GUIZHOU) == GUIZHOU
        assert await slowed.ask(SHANGHAI) == SHANGHAI
    assert told(caplog) == []
    slowed.token_us[GUIZHOU] = 1_500_000
    for _ in range(4):
        await slowed.ask(GUIZHOU)
        await slowed.ask(SHANGHAI)
    who = {"pool": GUIZHOU, "model": "smollm2-135m-instruct"}
    assert told(caplog) == [("pool_ejected", {**who, "duration_ms": HOLD_MIN_US // 1000})]
    slowed.now_us += HOLD_MIN_US
    await slowed.ask(GUIZHOU)
    out = ("pool_ejected", {**who, "duration_ms": 2 * HOLD_MIN_US // 1000})
    assert told(caplog) == [("pool_tried", who), out], "its trial went as badly"
    slowed.now_us += 2 * HOLD_MIN_US
    slowed.token_us[GUIZHOU] = 20_000
    await slowed.ask(GUIZHOU)
    assert told(caplog) == [("pool_tried", who), ("pool_back", who)]
