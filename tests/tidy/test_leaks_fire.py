"""A test that leaves something behind fails, and one that only seems to does not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tidy.source import ROOT

TIMEOUT_S = 60

LEAKS = '''
"""Tests that leave something behind."""

import asyncio
import subprocess
import sys
import socket
import threading

import pytest

KEPT = []
ENDED = threading.Event()
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]

async def test_task():
    KEPT.append(asyncio.create_task(asyncio.sleep(60), name="forgotten"))

def test_thread():
    threading.Thread(target=ENDED.wait, args=(20,), name="forgotten").start()

def test_listening_socket():
    KEPT.append(socket.create_server(("127.0.0.1", 0)))

def test_named_socket(tmp_path):
    KEPT.append(socket.socket(socket.AF_UNIX))
    KEPT[-1].bind(str(tmp_path / "forgotten.sock"))

def test_file(tmp_path):
    KEPT.append((tmp_path / "forgotten.txt").open("w"))

def test_program():
    KEPT.append(subprocess.Popen(SLEEP))

def test_orphan():
    code = f"import subprocess; subprocess.Popen({SLEEP!r}, start_new_session=True)"
    subprocess.run([sys.executable, "-c", code], timeout=10)

def test_program_that_nobody_waited_for():
    KEPT.append(subprocess.Popen([sys.executable, "-c", ""]))

def teardown_module():
    ENDED.set()
    for kept in KEPT:
        if isinstance(kept, subprocess.Popen):
            kept.wait(10)
        elif hasattr(kept, "close"):
            kept.close()
'''

LATE = '''
"""A fixture of the module that leaves what it started in a test."""

import threading

import pytest

ENDED = threading.Event()

@pytest.fixture(scope="module")
def start():
    yield lambda: threading.Thread(target=ENDED.wait, args=(3,), name="forgotten").start()

def test_starts(start):
    start()

def test_is_innocent():
    assert not ENDED.is_set()
'''

CLEAN = '''
"""Tests that clean up, some of them late."""

import asyncio
import subprocess
import sys
import socket
import threading
import time

import psutil
import pytest

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]

@pytest.fixture(scope="module")
def program():
    box = [subprocess.Popen(SLEEP)]
    yield box
    box[0].kill()
    box[0].wait(10)

@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server

@pytest.fixture
async def task():
    task = asyncio.create_task(asyncio.sleep(60))
    yield task
    task.cancel()

def test_program_of_the_module(program):
    assert program

def test_program_of_the_module_started_anew(program):
    program[0].kill()
    program[0].wait(10)
    program[0] = subprocess.Popen([*SLEEP, "anew"])

STARTER = """
import subprocess, sys, time
for line in sys.stdin:
    subprocess.Popen(sys.argv[1:])
    print("started", flush=True)
"""

@pytest.fixture(scope="session")
def starter():
    command = [sys.executable, "-c", STARTER, *SLEEP]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        STARTERS.append(program)
        yield
        for child in psutil.Process(program.pid).children():
            child.kill()
        program.kill()

STARTERS = []

def test_program_of_the_session(starter):
    assert STARTERS

def test_program_that_a_program_of_the_session_starts():
    STARTERS[0].stdin.write("start\\n")
    STARTERS[0].stdin.flush()
    assert STARTERS[0].stdout.readline() == "started\\n"

def test_socket_of_a_fixture(server):
    with socket.create_connection(server.getsockname()):
        pass

async def test_task_of_a_fixture(task):
    assert not task.done()

async def test_thread_of_the_loop():
    await asyncio.to_thread(time.sleep, 0)

def test_thread_that_ends_soon():
    threading.Thread(target=time.sleep, args=(0.1,)).start()

async def test_tasks_that_end_soon():
    asyncio.get_running_loop().call_later(0.1, lambda: None)
    task = asyncio.create_task(asyncio.sleep(0.1))
    task.add_done_callback(lambda task: None)
'''


def run_tests(folder: Path, text: str, *options: str) -> str:
    """Run tests of their own under this project's conftest; returns what pytest said."""
    path = folder / "test_inner.py"
    path.write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-c", "/dev/null"]
    command += ["-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function", *options, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def told_of_leaks(tmp_path_factory: pytest.TempPathFactory) -> str:
    return run_tests(tmp_path_factory.mktemp("leaks"), LEAKS, "-o", "leak_grace_s=0.2")


@pytest.mark.parametrize(
    ("test", "told"),
    [
        ("test_task", r"tasks left behind: forgotten \(sleep\)"),
        ("test_thread", "left behind: thread forgotten"),
        ("test_listening_socket", r"left behind: socket at addr\(ip='127.0.0.1'"),
        ("test_named_socket", r"left behind: socket \S+/forgotten.sock"),
        ("test_file", r"left behind: file \S+/forgotten.txt"),
        ("test_program", "left behind: program .* -c import time"),
        ("test_orphan", "left behind: program .* -c import time"),
        ("test_program_that_nobody_waited_for", "ended, that nobody waited for"),
    ],
)
def test_what_is_left_behind_fails_the_test(told_of_leaks: str, test: str, told: str) -> None:
    section = re.search(rf"ERROR at teardown of {test} _+\n(.*?)\n(_____|=====)", told_of_leaks, re.DOTALL)
    assert section is not None, told_of_leaks
    assert re.search(told, section[1]), section[1]


def test_what_a_wider_fixture_leaves_fails_the_run(tmp_path: Path) -> None:
    told = run_tests(tmp_path, LATE, "-o", "leak_grace_s=0.2")
    assert "2 passed, 1 error" in told, told
    assert re.search(r"at the end of the run: thread forgotten \(first seen after \S+::test_starts\)", told), told


def test_what_is_cleaned_up_passes(tmp_path: Path) -> None:
    told = run_tests(tmp_path, CLEAN)
    assert " 9 passed" in told, told
    assert "error" not in told.splitlines()[-1], told
