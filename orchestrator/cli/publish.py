"""`tidegate publish`: a folder of strict YAML becomes the sections of one side.

    packs/NAME.yaml  tenants/NAME.yaml  fleet/NAME.yaml  prices/NAME.yaml     one section each
    fleet.yaml  tenants.yaml  prices.yaml  settings.yaml                      one section, named like its kind
    revocations.yaml                                                          the revocation list
    side.yaml                                                                 the side itself; checked, not sent

A file that is none of these is refused, so that a misspelt name cannot leave a rule out. `README.md` is left alone.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import grpc

from orchestrator.bundles.blobs import WIRE_VERSION
from orchestrator.bundles.formats import SectionKind, build_section
from orchestrator.bundles.refusals import BundleRefused
from orchestrator.bundles.revocations import RevocationsDocument, revoked_of
from orchestrator.config.secret import Secret
from orchestrator.evidence.canonical import JsonValue, canonical_bytes
from orchestrator.files.document import Document, FileError, read_document
from orchestrator.files.domain_error import read_as
from orchestrator.files.fleet import FleetDocument, fleet_of
from orchestrator.files.pack_shapes import PackDocument
from orchestrator.files.packs import pack_of
from orchestrator.files.prices import PricesDocument, prices_of
from orchestrator.files.settings import SettingsDocument, settings_of
from orchestrator.files.sides import DeclaredSide, SideDocument, side_of
from orchestrator.files.tenants import TenantsDocument, tenants_of
from orchestrator.policy.ids import SideId, is_name
from orchestrator.wire.channels import open_channel
from protos.tidegate.v1 import control_pb2 as pb
from protos.tidegate.v1.control_pb2_grpc import ControlStub

if TYPE_CHECKING:
    # Exists in the stubs alone: the generated class is the same for both kinds of channel.
    from protos.tidegate.v1.control_pb2_grpc import ControlAsyncStub


PUBLISH_S = 60.0
REQUEST_BYTES = 2 * 1024 * 1024
REVOCATIONS = "revocations"
_ANY_SIDE = SideId("any")
"""A document says nothing of its side, which only control knows; it is checked as if it were of this one."""

_FOLDERS = {
    "packs": SectionKind.PACK.value,
    "tenants": SectionKind.TENANTS.value,
    "fleet": SectionKind.FLEET.value,
    "prices": SectionKind.PRICES.value,
}
_SINGLE = {"fleet": "fleet", "tenants": "tenants", "prices": "prices", "settings": "settings", REVOCATIONS: REVOCATIONS}
SIDE_FILE = "side.yaml"
_LEFT_ALONE = frozenset({"README.md", SIDE_FILE})


@dataclass(frozen=True, slots=True)
class SectionFile:
    """One checked file."""

    kind: str
    name: str
    document: bytes = field(repr=False)
    """Canonical JSON."""


@dataclass(frozen=True, slots=True)
class Published:
    """What control answered."""

    number: int
    digest: str


class PublishFailed(Exception):
    """Control did not publish. Its text is a sentence for the operator."""

    def __init__(self, sentence: str, *, retry: bool) -> None:
        super().__init__(sentence)
        self.retry = retry
        """Whether the same set may be published later."""


def load_directory(path: Path) -> list[SectionFile]:
    """Return every section in a folder, checked. Raises FileError with file, line and field."""
    if not path.is_dir():
        raise FileError(str(path), 0, "", "expected a folder")
    files: list[SectionFile] = []
    named: set[tuple[str, str]] = set()
    declared_side(path)
    for found in _named(path):
        if isinstance(found, FileError):
            raise found
        file, kind, name = found
        if (kind, name) in named:
            raise FileError(str(file), 0, "", f"expected one file for {kind}/{name}")
        named.add((kind, name))
        files.append(_load(file, kind, name))
    if not any(file.kind != REVOCATIONS for file in files):
        raise FileError(str(path), 0, "", "expected at least one section: an empty set would deny everything")
    return files


@dataclass(frozen=True, slots=True)
class CheckedFiles:
    """Every error in a folder."""

    errors: tuple[FileError, ...]
    vectors: int
    """Test vectors of packs that ran and came out as expected."""


def check_files(path: Path) -> CheckedFiles:
    """Read every file of a folder, and go on after an error."""
    errors: list[FileError] = []
    vectors = 0
    try:
        declared_side(path)
    except FileError as error:
        errors.append(error)
    for found in _named(path):
        if isinstance(found, FileError):
            errors.append(found)
            continue
        file, kind, name = found
        try:
            section = _load(file, kind, name)
        except FileError as error:
            errors.append(error)
            continue
        if kind == SectionKind.PACK.value:
            rules = json.loads(section.document)["rules"]
            vectors += sum(len(rule["vectors"]) for rule in rules)
    return CheckedFiles(tuple(errors), vectors)


def declared_side(path: Path) -> DeclaredSide | None:
    """Return what `side.yaml` of a folder says, or None without one. Raises FileError."""
    file = path / SIDE_FILE
    return read_as(read_document(file), SideDocument, side_of) if file.exists() else None


async def publish(control: str, token: Secret, path: Path, expected: int = 0) -> Published:
    """Publish a folder as the complete set of a side's sections, at that side's control (``host:port``).

    `expected` is the number of the manifest that it replaces; 0 where it does not matter. Raises FileError when a file
    cannot be used, and PublishFailed when control refuses or cannot be reached.
    """
    requests = list(_requests(load_directory(path), token, expected))
    channel = open_channel(control)
    try:
        stub: ControlAsyncStub = ControlStub(channel)
        reply = await stub.Publish(_each(requests), timeout=PUBLISH_S)
    except grpc.aio.AioRpcError as error:
        raise PublishFailed(_sentence(control, error), retry=error.code() in _RETRY) from None
    finally:
        await channel.close()
    return Published(reply.number, reply.digest)


_RETRY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})


async def _each(requests: Sequence[pb.PublishRequest]) -> AsyncIterator[pb.PublishRequest]:
    for request in requests:
        yield request


def _sentence(control: str, error: grpc.aio.AioRpcError) -> str:
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return f"control at {control} did not publish: {error.details()}"
    return error.details() or error.code().name


def _requests(files: Sequence[SectionFile], token: Secret, expected: int) -> Iterator[pb.PublishRequest]:
    request = pb.PublishRequest(version=WIRE_VERSION, token=token.reveal(), expected=expected)
    size_bytes = 0
    for file in files:
        if size_bytes + len(file.document) > REQUEST_BYTES:
            yield request
            request, size_bytes = pb.PublishRequest(version=WIRE_VERSION), 0
        request.sections.add(kind=file.kind, name=file.name, document=file.document)
        size_bytes += len(file.document)
    yield request


def _named(path: Path) -> Iterator[tuple[Path, str, str] | FileError]:
    """Return each file with its kind and name, in order of their names; an error in the place of what has no kind."""
    for entry in sorted(path.iterdir()):
        if entry.name in _LEFT_ALONE or entry.name.startswith("."):
            continue
        if entry.is_dir():
            kind = _FOLDERS.get(entry.name)
            if kind is None:
                yield FileError(str(entry), 0, "", "expected one of the folders packs, tenants, fleet, prices")
                continue
            for file in sorted(entry.iterdir()):
                if file.name not in _LEFT_ALONE and not file.name.startswith("."):
                    name = _stem(file)
                    yield name if isinstance(name, FileError) else (file, kind, name)
            continue
        name = _stem(entry)
        kind = None if isinstance(name, FileError) else _SINGLE.get(name)
        if isinstance(name, FileError):
            yield name
        elif kind is None:
            expected = "expected fleet.yaml, tenants.yaml, prices.yaml, settings.yaml or revocations.yaml"
            yield FileError(str(entry), 0, "", expected)
        else:
            yield entry, kind, kind


def _stem(file: Path) -> str | FileError:
    if file.suffix != ".yaml" or not is_name(file.stem) or not file.is_file():
        expected = "expected NAME.yaml, with a name of lower-case letters, digits and hyphens"
        return FileError(str(file), 0, "", expected)
    return file.stem


def _load(file: Path, kind: str, name: str) -> SectionFile:
    document = read_document(file)
    _check(document, kind)
    value = cast(dict[str, JsonValue], document.value)
    try:
        body = canonical_bytes(value)
        if kind != REVOCATIONS:
            build_section(_ANY_SIDE, SectionKind(kind), name, value)
    except ValueError as failure:
        raise FileError(str(file), 0, "", f"expected what JSON can hold: {failure}") from None
    except BundleRefused as refusal:
        raise FileError(str(file), 0, "", refusal.sentence) from None
    return SectionFile(kind, name, body)


def _check(document: Document, kind: str) -> None:
    """Read the document as what it claims to be. Raises FileError."""
    match kind:
        case "pack":
            read_as(document, PackDocument, pack_of)
        case "fleet":
            read_as(document, FleetDocument, lambda form: fleet_of(form, _ANY_SIDE))
        case "tenants":
            read_as(document, TenantsDocument, tenants_of)
        case "prices":
            read_as(document, PricesDocument, prices_of)
        case "settings":
            read_as(document, SettingsDocument, settings_of)
        case _:
            read_as(document, RevocationsDocument, revoked_of)
