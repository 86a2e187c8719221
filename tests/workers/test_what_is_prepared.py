"""What an edge of several processes makes ready before they start, and where keys go when their number changes."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest

from node_agent.idempotency.rules import KEEP_MS, BodyDigest, KeyDigest, State, TenantDigest, Why, owner
from node_agent.idempotency.store import Bounds, KeyStore, StoreError, Whole
from node_agent.settings import EdgeSettings
from node_agent.watch.moving import PROCESSES, settle_keys
from node_agent.watch.shares import settings_of
from orchestrator.bundles.clock import HighestTime
from orchestrator.config.program import environment_without
from orchestrator.config.secret import SettingsError
from orchestrator.config.settings import load_settings
from orchestrator.policy.ids import RequestId
from orchestrator.watch.places import folder_of, folders_in, run_folder
from orchestrator.watch.prepare import prepare
from orchestrator.watch.restarts import FIRST_PAUSE_S, PAUSE_S_MAX, SETTLED_S, Restarts

PREFIX = "TIDEGATE_EDGE_"
NOW_MS = 1_790_000_000_000
BOUNDS = Bounds(1_000, 1_000, 1 << 20, 1 << 20)
TENANTS = tuple(TenantDigest(sha256(b"tenant %d" % number).digest()) for number in range(3))


def edge(data_dir: Path, processes: int, **fields: Any) -> EdgeSettings:
    given: dict[str, Any] = {
        "id": "sg-edge",
        "side": "overseas",
        "host": "127.0.0.1",
        "port": 8101,
        "control": "127.0.0.1:9",
        "data_dir": str(data_dir),
        "signing_key_file": 'keys/"edge" of Zürich.pem',
        "commitment_key_file": "yes",
        "roots": [{"side": "overseas", "public_key": "a", "jurisdictions": ["NO"]}],
        "engines": [{"name": "local", "base_url": "http://me:secret@127.0.0.1:1", "served_model": "demo"}],
        "processes": processes,
    }
    return msgspec.convert({**given, **fields}, EdgeSettings)


def prepared(settings: EdgeSettings, parent_pid: int) -> list[Path]:
    own = [settings_of(settings, index, parent_pid) for index in range(settings.processes)]
    return prepare(Path(settings.data_dir), own)


def key(number: int) -> KeyDigest:
    return KeyDigest(sha256(b"key %d" % number).digest())


def store_of(folder: Path) -> closing[KeyStore]:
    return closing(KeyStore(folder / "idempotency" / "keys.db", BOUNDS))


def hold(folder: Path, numbers: Sequence[int], until_ms: int = NOW_MS + KEEP_MS) -> None:
    """Keys in every state: running, over, and with a result."""
    with store_of(folder) as store, store.transaction():
        for number in numbers:
            request, tenant = RequestId(f"req_{number:032}"), TENANTS[number % 3]
            store.begin(key(number), tenant, BodyDigest(b"b" * 32), request, NOW_MS, until_ms)
            if number % 3 == 1:
                store.end(key(number), request, number, Why.CUT)
            if number % 3 == 2:
                assert store.keep(key(number), tenant, request, number, b"shut %d" % number * 100)


def held(data_dir: Path) -> dict[KeyDigest, list[tuple[int, Whole]]]:
    """Where each key is held, and all of it; the totals of each store are right."""
    found: dict[KeyDigest, list[tuple[int, Whole]]] = {}
    for index, folder in folders_in(data_dir):
        if not (folder / "idempotency" / "keys.db").exists():
            continue
        with store_of(folder) as store, store.transaction():
            own = [store.whole(one) for one in store.held_keys()]
            assert store.totals() == (len(own), sum(one.row[7] for one in own))
            for one in own:
                found.setdefault(one.row[0], []).append((index, one))
    return found


def test_every_key_is_where_it_is_looked_for_whatever_the_number_was(tmp_path: Path) -> None:
    hold(tmp_path, range(200))
    before = {name: places[0][1] for name, places in held(tmp_path).items()}
    assert {one.row[4] for one in before.values()} == {state.value for state in State}
    for processes in (2, 5, 3, 1):
        settle_keys(edge(tmp_path, processes))
        after = held(tmp_path)
        assert {name: [index for index, _ in places] for name, places in after.items()} == {
            name: [owner(name, processes)] for name in before
        }
        assert {name: places[0][1] for name, places in after.items()} == before


def test_what_is_interrupted_is_done_again_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(tmp_path, range(200))
    before = {name: places[0][1] for name, places in held(tmp_path).items()}
    forget, left = KeyStore.let_go, 70

    def until_the_disk_fails(store: KeyStore, whole: Whole) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise StoreError("the disk is gone")
        forget(store, whole)

    monkeypatch.setattr(KeyStore, "let_go", until_the_disk_fails)
    with pytest.raises(OSError, match="the disk is gone"):
        settle_keys(edge(tmp_path, 3))
    monkeypatch.undo()
    halfway = held(tmp_path)
    assert halfway.keys() == before.keys()
    # Some are in both places: they were written where they go, and not yet forgotten.
    assert any(len(places) == 2 for places in halfway.values())
    assert not (run_folder(tmp_path) / PROCESSES).exists()
    # The operator may have changed the number once more by then.
    settle_keys(edge(tmp_path, 2))
    assert {name: [index for index, _ in places] for name, places in held(tmp_path).items()} == {
        name: [owner(name, 2)] for name in before
    }
    assert {name: places[0][1] for name, places in held(tmp_path).items()} == before


def test_of_two_the_one_that_is_held_longer_counts(tmp_path: Path) -> None:
    number = next(number for number in range(100) if owner(key(number), 2) == 1)
    hold(tmp_path, [number], until_ms=NOW_MS + 2)
    hold(folder_of(tmp_path, 1), [number], until_ms=NOW_MS + 1)
    settle_keys(edge(tmp_path, 2))
    ((index, whole),) = held(tmp_path)[key(number)]
    assert (index, whole.row[5]) == (1, NOW_MS + 2)


def test_keys_are_moved_when_the_number_changes_and_not_else(tmp_path: Path) -> None:
    settle_keys(edge(tmp_path, 1))
    assert list(tmp_path.iterdir()) == []
    settle_keys(edge(tmp_path, 2))
    hold(tmp_path, range(20))
    settle_keys(edge(tmp_path, 2))
    assert {index for places in held(tmp_path).values() for index, _ in places} == {0}
    # A note that cannot be read says nothing.
    (run_folder(tmp_path) / PROCESSES).write_bytes(b"two")
    settle_keys(edge(tmp_path, 2))
    assert {index for places in held(tmp_path).values() for index, _ in places} == {0, 1}


def test_nothing_starts_over_a_store_that_cannot_be_read(tmp_path: Path) -> None:
    hold(tmp_path, range(20))
    (tmp_path / "idempotency" / "keys.db").write_bytes(b"something else" * 1_000)
    with pytest.raises(OSError, match="cannot be moved"):
        settle_keys(edge(tmp_path, 2))


def test_no_process_begins_before_what_another_has_seen(tmp_path: Path) -> None:
    for index, seen_ms in ((0, 5_000), (2, 9_000)):
        folder_of(tmp_path, index).mkdir(exist_ok=True)
        (folder_of(tmp_path, index) / "highest-time").write_text(f"{seen_ms}\n")
    prepared(edge(tmp_path, 2), 1)
    for index in range(3):
        assert HighestTime(folder_of(tmp_path, index) / "highest-time", wall_ns=lambda: 0).now_ms() == 9_000


def test_a_new_process_begins_with_the_bundles_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "bundles" / "current").mkdir(parents=True)
    (tmp_path / "bundles" / "current" / "overseas").write_text("2")
    (tmp_path / "bundles" / "archive").mkdir()
    # A copy that was cut is made again; what a process has is its own.
    (folder_of(tmp_path, 1) / ".bundles").mkdir(parents=True)
    (folder_of(tmp_path, 1) / ".bundles" / "half").write_text("")
    (folder_of(tmp_path, 2) / "bundles" / "current").mkdir(parents=True)
    (folder_of(tmp_path, 2) / "bundles" / "current" / "overseas").write_text("1")
    prepared(edge(tmp_path, 3), 1)
    current = [(folder_of(tmp_path, index) / "bundles" / "current" / "overseas").read_text() for index in range(3)]
    assert current == ["2", "2", "1"]
    assert os.listdir(folder_of(tmp_path, 1) / "bundles") == ["current"]
    assert not (folder_of(tmp_path, 1) / ".bundles").exists()


def test_each_process_reads_what_it_was_given(tmp_path: Path) -> None:
    settings = edge(tmp_path, 3, record_trace="trace", requests_max=100)
    files = prepared(settings, 77)
    assert stat.S_IMODE(run_folder(tmp_path).stat().st_mode) == 0o700
    for index, file in enumerate(files):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert load_settings(EdgeSettings, file, {}, PREFIX) == settings_of(settings, index, 77)


def test_no_variable_overrides_a_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = prepared(edge(tmp_path, 1), 77)
    assert load_settings(EdgeSettings, file, {f"{PREFIX}PROCESSES": "4"}, PREFIX).processes == 4
    with pytest.raises(SettingsError, match=f"{PREFIX}PROCESSES"):
        load_settings(EdgeSettings, file, {f"{PREFIX}PROCESSES": "65"}, PREFIX)
    for name, value in (("REQUESTS_MAX", "7"), ("ENGINES", "x"), ("LOG_LEVEL", "debug")):
        monkeypatch.setenv(PREFIX + name, value)
    monkeypatch.setenv("TZ", "UTC")
    left = environment_without(PREFIX)
    assert {name for name in left if name.startswith(PREFIX)} == {f"{PREFIX}LOG_LEVEL"}
    assert left["TZ"] == "UTC"


def test_a_process_that_dies_again_and_again_is_started_ever_later_and_never_not() -> None:
    restarts = Restarts()
    pauses = [restarts.pause_s(1.0) for _ in range(20)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (FIRST_PAUSE_S, PAUSE_S_MAX)
    assert restarts.pause_s(SETTLED_S) == FIRST_PAUSE_S
