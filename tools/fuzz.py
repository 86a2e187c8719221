"""`make fuzz [SECONDS=60] [ARGS="target ..."]`: looks for inputs that a reader does not stand.

Every target of `tests/fuzz/targets.py` runs under atheris, one at a time and at the lowest priority, from the
committed corpus; what finds new code goes to `build/fuzz/new/`, what fails to `build/fuzz/failed/`. With `--keep`, new
inputs that add coverage join the corpus. The target `openapi` is schemathesis against `/openapi.json` of the real
front.

Both fuzzers live in an environment of their own under `build/`: they are no part of the product's lock.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "fuzz"
CORPUS = ROOT / "tests" / "fuzz" / "corpus"
PACKAGES = ("atheris==3.0.0", "schemathesis==4.32.5")
OPENAPI = "openapi"
INPUT_BYTES_MAX = 4096
MEMORY_MB_MAX = 2048
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def environment() -> Path:
    """Return the interpreter with the fuzzers, which is made when it is not there."""
    python = BUILD / "venv" / "bin" / "python"
    made = BUILD / "venv" / "made"
    if not made.is_file() or made.read_text(encoding="utf-8") != " ".join(PACKAGES):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(BUILD / "venv")], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        made.write_text(" ".join(PACKAGES), encoding="utf-8")
    return python


def run_target(python: Path, target: str, seconds: int, keep: bool) -> bool:
    """Fuzz one reader for so long. Returns whether it stood everything."""
    new, failed = BUILD / "new" / target, BUILD / "failed"
    new.mkdir(parents=True, exist_ok=True)
    failed.mkdir(parents=True, exist_ok=True)
    # The product's packages come from its own environment, so that what is fuzzed is what is shipped.
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), sysconfig.get_paths()["purelib"]))}
    command = ["nice", "-n", "19", str(python), "-m", "tests.fuzz.harness", target]
    bounds = [f"-max_len={INPUT_BYTES_MAX}", f"-rss_limit_mb={MEMORY_MB_MAX}", f"-artifact_prefix={failed}/{target}-"]
    search = [*command, *bounds, f"-max_total_time={seconds}", "-verbosity=0", "-print_final_stats=1"]
    held = subprocess.run([*search, str(new), str(CORPUS / target)], cwd=ROOT, env=env, check=False).returncode == 0
    if held and keep:
        merge = [*command, *bounds, "-merge=1", "-verbosity=0", str(CORPUS / target), str(new)]
        subprocess.run(merge, cwd=ROOT, env=env, check=True)
    return held


def run_openapi(python: Path, examples: int) -> bool:
    """Try everything that the document describes on the real front. Returns whether all answers were as described."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks"}
    served = [sys.executable, "-m", "tests.fuzz.served"]
    pipe = subprocess.PIPE
    with subprocess.Popen(served, cwd=ROOT, env=env, stdin=pipe, stdout=pipe, text=True) as front:
        if front.stdin is None or front.stdout is None:
            raise OSError("there is no way to speak to the front")
        port, key = front.stdout.readline().split()
        command = ["nice", "-n", "19", str(python.parent / "st"), "run", f"http://127.0.0.1:{port}/openapi.json"]
        options = [f"--checks={CHECKS}", f"--max-examples={examples}", "--workers=1", "--no-color"]
        secret = [f"--header=Authorization: Bearer {key}"]
        tried = subprocess.run([*command, *options, *secret], cwd=BUILD, env=env, check=False)
        front.stdin.close()
        print(front.stdout.readline().strip(), flush=True)
    return tried.returncode == 0


def main() -> int:
    """Run the targets that were named, or all. Returns 1 when one did not stand what it was given."""
    known = sorted(path.name for path in CORPUS.iterdir())
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[*known, OPENAPI, []], help="all when none is named")
    parser.add_argument("--seconds", type=int, default=60, help="for each reader")
    parser.add_argument("--examples", type=int, default=60, help="of each operation of the document")
    parser.add_argument("--keep", action="store_true", help="let new inputs join the corpus")
    options = parser.parse_args()
    python = environment()
    fallen = []
    for target in options.targets or [*known, OPENAPI]:
        print(f"fuzz: {target}", flush=True)
        if target == OPENAPI:
            held = run_openapi(python, options.examples)
        else:
            held = run_target(python, target, options.seconds, options.keep)
        if not held:
            fallen.append(target)
    print(f"fuzz: {'did not stand: ' + ', '.join(fallen) if fallen else 'everything held'}", flush=True)
    return 1 if fallen else 0


if __name__ == "__main__":
    sys.exit(main())
