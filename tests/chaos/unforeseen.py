"""`make chaos ARGS="--random SEED"`: schedules that a seed draws, made into scenarios and run one after the other.

What is judged holds whatever happens: nothing lost, doubled, misplaced or misbilled, no `[DONE]` on a cut stream, every
lane answers again once all is whole, no program fails or ends by itself, and nothing runs on that nobody waits for.
How long anything took is told and not judged.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial

import psutil

from orchestrator.cli.processes import ProcessFailure, ProcessSpec
from orchestrator.cli.publish import PublishFailed
from tests.chaos.client import Ending
from tests.chaos.complaints import Complaints
from tests.chaos.counters import idle_within
from tests.chaos.declared import pool_of
from tests.chaos.disk_faults import enlarge_it, shrink_the_disk
from tests.chaos.drawn import Move, Schedule, Verb, drawn
from tests.chaos.evidence import Auditor
from tests.chaos.report import Result
from tests.chaos.scenario import Action, Run, Scenario, Step, close, kill, link, reset, run, send
from tests.chaos.stand import Stand, StandError

GRACE_S = 7.5
"""How long a program may take to end after SIGTERM; the warden's grace is a little longer."""
IDLE_S = 10.0
PUBLISH_PAUSE_S = 0.05
_BUSY = "while True: pass"


async def run_seeds(
    seeds: range, stand: Stand, auditor: Auditor, tell: Callable[[str], None], processes: int = 1
) -> list[Result]:
    """Run the schedule of each seed on a whole stand. Ends early where the stand does not become whole again."""
    complaints = Complaints(stand)
    results: list[Result] = []
    for seed in seeds:
        schedule = drawn(seed, processes)
        tell(schedule.text())
        whole = True
        try:
            result = await run(scenario_of(schedule), stand, auditor)
        except (StandError, ProcessFailure) as error:
            whole = False
            result = Result(f"random-{seed}", failures=[f"not whole again: {error}"])
        result.failures += await asyncio.to_thread(complaints.new)
        results.append(result)
        for sentence in (*result.failures, *result.findings.sentences):
            tell(f"  FAILED {sentence}")
        tell(f"chaos: {'ok' if result.passed else 'FAILED'} {result.name}")
        if not whole:
            break
    return results


def scenario_of(schedule: Schedule) -> Scenario:
    """Return a schedule as a scenario of one round."""
    steps = tuple(Step(move.at_s, _action(move), move.fault) for move in schedule.moves)
    return Scenario(f"random-{schedule.seed}", schedule.text(), steps, schedule.lanes, check=_nothing_odd)


async def _nothing_odd(running: Run) -> None:
    """No request failed inside of a program, and nothing runs on when nobody asks any more."""
    inside = [
        told.plan.tag
        for one in running.load.asked
        for told in one.tries
        if told.ending in (Ending.REFUSED, Ending.CUT) and told.why == "internal_error"
    ]
    if inside:
        running.fail(f"internal_error: {', '.join(inside[:6])}")
    if await idle_within(running.stand, IDLE_S) is None:
        running.fail(f"an engine still runs something {IDLE_S:g} s after the last answer")


def _action(move: Move) -> Action:
    target = move.target
    actions: dict[Verb, Callable[[], Action]] = {
        Verb.KILL: lambda: kill(target),
        Verb.BEGIN: lambda: partial(_begin, target),
        Verb.KILL_ONE: lambda: partial(_one, target, signal.SIGKILL),
        Verb.FREEZE_ONE: lambda: partial(_one, target, signal.SIGSTOP),
        Verb.THAW_ONE: lambda: partial(_one, target, signal.SIGCONT),
        Verb.FREEZE: lambda: send(target, signal.SIGSTOP),
        Verb.THAW: lambda: send(target, signal.SIGCONT),
        Verb.REPLACE: lambda: _beside(partial(_replace, target)),
        Verb.LINK: lambda: link(move.toxics, target),
        Verb.RESET: lambda: reset(target),
        Verb.CLOSE: lambda: close(target),
        Verb.PUBLISH: lambda: _beside(partial(_publish, int(target))),
        Verb.DRAIN: lambda: _beside(partial(_drain, target)),
        Verb.UNDRAIN: lambda: _beside(partial(_undrain, target)),
        Verb.SMALL_DISK: lambda: _beside(lambda running: shrink_the_disk(running, target)),
        Verb.LARGE_DISK: lambda: _after_others(lambda running: enlarge_it(running, target)),
        Verb.STARVE: lambda: partial(_starve, int(target)),
        Verb.FEED: lambda: _feed,
    }
    return actions[move.verb]()


def _beside(action: Callable[[Run], Awaitable[None]]) -> Action:
    """Act beside the steps that follow."""

    async def act(running: Run) -> None:
        async def one() -> None:
            await action(running)

        running.tasks.append(asyncio.create_task(one()))

    return act


def _after_others(action: Callable[[Run], Awaitable[None]]) -> Action:
    """Act beside the steps that follow, once what goes on beside them by now has ended."""

    async def act(running: Run) -> None:
        before = tuple(running.tasks)

        async def one() -> None:
            if before:
                await asyncio.wait(before)
            await action(running)

        running.tasks.append(asyncio.create_task(one()))

    return act


async def _one(target: str, number: signal.Signals, running: Run) -> None:
    name, _, index = target.partition("/")
    if number is signal.SIGKILL:
        running.load.dies(name)
    running.stand.signal_one(name, int(index), number)


async def _begin(name: str, running: Run) -> None:
    await running.stand.begin(name)


async def _replace(name: str, running: Run) -> None:
    """SIGTERM; SIGKILL for what is frozen, or takes longer than its grace; a new one."""
    stand = running.stand
    running.load.leaves(name)
    stopping = asyncio.create_task(stand.supervisor.stop(name))
    await asyncio.wait((stopping,), timeout=GRACE_S)
    if not stopping.done():
        running.load.dies(name)
        await stand.kill(name)
    await stopping
    await stand.begin(name)


async def _publish(times: int, running: Run) -> None:
    """Publish some times in a row, where control takes it."""
    for revision in range(1, times + 1):
        try:
            await running.stand.publish(revision)
        except PublishFailed:
            running.figures["not published"] = running.figures.get("not published", 0) + 1
        await asyncio.sleep(PUBLISH_PAUSE_S)


async def _drain(site: str, running: Run) -> None:
    """Publish that a site's pool gets no new work, where control takes it."""
    stand = running.stand
    stand.drains = tuple({*stand.drains, pool_of(site)})
    await _publish(1, running)


async def _undrain(site: str, running: Run) -> None:
    stand = running.stand
    stand.drains = tuple({*stand.drains} - {pool_of(site)})
    await _publish(1, running)


def _busy_names(each: int) -> list[str]:
    return [f"busy-{number}" for number in range(each * (psutil.cpu_count() or 1))]


async def _starve(each: int, running: Run) -> None:
    """Start so many processes for each core that do nothing but work."""
    for name in _busy_names(each):
        await running.stand.supervisor.start(ProcessSpec(name, (sys.executable, "-c", _BUSY)))
        running.busy.append(name)


async def _feed(running: Run) -> None:
    """End them."""
    while running.busy:
        await running.stand.supervisor.stop(running.busy.pop())
