"""What an edge makes of the words of several processes of one intake, and how many links it has to them."""

from __future__ import annotations

import pytest

from node_agent.uplink.session_link import SessionLink
from node_agent.uplink.site_links import SiteLinks, load_of
from orchestrator.placement.requests import PoolLoad
from orchestrator.policy.ids import EdgeId, PoolId, SchedulerId
from orchestrator.watch.shares import PROCESSES_MAX
from orchestrator.wire.frames import Load, Process
from tests.values import replace

POOL = PoolId("pool")
ONE = Load(1, POOL, 2, 8, 3, 1, 128, 100, 4_000, 500, 6)


def links() -> SiteLinks:
    return SiteLinks(EdgeId("edge"), SchedulerId("site"), "127.0.0.1:1", lambda: 0)


def reaches(site: SiteLinks, link: SessionLink, process: Process, monkeypatch: pytest.MonkeyPatch) -> bool:
    """The session of `link` is answered by a process."""
    wanted = site._wanted(link, process)
    if wanted:
        held = {**getattr(site, "held", {}), link: process}
        monkeypatch.setattr(site, "held", held, raising=False)
        monkeypatch.setattr(SessionLink, "process", property(lambda one: held.get(one)))
    return wanted


def test_the_shares_of_processes_are_one_pool_and_what_they_have_in_common_counts_once() -> None:
    two = replace(ONE, slots=7, running=4, waiting=0, waiting_max=127, queued_tokens=50, kv_used_tokens=900, openings=2)
    assert load_of([(ONE, 960_000), (two, 100_000)], 1_000_000) == PoolLoad(2, 15, 7, 1, 255, 900, 150, 4_000, 900, 8)


def test_what_one_process_does_not_know_is_unknown_of_the_sum() -> None:
    merged = load_of([(ONE, 0), (replace(ONE, queued_tokens=None, kv_tokens=None, openings=None), 0)], 0)
    assert (merged.queued_tokens, merged.kv_tokens, merged.openings) == (None, 4_000, None)


def test_what_one_process_says_is_taken_as_it_is() -> None:
    assert load_of([(ONE, 88_000)], 100_000) == PoolLoad(2, 8, 3, 1, 128, 12, 100, 4_000, 500, 6)


def test_an_edge_has_a_session_to_each_process_and_no_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    site = links()
    first = site._links[0]
    assert reaches(site, first, Process(1, 3), monkeypatch)
    assert len(site._links) == 3
    _, second, third = site._links
    assert not reaches(site, second, Process(1, 3), monkeypatch)
    assert reaches(site, second, Process(0, 3), monkeypatch)
    assert not reaches(site, third, Process(0, 3), monkeypatch)
    assert reaches(site, third, Process(2, 3), monkeypatch)
    # Its own session again, with another instance of its process.
    assert reaches(site, third, Process(2, 3), monkeypatch)


def test_links_follow_the_number_of_processes_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    site = links()
    link = site._links[0]
    assert reaches(site, link, Process(0, 2**32 - 1), monkeypatch)
    assert len(site._links) == PROCESSES_MAX
    assert reaches(site, link, Process(), monkeypatch)
    assert site._links == [link]
