"""Scenarios in which the link between the edges and the sites suffers."""

from __future__ import annotations

from tests.chaos.declared import SITES
from tests.chaos.proxy import HEALTHY, Toxics
from tests.chaos.scenario import Scenario, Step, close, link, reset

SITE = SITES[0]
CUT_S = 5.0


def cut(name: str, about: str, toxics: Toxics, *sites: str) -> Scenario:
    """Something is wrong with links for a while."""
    steps = (Step(0.0, link(toxics, *sites), fault=True), Step(CUT_S, link(HEALTHY, *sites)))
    return Scenario(name, about, steps)


LINK_FAULTS = (
    cut("partition", "nothing passes to or from one site for 5 s", Toxics(hold_up=True, hold_down=True), SITE),
    cut("partition-all", "nothing passes to or from any site for 5 s", Toxics(hold_up=True, hold_down=True), *SITES),
    cut("one-way-up", "nothing passes towards one site for 5 s", Toxics(hold_up=True), SITE),
    cut("one-way-down", "nothing comes back from one site for 5 s", Toxics(hold_down=True), SITE),
    cut("delay", "100 ms and up to 60 ms of jitter each way to every site", Toxics(100.0, 60.0), *SITES),
    cut("bandwidth", "30 kB/s each way to every site", Toxics(kb_per_s=30.0), *SITES),
    cut("long-haul", "80 ms, jitter and 100 kB/s together", Toxics(80.0, 40.0, 100.0), *SITES),
    Scenario(
        "closed",
        "the connections to one site are closed in order, and made anew",
        (Step(0.0, close(SITE), fault=True),),
        rounds=5,
    ),
    Scenario(
        "rst-storm",
        "RST to every connection of both sites, ten times in 5 s",
        tuple(Step(0.5 * at, reset(site), fault=True) for at in range(10) for site in SITES),
    ),
    Scenario(
        "refused",
        "one site's port is shut for 3 s: each connection is reset at once",
        (
            Step(0.0, link(Toxics(refuse=True), SITE)),
            Step(0.0, reset(SITE), fault=True),
            Step(3.0, link(HEALTHY, SITE)),
        ),
    ),
)
