"""Scenarios in which a program dies, stands still, or is replaced."""

from __future__ import annotations

import signal

from tests.chaos.client import Ending
from tests.chaos.declared import EDGES, HOME_ENGINE, PERSONAL, SITES, pool_of
from tests.chaos.scenario import Run, Scenario, Step, kill, replace, send, start
from tests.chaos.stand import engine_name, program_of

FROZEN_S = 5.0
SITE = SITES[0]
SCHEDULER = program_of(SITE)
REPLICA = engine_name(SITE, 0)
WHOLE_SITE = (SCHEDULER, engine_name(SITE, 0), engine_name(SITE, 1))


def killed(name: str, program: str, what: str, away_s: float, rounds: int = 3) -> Scenario:
    """SIGKILL of a program, and a new one after a while."""
    steps = (Step(0.0, kill(program), fault=True), Step(away_s, start(program)))
    return Scenario(f"{name}-killed", f"SIGKILL of {what}; a new one {away_s:g} s later", steps, rounds=rounds)


def frozen(name: str, program: str, what: str) -> Scenario:
    """SIGSTOP of a program for a while."""
    steps = (Step(0.0, send(program, signal.SIGSTOP), fault=True), Step(FROZEN_S, send(program, signal.SIGCONT)))
    return Scenario(f"{name}-frozen", f"SIGSTOP of {what} for {FROZEN_S:g} s", steps, rounds=2)


async def personal_data_waits(running: Run) -> None:
    """While its one pool was away, personal data was refused and nothing else."""
    refused = [
        told
        for one in running.load.asked
        for told in one.tries
        if told.plan.kind == PERSONAL and told.ending is Ending.REFUSED
    ]
    running.figures["personal refused"] = len(refused)
    if not refused:
        running.fail("no request with personal data was refused while its only pool was away")
    elsewhere = [told for one in running.load.asked for told in one.tries if told.plan.kind == PERSONAL and told.pool]
    if any(told.pool in {pool_of(site) for site in SITES} for told in elsewhere):
        running.fail("personal data was answered abroad")


PROCESS_FAULTS = (
    killed("edge", EDGES[0], "an edge", 1.0),
    frozen("edge", EDGES[0], "an edge"),
    killed("intake", SCHEDULER, "a site's scheduler", 1.5),
    frozen("intake", SCHEDULER, "a site's scheduler"),
    killed("replica", REPLICA, "one of a site's two engines", 1.5),
    frozen("replica", REPLICA, "one of a site's two engines"),
    killed("control", "control", "the control plane", 3.0, rounds=1),
    frozen("control", "control", "the control plane"),
    killed("etcd", "etcd", "etcd", 3.0, rounds=1),
    frozen("etcd", "etcd", "etcd"),
    Scenario(
        "site-lost",
        "SIGKILL of a whole site, its scheduler and both engines; back 4 s later",
        (Step(0.0, kill(*WHOLE_SITE), fault=True), Step(4.0, start(*WHOLE_SITE))),
    ),
    Scenario(
        "home-lost",
        "SIGKILL of the only pool that may see personal data: it is refused, and goes nowhere else",
        (Step(0.0, kill(HOME_ENGINE), fault=True), Step(3.0, start(HOME_ENGINE))),
        check=personal_data_waits,
    ),
    Scenario(
        "rolling-restart",
        "SIGTERM and a new process, one program after the other, under load",
        tuple(
            Step(2.0 * at, replace(name), fault=True)
            for at, name in enumerate((*map(program_of, SITES), *EDGES, "control", "etcd", REPLICA))
        ),
    ),
)
