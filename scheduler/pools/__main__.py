"""``python -m scheduler.pools --config FILE``: the Ray driver of a site, started and restarted by the scheduler.

Ray's calls block, and hang while the head is gone. They run in a thread of their own, so that this process always
notices that it should end. It then ends at once: it holds nothing, and the replicas outlive it.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import threading
from pathlib import Path

from orchestrator.config.secret import SettingsError, read_secret
from orchestrator.config.settings import load_settings, run_program
from scheduler.pools.driver import Driver, set_environment
from scheduler.settings import SchedulerSettings

POLL_S = 0.5
EXIT_CLUSTER_LOST = 3


def main() -> int:
    """Run the driver until SIGTERM, or until the scheduler that started it is gone."""
    parser = argparse.ArgumentParser(prog="python -m scheduler.pools")
    parser.add_argument("--config", required=True, type=Path)
    path = parser.parse_args().config
    settings = load_settings(SchedulerSettings, path, os.environ, "TIDEGATE_SCHEDULER_")
    if settings.ray is None:
        raise SettingsError(str(path), "ray", "expected a Ray cluster to join, or no driver at all")
    set_environment(settings.ray)
    token = read_secret(Path(settings.replica_token_file)).reveal()
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    driver = Driver(settings, settings.ray, token, _say)
    work = threading.Thread(target=_drive, args=(driver, stopped), name="ray", daemon=True)
    work.start()
    while work.is_alive() and not stopped.is_set():
        # The scheduler holds our standard input: its end is the scheduler's end, however it came.
        readable, _, _ = select.select([sys.stdin], [], [], POLL_S)
        if readable and not os.read(sys.stdin.fileno(), 1024):
            stopped.set()
        if driver.has_moved():
            _say("the site has another cluster")
            break
    sys.stdout.flush()
    sys.stderr.flush()
    # Not an ordinary exit: Ray's own threads may hang in it.
    os._exit(0 if stopped.is_set() else EXIT_CLUSTER_LOST)


def _drive(driver: Driver, stopped: threading.Event) -> None:
    try:
        driver.run(stopped)
    except OSError as failure:
        _say(f"cannot join the Ray cluster: {failure}")


def _say(line: str) -> None:
    sys.stdout.write(f"driver: {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(run_program(main))
