"""Scenarios in which people are the fault: cancels, slow readers, a noisy neighbour, drains, publishing."""

from __future__ import annotations

import asyncio

from tests.chaos.client import Ending, Mode
from tests.chaos.counters import gauge, idle_within
from tests.chaos.declared import EDGES, PERSONAL
from tests.chaos.load import Lane, Load
from tests.chaos.report import percentile
from tests.chaos.scenario import MIXED, Action, Run, Scenario, Step, replace
from tests.chaos.slow import read_slowly

PUBLISHES = 100
CANCELS = 1_000
OPEN_STREAMS = 50
SLOW_READERS = 200
SLOW_S = 12.0
SLOW_EVERY_S = 0.08
SLOW_TOKENS = 400
SHARE = 22
"""Workers that, with those of the calm tenant, leave a slot or two of the 32 abroad free."""
NOISE = 80
"""Ten workers for each of the calm tenant's."""
NOISE_S = 20.0
"""So long that the slowest hundredth is more than two or three answers."""
FREE_S = 1.0
"""A slot is free this soon after its tenant hung up."""
P99_SHARE = 1.2
P99_NOISE_MS = 60.0
"""What two measurements of a loaded machine differ by."""
HELD_S = 10.0

CALM = Lane(8, Mode.STREAM, tokens=20)


async def publish_often(running: Run) -> None:
    """Publish again and again; each edge must end with the last of them."""
    for revision in range(1, PUBLISHES + 1):
        await running.stand.publish(revision)


async def the_last_law_holds(running: Run) -> None:
    """Both edges hold the same manifest, which came after all the others."""
    loop = asyncio.get_running_loop()
    end_at = loop.time() + HELD_S
    numbers: list[float] = []
    while loop.time() < end_at:
        numbers = [
            max((await gauge(running.stand.url(edge), "tidegate_manifest_number")).values(), default=0.0)
            for edge in EDGES
        ]
        if min(numbers) == max(numbers) > PUBLISHES:
            running.figures["manifest"] = numbers[0]
            return
        await asyncio.sleep(0.1)
    running.fail(f"after {PUBLISHES} publishes the edges hold the manifests {numbers}")


async def a_thousand_hung_up(running: Run) -> None:
    """Let the lanes go on until so many have hung up."""

    def hung_up() -> int:
        return sum(1 for one in running.load.asked if one.tries and one.last.ending is Ending.CANCELLED)

    if not await running.load.until(lambda: hung_up() >= CANCELS, 180.0):
        running.fail(f"only {hung_up()} of {CANCELS} requests were begun and hung up in time")


async def no_orphans(running: Run) -> None:
    """Every slot is free within a second of the last that hung up."""
    took_s = await idle_within(running.stand, FREE_S)
    if took_s is None:
        running.fail(f"an engine still runs something {FREE_S:g} s after the last tenant hung up")
    else:
        running.figures["slots free after ms"] = round(took_s * 1000)


def read_by_many(pause_s: float) -> Action:
    """Many readers come, a few at a time, read for a while at their pace, and hang up."""

    async def act(running: Run) -> None:
        lane = Lane(0, Mode.STREAM, tokens=SLOW_TOKENS, tenant="noisy")
        readers = []
        for number in range(SLOW_READERS):
            readers.append(
                asyncio.create_task(read_slowly(running.stand, running.load, lane, number, SLOW_S, pause_s))
            )
            await asyncio.sleep(SLOW_EVERY_S)
        await asyncio.gather(*readers)

    return act


def make_noise(workers: int) -> Action:
    """Another tenant asks, with longer answers, for a while."""

    async def act(running: Run) -> None:
        noise = Load(running.stand, f"noise-{workers}")
        noise.asked = running.load.asked
        noise.start((Lane(workers, Mode.STREAM, tokens=40, tenant="noisy"),))
        await asyncio.sleep(NOISE_S)
        await noise.stop()

    return act


async def the_calm_are_not_moved(running: Run) -> None:
    """The calm tenant's p99 is as it was beside a neighbour of the same work who behaves."""
    from_s, fault_s = running.faults
    calm = [one.last for one in running.load.asked if one.lane is CALM and one.last.ending is Ending.ANSWERED]
    before = [(told.ended_s - told.begun_s) * 1000 for told in calm if from_s < told.begun_s and told.ended_s < fault_s]
    # As long as the first part took, and no longer: nothing happens after that.
    over_s = fault_s + fault_s - from_s
    during = [(told.ended_s - told.begun_s) * 1000 for told in calm if fault_s < told.begun_s < over_s]
    if not before or not during:
        running.fail("the calm tenant had no answers to compare")
        return
    was, became = percentile(before, 0.99), percentile(during, 0.99)
    running.figures |= {"calm p99 ms before": round(was), "calm p99 ms during": round(became)}
    medians = percentile(before, 0.5), percentile(during, 0.5)
    running.figures |= {"calm p50 ms before": round(medians[0]), "calm p50 ms during": round(medians[1])}
    refused = sum(1 for one in running.load.asked if one.lane is CALM and one.last.ending is Ending.REFUSED)
    running.figures["calm refused"] = refused
    if became > was * P99_SHARE + P99_NOISE_MS:
        running.fail(f"the calm tenant's p99 went from {was:.0f} to {became:.0f} ms")


USE_FAULTS = (
    Scenario(
        "publishing",
        f"{PUBLISHES} publishes in a row, under load",
        (Step(0.0, publish_often, fault=True),),
        check=the_last_law_holds,
    ),
    Scenario(
        "edge-drained",
        f"SIGTERM of an edge with {OPEN_STREAMS} streams open that are longer than its grace",
        (Step(0.0, replace(EDGES[0]), fault=True),),
        lanes=(Lane(OPEN_STREAMS, Mode.STREAM, tokens=400, edges=(EDGES[0],)), *MIXED[:2]),
        calm_s=3.0,
    ),
    Scenario(
        "cancels",
        f"{CANCELS:,} requests whose tenants hang up after a few tokens",
        (Step(0.0, a_thousand_hung_up),),
        lanes=(
            Lane(24, Mode.STREAM, tokens=200, cancel_after=(0, 1, 2, 3, 5, 8), tenant="noisy"),
            Lane(4, Mode.STREAM, tokens=200, cancel_after=(0, 1, 2, 3), kind=PERSONAL, tenant="third"),
        ),
        check=no_orphans,
    ),
    Scenario(
        "slow-readers",
        f"{SLOW_READERS} tenants who read a token a second, beside one who reads as it comes",
        # The same requests, read as they come, are what the slow ones are compared with.
        (Step(0.0, read_by_many(0.0), fault=True), Step(0.1, read_by_many(1.0), fault=True)),
        lanes=(CALM,),
        check=the_calm_are_not_moved,
    ),
    Scenario(
        "noisy-neighbour",
        "a tenant with ten times another's requests, on pools that are full, beside one with a share",
        # Beside its share the pools are busy and have room: that is what the noise is compared with.
        (Step(0.0, make_noise(SHARE), fault=True), Step(0.1, make_noise(NOISE), fault=True)),
        lanes=(CALM,),
        check=the_calm_are_not_moved,
    ),
)
