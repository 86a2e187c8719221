"""Runs a command whose spool lies on a small file system of its own, and keeps what was on it.

    python -m tests.chaos.small_disk --kib 1024 --at FOLDER --keep FOLDER -- COMMAND ...

A mount namespace and a tmpfs: the disk is really full, and only for this command. SIGTERM is passed on. When the
command has ended, the folder is copied to where it can be read. Exit status 77 when the machine permits no mounts.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

CLONE_NEWNS = 0x00020000
MS_REC_PRIVATE = 0x4000 | 0x40000
NOT_PERMITTED = 77


def _mount(kib: int, at: Path) -> bool:
    """Mount the small file system. Returns whether it was permitted."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None):
        return False
    return int(libc.mount(b"tmpfs", os.fsencode(at), b"tmpfs", 0, f"size={kib}k,mode=0700".encode())) == 0


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.small_disk")
    parser.add_argument("--kib", type=int, required=True)
    parser.add_argument("--at", type=Path, required=True)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("command", nargs="+")
    told = parser.parse_args()
    told.at.mkdir(parents=True, exist_ok=True)
    if not _mount(told.kib, told.at):
        sys.stderr.write("small_disk: this machine permits no mounts\n")
        return NOT_PERMITTED
    program = subprocess.Popen(told.command)
    signal.signal(signal.SIGTERM, lambda number, _frame: program.send_signal(number))
    status = program.wait()
    shutil.copytree(told.at, told.keep)
    return status


if __name__ == "__main__":
    sys.exit(main())
