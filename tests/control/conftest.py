"""A real etcd for the tests of control; each test has sides, and so keys below `/tidegate/<side>/`, of its own name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from orchestrator.policy.ids import SideId
from tests.bundles.sides import Side, domestic, overseas
from tests.control.planes import Plane, make_plane
from tests.etcd_process import EtcdProcess
from tests.values import replace


@pytest.fixture(scope="session")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdProcess]:
    with EtcdProcess(tmp_path_factory.mktemp("etcd") / "data") as process:
        yield process


@pytest.fixture
def etcd(shared_etcd: EtcdProcess) -> Iterator[EtcdProcess]:
    """The etcd of the session, running again after every test."""
    yield shared_etcd
    if shared_etcd.is_running():
        shared_etcd.resume()
    else:
        shared_etcd.start()


@pytest.fixture
def ours() -> Side:
    return _named(overseas())


@pytest.fixture
def theirs() -> Side:
    return _named(domestic())


@pytest.fixture
def plane(tmp_path: Path, etcd: EtcdProcess, ours: Side, theirs: Side) -> Plane:
    """Our control, without a peer."""
    return make_plane(tmp_path / "ours", etcd.url, ours, [theirs])


@pytest.fixture
def peers(tmp_path: Path, etcd: EtcdProcess, ours: Side, theirs: Side) -> tuple[Plane, Plane]:
    """Our control, which dials theirs, and theirs."""
    far = make_plane(tmp_path / "theirs", etcd.url, theirs, [ours])
    return make_plane(tmp_path / "ours", etcd.url, ours, [theirs], peer=far.address), far


def _named(side: Side) -> Side:
    name = SideId(f"{side.name}-{uuid4().hex[:8]}")
    return replace(side, name=name, root=replace(side.root, side=name))
