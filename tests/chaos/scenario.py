"""A scenario: lanes of load, steps on a clock, checks. And what runs one."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.client import Ending, Mode
from tests.chaos.declared import PERSONAL
from tests.chaos.evidence import Auditor
from tests.chaos.heard import heard
from tests.chaos.load import Lane, Load
from tests.chaos.proxy import Toxics
from tests.chaos.report import Result, summed
from tests.chaos.stand import Stand

REATTACHED = "session_reattached"
RECOVER_S = 30.0
"""How long every lane may take to have an answer again, once all is whole."""
SETTLE_S = 0.5
"""From the last answer to the look at the records: what was decided is written then."""

MIXED = (
    Lane(8, Mode.STREAM),
    Lane(2, Mode.WHOLE, tokens=20),
    Lane(2, Mode.KEYED, tokens=20, tenant="third"),
    Lane(4, Mode.STREAM, kind=PERSONAL, tenant="third"),
)
"""What most scenarios ask: streams and whole answers, with and without a key, of both kinds of data."""


@dataclass(slots=True)
class Run:
    """One run of one scenario: what its steps act on."""

    stand: Stand
    load: Load
    faults: list[float] = field(default_factory=list)
    """When each fault began, by the loop's clock."""
    failures: list[str] = field(default_factory=list)
    """What a check of the scenario itself found."""
    figures: dict[str, float] = field(default_factory=dict)
    """What it measured beside."""
    spools: list[Path] = field(default_factory=list)
    """Spools of edges outside of their folders, to be read as well."""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    """Actions that go on beside the steps of the round."""
    busy: list[str] = field(default_factory=list)
    """Processes that only take time from the others."""

    def fail(self, sentence: str) -> None:
        """Say what is wrong."""
        self.failures.append(sentence)


Action = Callable[[Run], Awaitable[None]]
"""Acts on a run. Written by the verbs below, or by a scenario itself."""


@dataclass(frozen=True, slots=True)
class Step:
    """An action, so many seconds after the round began."""

    at_s: float
    action: Action
    fault: bool = False
    """Whether the time to recover counts from here."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What happens, under which load. Each round ends whole again."""

    name: str
    about: str
    steps: tuple[Step, ...]
    lanes: tuple[Lane, ...] = MIXED
    rounds: int = 1
    calm_s: float = 1.0
    """Load without a fault, before the first round and between two."""
    check: Action | None = None
    """Looks at the run when the load has ended."""
    recovers: bool = True
    """Whether every lane must have an answer again in each round."""


async def run(scenario: Scenario, stand: Stand, auditor: Auditor) -> Result:
    """Run a scenario on a whole stand, and leave it whole."""
    load = Load(stand, scenario.name)
    running = Run(stand, load)
    before = await asyncio.to_thread(heard, stand, REATTACHED)
    load.start(scenario.lanes)
    try:
        for _ in range(scenario.rounds):
            await asyncio.sleep(scenario.calm_s)
            await _round(scenario, running)
        await load.stop()
        if scenario.check is not None:
            await scenario.check(running)
        await asyncio.sleep(SETTLE_S)
    finally:
        for task in running.tasks:
            task.cancel()
        await asyncio.gather(*running.tasks, return_exceptions=True)
        await load.close()
    # In threads: the links go through this process, and must not stand still while it reads.
    findings = await asyncio.to_thread(auditor.look, load.asked, running.spools)
    reattached = await asyncio.to_thread(heard, stand, REATTACHED) - before
    return summed(scenario.name, load.asked, running.faults, reattached, findings, running.failures, running.figures)


async def _round(scenario: Scenario, running: Run) -> None:
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    for step in sorted(scenario.steps, key=lambda one: one.at_s):
        await asyncio.sleep(max(0.0, begun_s + step.at_s - loop.time()))
        if step.fault:
            running.faults.append(loop.time())
        await step.action(running)
    while running.tasks:
        await running.tasks.pop()
    await running.stand.heal()
    if scenario.recovers:
        await _recovered(scenario.lanes, running)


async def _recovered(lanes: tuple[Lane, ...], running: Run) -> None:
    """Wait until each kind of request has an answer at each edge that began after all was whole."""
    since_s = asyncio.get_running_loop().time()
    wanted = {(edge, lane.kind) for lane in lanes for edge in lane.edges}

    def lacking() -> set[tuple[str, str]]:
        served = {
            (told.plan.edge, told.plan.kind)
            for one in running.load.asked
            for told in one.tries
            if told.ending in (Ending.ANSWERED, Ending.CANCELLED) and told.begun_s >= since_s
        }
        return wanted - served

    if not await running.load.until(lambda: not lacking(), RECOVER_S):
        running.fail(f"no answer within {RECOVER_S:.0f} s after all was whole: {sorted(lacking())}")


# Verbs


def kill(*names: str) -> Action:
    """SIGKILL."""

    async def act(running: Run) -> None:
        for name in names:
            running.load.dies(name)
        await asyncio.gather(*(running.stand.kill(name) for name in names))

    return act


def send(name: str, number: signal.Signals) -> Action:
    """Any other signal."""

    async def act(running: Run) -> None:
        running.stand.signal(name, number)

    return act


def start(*names: str) -> Action:
    """Start what has ended."""

    async def act(running: Run) -> None:
        for name in names:
            await running.stand.restart(name)

    return act


def replace(name: str) -> Action:
    """SIGTERM, wait for the end, start again."""

    async def act(running: Run) -> None:
        running.load.leaves(name)
        await running.stand.supervisor.stop(name)
        await running.stand.restart(name)

    return act


def link(toxics: Toxics, *sites: str) -> Action:
    """Set what is wrong with the links to some sites."""

    async def act(running: Run) -> None:
        for site in sites:
            running.stand.proxies[site].set(toxics)

    return act


def reset(site: str) -> Action:
    """RST to every connection of the link."""

    async def act(running: Run) -> None:
        running.stand.proxies[site].reset()

    return act


def close(site: str) -> Action:
    """Close every connection of the link in order."""

    async def act(running: Run) -> None:
        running.stand.proxies[site].close()

    return act
