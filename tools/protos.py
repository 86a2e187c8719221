"""Writes the stubs of protos/tidegate/v1/*.proto beside them, or tells which no longer fit.

    python tools/protos.py            write the stubs, remove those without a .proto
    python tools/protos.py --check    write nothing; exit 1 and name every file that differs

protoc runs from the root, so that the stubs import each other as `protos.tidegate.v1`.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path("protos", "tidegate", "v1")
PROTOC_TIMEOUT_S = 60
STUB = re.compile(r"_pb2(_grpc)?\.pyi?$")

CHARTERS = {
    Path("protos", "__init__.py"): '''"""The messages between the programs, as classes that protoc wrote.

Lives here: .proto files and what `make protos` makes of them.
Never here: a line of logic. Only orchestrator.wire and the servicers import it.
"""
''',
    Path("protos", "tidegate", "__init__.py"): '''"""The messages of Tidegate, by version.

Lives here: one package per version of the wire.
Never here: anything that was not generated.
"""
''',
    FOLDER / "__init__.py": '''"""Version 1 of the messages of Tidegate.

Lives here: the .proto files and, beside each, its stubs.
Never here: anything that was not generated.
"""
''',
}


class ProtocError(Exception):
    """protoc refused a file; the text is its complaint."""


def generate(root: Path, target: Path) -> dict[Path, bytes]:
    """Write the stubs of the .proto files of `root` below `target`, and return all that should stand in `root`.

    Raises ProtocError.
    """
    protos = sorted(path.relative_to(root) for path in (root / FOLDER).glob("*.proto"))
    wanted = {
        path: (root / path).read_bytes() if (root / path).exists() else text.encode() for path, text in CHARTERS.items()
    }
    if not protos:
        return wanted
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I."]
    command += [f"--{plugin}_out={target}" for plugin in ("python", "grpc_python", "mypy", "mypy_grpc")]
    environment = {**os.environ, "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}"}
    done = subprocess.run(
        [*command, *map(str, protos)],
        cwd=root,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PROTOC_TIMEOUT_S,
    )
    if done.returncode != 0:
        raise ProtocError(done.stderr.strip())
    written = (path for path in target.rglob("*") if path.is_file())
    return wanted | {path.relative_to(target): path.read_bytes() for path in written}


def present(root: Path) -> dict[Path, bytes]:
    """The stubs and charters that stand in `root`."""
    stubs = {path.relative_to(root) for path in (root / "protos").rglob("*") if STUB.search(path.name)}
    charters = {path for path in CHARTERS if (root / path).exists()}
    return {path: (root / path).read_bytes() for path in stubs | charters}


def drift(wanted: dict[Path, bytes], found: dict[Path, bytes]) -> list[str]:
    """Name every file that is missing, left over or different."""
    faults = [f"{path} is missing" for path in wanted.keys() - found.keys()]
    faults += [f"{path} has no .proto" for path in found.keys() - wanted.keys()]
    faults += [f"{path} differs" for path in wanted.keys() & found.keys() if wanted[path] != found[path]]
    return sorted(faults)


def write(root: Path, wanted: dict[Path, bytes], found: dict[Path, bytes]) -> list[Path]:
    """Make `root` hold what is wanted and nothing more; return the files that changed."""
    changed = [path for path in wanted if wanted[path] != found.get(path)]
    for path in changed:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(wanted[path])
    left = [path for path in found if path not in wanted]
    for path in left:
        (root / path).unlink()
    return sorted([*changed, *left])


def main() -> int:
    """Run the command line; 1 when protoc refuses a file or `--check` finds drift."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only, exit 1 on drift")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout (default: this one)")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    try:
        with tempfile.TemporaryDirectory(prefix="tidegate-protos-") as folder:
            wanted = generate(root, Path(folder))
    except ProtocError as error:
        print(f"protos: {error}", file=sys.stderr)
        return 1
    found = present(root)
    if arguments.check:
        faults = drift(wanted, found)
        for fault in faults:
            print(f"protos: {fault}")
        print("protos: the stubs fit" if not faults else "protos: run `make protos`")
        return 1 if faults else 0
    for path in write(root, wanted, found):
        print(f"protos: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
