"""The slots of engines and the limits of an intake are shared out among its processes, never more than the whole."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.secret import SettingsError
from orchestrator.engines.metrics_page import EngineLoad
from orchestrator.policy.ids import ModelId, ReplicaId
from orchestrator.watch.shares import PROCESSES_MAX, SPOOL_BYTES_MIN
from scheduler.intake.engine_replica import told_of
from scheduler.intake.replica import Replica, Told
from scheduler.settings import SchedulerSettings
from scheduler.shares import address_of, check, settings_of, slots_of
from tests.intake.work import work_of

processes = st.integers(1, PROCESSES_MAX)


def engines(*slots: int) -> list[dict[str, Any]]:
    return [
        {"name": f"e{at}", "model": "m", "base_url": "http://e", "served_model": "m", "slots": count}
        for at, count in enumerate(slots)
    ]


def site(*pools: dict[str, Any], **fields: Any) -> SchedulerSettings:
    given_: dict[str, Any] = {
        "id": "site",
        "side": "domestic",
        "listen": "127.0.0.1:8201",
        "replica_listen": "127.0.0.1:8202",
        "control": "127.0.0.1:9",
        "data_dir": "/data",
        "replica_token_file": "/keys/replica.token",
        "roots": [],
        "pools": pools,
    }
    return msgspec.convert({**given_, **fields}, SchedulerSettings)


def pool(*slots: int, **fields: Any) -> dict[str, Any]:
    return {"id": "p", "engines": engines(*slots), **fields}


@given(processes, st.lists(st.integers(0, 500), max_size=8))
def test_the_shares_of_an_engine_are_its_slots_and_those_of_a_pool_are_even(count: int, slots: list[int]) -> None:
    (found,) = site(pool(*slots)).pools
    shares = [slots_of(found, count, index) for index in range(count)]
    assert [sum(engine) for engine in zip(*shares, strict=True)] == slots
    of_the_pool = [sum(own) for own in shares]
    assert max(of_the_pool) - min(of_the_pool) <= 1
    assert sum(slots) < count or min(of_the_pool) >= 1


@given(
    processes,
    st.integers(PROCESSES_MAX, 1 << 20),
    st.integers(PROCESSES_MAX * SPOOL_BYTES_MIN, 1 << 40),
    st.integers(0, 1 << 40),
)
def test_processes_together_have_what_the_intake_was_given(count: int, waiting: int, spool: int, held: int) -> None:
    whole = site(pool(64, waiting_max=waiting), processes=count, spool_bytes=spool, detached_bytes=held)
    check(whole, "site.yaml")
    parts = [settings_of(whole, index, 1) for index in range(count)]
    for part in parts:
        check(part, "site.yaml")
    assert sum(part.pools[0].waiting_max for part in parts) == waiting
    assert min(part.pools[0].waiting_max for part in parts) >= 1
    assert sum(part.spool_bytes for part in parts) == spool
    assert sum(part.detached_bytes for part in parts) == held
    assert len({part.data_dir for part in parts}) == count
    assert {part.pools[0].engines for part in parts} == {whole.pools[0].engines}


@pytest.mark.parametrize(
    ("field", "refused"),
    [
        ("listen", site(pool(8), listen="127.0.0.1:0", processes=3)),
        ("listen", site(pool(8), listen="127.0.0.1", processes=3)),
        ("ray", site(pool(8), ray={"address_file": "/a", "token_file": "/t"}, processes=3)),
        ("pools.p.replicas", site(pool(8, replicas={"model": "m", "model_dir": "/m"}), processes=3)),
        ("pools.p.engines", site(pool(1, 1), processes=3)),
        ("pools.p.engines.e0.slots", site(pool(-1, 9), processes=3)),
        ("pools.p.waiting_max", site(pool(8, waiting_max=2), processes=3)),
        ("spool_bytes", site(pool(8), spool_bytes=3 * SPOOL_BYTES_MIN - 1, processes=3)),
        ("data_dir", site(pool(8), data_dir="/" + "d" * 100, processes=3)),
        ("id", site(pool(8), id="s" * 62, processes=3)),
    ],
)
def test_settings_that_cannot_be_shared_are_refused_by_name(field: str, refused: SchedulerSettings) -> None:
    check(msgspec.structs.replace(refused, processes=1), "site.yaml")
    with pytest.raises(SettingsError) as error:
        check(refused, "site.yaml")
    assert str(error.value).startswith(f"site.yaml: {field}: expected")


@pytest.mark.parametrize(
    ("listen", "address"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:8", ("::1", 8)), ("host", ("", 0)), ("host:x", ("host", 0))],
)
def test_an_address_is_taken_apart(listen: str, address: tuple[str, int]) -> None:
    assert address_of(listen) == address


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_what_siblings_run_in_an_engine_takes_none_of_our_slots(ours: int, siblings: int, idle: int, by: int) -> None:
    """Others, who are no process of this intake, are seen beyond the slots of the siblings."""
    page = EngineLoad(ours + siblings + by, 0, None, None, "vllm")
    told = told_of(page, ours, siblings + idle)
    replica = Replica(ReplicaId("e"), "1", ModelId("m"), 100, 0, told=told)
    for work in range(ours):
        replica.take(work_of(work, replica))
    assert replica.slots - replica.free == min(100, ours + max(0, by - idle))
    assert told.others_running + told.others_waiting == siblings + by
    assert told_of(page, ours) == Told(None, None, None, siblings + by, 0)
