"""Sets up .venv from the locks, and the model of the demo. Quick when there is nothing to do; safe to break off.

    python3.11 tools/setup.py packages    .venv with the locked packages and this project, editable
    .venv/bin/python tools/setup.py model    the demo model, converted once into the user's cache

Needs Python 3.11 and its standard library alone. What was done is written down in .venv/.tidegate-setup at the end of
each step, with the digests of what it was done from; a step whose digests have not changed is passed over.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".tidegate-setup"
LOCKS = ROOT / "requirements"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
STEP_TIMEOUT_S = 1800
LOCK_WAIT_S = 1800
SAY_EVERY = 20
"""Packages between two lines of progress."""


class SetupError(Exception):
    """A step did not succeed; the text says what to do."""


def say(line: str) -> None:
    """Print a line of progress at once."""
    print(f"setup: {line}", flush=True)


def digest(*parts: bytes) -> str:
    """One digest over parts, each with its length so that they cannot run together."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "big") + part)
    return total.hexdigest()


def locks_digest() -> str:
    """What the installed packages follow from. The place counts: the scripts of a moved .venv name the old one."""
    files = [LOCKS / name for name in ("lock.txt", "torch.txt", "model.txt")]
    return digest(bytes(ROOT), sys.version.encode(), *(path.read_bytes() for path in files))


def project_digest() -> str:
    """What the project's own installation follows from: its metadata and scripts, not the settings of tools."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    parts = [document["build-system"], document["project"], document["tool"]["setuptools"]]
    return digest(json.dumps(parts, sort_keys=True).encode())


def model_digest() -> str:
    """What the prepared model follows from: the weights and the code that converts them."""
    files = [LOCKS / "model.txt", ROOT / "scheduler" / "pools" / "prepare.py"]
    cache = os.environ.get("XDG_CACHE_HOME", "") or str(Path.home() / ".cache")
    return digest(cache.encode(), *(path.read_bytes() for path in files))


def read_stamp() -> dict[str, str]:
    """What was done before; empty when nothing was, or when the file is damaged."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(stamp: Mapping[str, str]) -> None:
    """Write down what was done, whole or not at all."""
    part = STAMP.with_suffix(".part")
    part.write_text(json.dumps(stamp, indent=1), encoding="utf-8")
    part.replace(STAMP)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hold the only set-up of this checkout. Raises SetupError when another does not end in LOCK_WAIT_S."""
    deadline = time.monotonic() + LOCK_WAIT_S
    with (ROOT / "tools" / "setup.py").open("rb") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise SetupError("another set-up of this checkout does not end") from None
                if not told:
                    say("waiting for another set-up of this checkout")
                    told = True
                time.sleep(0.2)
        yield


def run(command: Sequence[str | Path], failure: str) -> None:
    """Run a program to its end. Raises SetupError with `failure` when it does not succeed."""
    done = subprocess.run([str(word) for word in command], cwd=ROOT, stdin=subprocess.DEVNULL, timeout=STEP_TIMEOUT_S)
    if done.returncode != 0:
        raise SetupError(failure)


def base_python() -> Path:
    """The interpreter below every virtual environment: the running one may stand in the .venv that is replaced."""
    return Path(sys.base_prefix, "bin", "python3.11")


def make_venv() -> None:
    """Make an empty .venv. Raises SetupError when this Python cannot, with the command that mends it."""
    if sys.version_info[:2] != (3, 11):
        raise SetupError(f"Python 3.11 is needed, this is {sys.version.split()[0]}; give one: make PYTHON=python3.11")
    if importlib.util.find_spec("ensurepip") is None:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise SetupError("the module `venv` is not complete; run: sudo apt-get install -y python3.11-venv")
        say("installing python3.11-venv with apt-get")
        run(["apt-get", "update", "-qq"], "apt-get update failed; install python3.11-venv by hand")
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "python3.11-venv"]
        run(install, "apt-get could not install python3.11-venv; install it by hand")
    if VENV.exists():
        shutil.rmtree(VENV)
    say(f"making .venv with Python {sys.version.split()[0]}")
    run([base_python(), "-m", "venv", VENV], "the module `venv` failed")


def pip(*words: str | Path) -> list[str]:
    """The command line of pip in .venv, deaf to settings that would take other packages than the locked ones."""
    command = [PYTHON, "-m", "pip", "--disable-pip-version-check", "--no-input", *words]
    return [str(word) for word in command]


def install_locked(lock: Path) -> None:
    """Install every package of a lock, by digest, wheels only. Raises SetupError."""
    expected = len(re.findall(r"^[a-z0-9-]+==", lock.read_text(encoding="utf-8"), re.MULTILINE))
    say(f"installing requirements/{lock.name}, {expected} in all")
    command = pip("install", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--progress-bar", "off")
    command += ["-r", str(lock)]
    # Warnings and progress in one stream: what failed is then told in one piece.
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        told: list[str] = []
        seen = 0
        for line in process.stdout or ():
            told = [*told[-30:], line]
            if line.startswith(("Collecting ", "Processing ", "Requirement already satisfied")):
                seen += 1
                if seen % SAY_EVERY == 0:
                    say(f"  {seen} of {expected}")
            elif line.startswith("Installing collected"):
                say("  unpacking")
    if process.returncode != 0:
        raise SetupError(f"pip could not install requirements/{lock.name}:\n{''.join(told)}")


def install_torch() -> None:
    """Install torch from a build for processors: from the sources that pip knows, else from PyTorch's own index."""
    lock = LOCKS / "torch.txt"
    match = re.search(r"^torch==(\S+)", lock.read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        raise SetupError("requirements/torch.txt pins no torch; run: make lock")
    requirement = f"torch=={match[1]}"
    say(f"installing {requirement}")
    command = pip("install", "--no-deps", "--only-binary", ":all:", "--quiet", "--progress-bar", "off", requirement)
    known = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=STEP_TIMEOUT_S
    )
    if known.returncode != 0:
        say(f"  no source of pip has it, trying {CPU_INDEX}")
        run(
            [*command, "--index-url", CPU_INDEX],
            f"{requirement} was not found; give pip a source: PIP_FIND_LINKS=<folder or page> make",
        )


def install_project() -> None:
    """Install this project, editable, with its command."""
    say("installing tidegate, editable")
    # `compat` puts the root itself on the path: a package added later is found without another installation.
    command = pip("install", "--no-deps", "--no-build-isolation", "--quiet")
    command += ["--config-settings", "editable_mode=compat", "-e", "."]
    run(command, "the project could not be installed")


def check_packages() -> None:
    """Ask pip whether the packages fit each other. Raises SetupError with its complaints."""
    names = re.findall(r"^([a-z0-9-]+)==", (LOCKS / "model.txt").read_text(encoding="utf-8"), re.MULTILINE)
    checked = subprocess.run(
        pip("check"), cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=STEP_TIMEOUT_S
    )
    # The packages of model.txt are installed without what they ask for, by intention.
    complaints = [line for line in checked.stdout.splitlines() if not line.startswith(tuple(f"{n} " for n in names))]
    complaints = [line for line in complaints if line != "No broken requirements found."]
    if checked.returncode not in (0, 1) or complaints:
        raise SetupError("\n".join(["the packages do not fit each other:", *complaints, checked.stderr]))


def set_up_packages() -> None:
    """Bring .venv to what the locks say. Raises SetupError."""
    stamp = read_stamp()
    locks, project = locks_digest(), project_digest()
    if stamp.get("locks") == locks and stamp.get("project") == project and PYTHON.exists():
        return
    if stamp.get("locks") != locks or not PYTHON.exists():
        make_venv()
        for name in ("lock.txt", "model.txt"):
            install_locked(LOCKS / name)
        install_torch()
    install_project()
    check_packages()
    write_stamp({"locks": locks, "project": project})
    say("packages are ready")


def set_up_model() -> None:
    """Have the demo model prepared in the user's cache. Raises SetupError."""
    if not (ROOT / "scheduler" / "pools" / "prepare.py").exists():
        raise SetupError("scheduler/pools/prepare.py is missing")
    stamp = read_stamp()
    wanted = model_digest()
    folder = stamp.get("model_folder", "")
    if stamp.get("model") == wanted and folder and Path(folder).is_dir():
        return
    say("preparing the demo model, once")
    with subprocess.Popen(
        [str(PYTHON), "-m", "scheduler.pools.prepare"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            if (match := re.search(r"ready: (/.*)$", line)) is not None:
                folder = match[1]
    if process.returncode != 0:
        raise SetupError("the demo model could not be prepared")
    write_stamp({**stamp, "model": wanted, "model_folder": folder})


def main() -> int:
    """Run the command line; 1 when a step did not succeed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("packages", "model"))
    step = parser.parse_args().step
    try:
        with alone():
            set_up_packages() if step == "packages" else set_up_model()
    except (SetupError, subprocess.TimeoutExpired) as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
