"""A process of several does not outlive the watch that started it, however that ended."""

from __future__ import annotations

import os
import signal

PR_SET_PDEATHSIG = 1


def die_with(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends. Raises OSError where it has ended already.

    SIGKILL, because that is what ended the parent: a watch that is asked to stop waits for its processes. What was
    running is lost as it is with a program of one process, and the next start finds every folder and the port free.
    """
    # Imported here: a program of one process has no watch, and needs none of it.
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent_pid:
        raise OSError("the process that started this one has ended")
