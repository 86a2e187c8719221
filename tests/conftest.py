"""What holds for every test: the environment, fixed seeds, and that nothing is left behind."""

from __future__ import annotations

import os

# Before any test imports gRPC, Ray, torch or transformers: they read these once.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# As engines are started (scheduler/pools/engine/process.py): threads that spin for each other starve beside others.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import asyncio
import gc
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
import uvloop
from hypothesis import settings

from tests import leaks

# From its first loop on libuv keeps a pipe of its own, which no test leaves behind.
uvloop.new_event_loop().close()

# A test speaks to this machine alone, and to no cluster that happens to run on it.
for _name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "ray_address"):
    os.environ.pop(_name, None)
    os.environ.pop(_name.upper(), None)

RUN = uuid.uuid4().hex
_WIDER: dict[str, str] = {}
"""What was left after tests that use fixtures of a wider scope, with the first such test."""
os.environ[leaks.RUN_VARIABLE] = RUN

# The same examples on every run; `--hypothesis-profile=fresh` looks for new ones. No deadline: machines are shared.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.register_profile("fresh", deadline=None, print_blob=True)
settings.load_profile("fixed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("leak_grace_s", "how long what a test started may take to go", default="2")


def pytest_collection_finish() -> None:
    """Keep the collector from every test and module that stays to the end: half a second each time that it looks."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_at_the_end(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the run when something is left after every fixture of every scope was torn down."""
    before = leaks.held(RUN)
    yield
    left = leaks.left_behind(RUN, before, _grace_s(request))
    if left:
        leaks.end_programs(RUN, left)
        told = (f"{key} (first seen after {_WIDER.get(key, 'an unknown test')})" for key in sorted(left))
        pytest.fail(f"left behind at the end of the run: {', '.join(told)}", pytrace=False)


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a thread, file, socket or program behind.

    Set up before every other fixture of the test and so torn down after them. A fixture of a wider scope may start
    things while the test runs; in a test that uses one, what is left is held against the whole run.
    """
    before = leaks.held(RUN)
    yield
    uses_wider = _uses_wider_fixtures(request)
    left = leaks.left_behind(RUN, before, 0 if uses_wider else _grace_s(request))
    if left and uses_wider:
        for key in left:
            _WIDER.setdefault(key, request.node.nodeid)
    elif left:
        leaks.end_programs(RUN, left)
        pytest.fail(f"left behind: {', '.join(sorted(left.elements()))}", pytrace=False)


def _grace_s(request: pytest.FixtureRequest) -> float:
    return float(request.config.getini("leak_grace_s"))


def _uses_wider_fixtures(request: pytest.FixtureRequest) -> bool:
    definitions = request.node._fixtureinfo.name2fixturedefs
    return any(
        one.scope != "function" and not one.func.__module__.startswith(("_pytest.", "pytest_"))
        for name in request.fixturenames
        if name != "nothing_is_left_at_the_end"
        for one in definitions.get(name, ())
    )


@pytest.fixture(autouse=True)
def no_task_is_left(request: pytest.FixtureRequest, nothing_is_left: None) -> None:
    """Fail an asynchronous test that leaves a task running. Synchronous tests need no loop for this."""
    if request.node.get_closest_marker("asyncio") is not None:
        request.getfixturevalue("tasks_of_the_test")


@pytest_asyncio.fixture
async def tasks_of_the_test(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Compare the tasks of the loop before and after; the loop itself would cancel them without a word."""
    before = asyncio.all_tasks()
    yield
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _grace_s(request)
    while left := asyncio.all_tasks() - before - {asyncio.current_task()}:
        if loop.time() > deadline:
            names = sorted(f"{task.get_name()} ({getattr(task.get_coro(), '__qualname__', '?')})" for task in left)
            pytest.fail(f"tasks left behind: {', '.join(names)}", pytrace=False)
        await asyncio.sleep(leaks.POLL_S)
