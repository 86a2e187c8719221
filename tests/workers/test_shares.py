"""Every limit of an edge is shared out evenly among its processes, and never more than the whole."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.settings import EdgeSettings
from node_agent.watch.shares import check, leased_of, settings_of
from orchestrator.config.secret import SettingsError
from orchestrator.watch.parts import share
from orchestrator.watch.shares import PROCESSES_MAX, SPOOL_BYTES_MIN, member_name

SHARED = (
    "resume_bytes",
    "spool_bytes",
    "record_trace_bytes",
    "idempotency_keys_max",
    "idempotency_results_bytes",
)
processes = st.integers(1, PROCESSES_MAX)
bytes_of = st.integers(0, 1 << 40)


def edge(**fields: Any) -> EdgeSettings:
    given_: dict[str, Any] = {
        "id": "sg-edge",
        "side": "overseas",
        "host": "127.0.0.1",
        "port": 8101,
        "control": "127.0.0.1:9",
        "data_dir": "/data",
        "signing_key_file": "/keys/edge.pem",
        "commitment_key_file": "/keys/edge.commitment",
        "roots": [],
    }
    return msgspec.convert({**given_, **fields}, EdgeSettings)


@given(st.integers(0, 1 << 62), processes)
def test_the_shares_are_the_whole_and_even(whole: int, count: int) -> None:
    parts = [share(whole, count, index) for index in range(count)]
    assert sum(parts) == whole
    assert max(parts) - min(parts) <= 1
    assert whole < count or min(parts) >= 1


@pytest.mark.parametrize(("whole", "count", "index"), [(-1, 1, 0), (1, 0, 0), (1, 1, 1), (1, 1, -1)])
def test_what_cannot_be_shared_is_refused(whole: int, count: int, index: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        share(whole, count, index)


@given(
    processes,
    st.fixed_dictionaries(
        {
            "requests_max": st.integers(PROCESSES_MAX, 1 << 20),
            "tenant_requests_max": st.integers(PROCESSES_MAX, 1 << 20),
            "idempotency_keys_max": st.integers(PROCESSES_MAX, 1 << 20),
            "spool_bytes": st.integers(PROCESSES_MAX * SPOOL_BYTES_MIN, 1 << 40),
            "resume_bytes": bytes_of,
            "record_trace_bytes": bytes_of,
            "idempotency_results_bytes": bytes_of,
        }
    ),
)
def test_processes_together_have_what_the_edge_was_given(count: int, limits: dict[str, int]) -> None:
    whole = edge(processes=count, record_trace="/trace", **limits)
    check(whole, "edge.yaml")
    parts = [settings_of(whole, index, 1) for index in range(count)]
    for part in parts:
        check(part, "edge.yaml")
    for field in SHARED:
        assert sum(getattr(part, field) for part in parts) == getattr(whole, field)
    assert all(part.idempotency_keys_max >= 1 for part in parts)
    # What is leased is left whole, and at rest each process may use its share of it.
    for part in parts:
        assert leased_of(part) == leased_of(whole)
    for name, most in (("requests", whole.requests_max), ("tenant/acme", whole.tenant_requests_max)):
        evens = [leased_of(whole).even(name, index) for index in range(count)]
        assert sum(evens) == most
        assert all(1 <= leased_of(whole).floor(name, index) <= even for index, even in enumerate(evens))
    assert all(part.spool_bytes >= SPOOL_BYTES_MIN for part in parts)
    # No two write into one place, and everything else is the same.
    assert len({part.data_dir for part in parts}) == len({part.record_trace for part in parts}) == count
    own = {field: getattr(whole, field) for field in (*SHARED, "data_dir", "record_trace", "worker")}
    assert all(msgspec.structs.replace(part, **own) == whole for part in parts)
    # One that is alone is told what it always was.
    assert count > 1 or msgspec.structs.replace(parts[0], worker=None) == whole


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("port", {"port": 0}),
        ("requests_max", {"requests_max": 2}),
        ("tenant_requests_max", {"tenant_requests_max": 2}),
        ("idempotency_keys_max", {"idempotency_keys_max": 2}),
        ("spool_bytes", {"spool_bytes": 3 * SPOOL_BYTES_MIN - 1}),
        ("data_dir", {"data_dir": "/" + "d" * 100}),
        ("id", {"id": "e" * 62}),
    ],
)
def test_settings_that_cannot_be_shared_are_refused_by_name(field: str, fields: dict[str, Any]) -> None:
    check(edge(processes=1, **fields), "edge.yaml")
    with pytest.raises(SettingsError) as refused:
        check(edge(processes=3, **fields), "edge.yaml")
    assert str(refused.value).startswith(f"edge.yaml: {field}: expected")


def test_every_process_reports_under_a_name_of_its_own() -> None:
    assert [member_name("sg-edge", index) for index in range(3)] == ["sg-edge", "sg-edge.w1", "sg-edge.w2"]
