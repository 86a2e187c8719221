"""What a prepared model is: the digests beside its files, and the identity that resume compares.

Two engines may continue each other's answers only where their `ModelIdentity` is equal.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

DIGESTS_FILE = "digests.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE = "config.json"

ENGINE_FAMILY = "transformers"


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """What must be equal for one engine to continue another's answer."""

    weights_sha256: str
    tokenizer_sha256: str
    template_sha256: str
    engine_family: str
    quantisation: str
    """The numbers that are computed with, e.g. `float32`. The weights' digest tells where they came from."""


class Digests(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The contents of `digests.json`. All digests are SHA-256 in lower-case hex."""

    format: Literal[1] = 1
    model: str
    """The name the model is served under when nobody says otherwise."""
    weights_sha256: str
    tokenizer_sha256: str
    template_sha256: str
    config_sha256: str
    quantisation: str
    gguf_path: str
    """Where the GGUF was when the model was converted; empty when the model was not converted from one."""
    gguf_sha256: str

    def identity(self) -> ModelIdentity:
        """The part that resume compares."""
        return ModelIdentity(
            weights_sha256=self.weights_sha256,
            tokenizer_sha256=self.tokenizer_sha256,
            template_sha256=self.template_sha256,
            engine_family=ENGINE_FAMILY,
            quantisation=self.quantisation,
        )


class ModelDamagedError(Exception):
    """The files of a prepared model are missing or not those that were written. Prepare it again."""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in lower-case hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_digests(directory: Path, *, model: str, quantisation: str, gguf: Path | None) -> Digests:
    """Digest the model files in `directory` and write `digests.json` beside them. Raises OSError."""
    digests = Digests(
        model=model,
        weights_sha256=sha256_of(directory / WEIGHTS_FILE),
        tokenizer_sha256=sha256_of(directory / TOKENIZER_FILE),
        template_sha256=sha256_of(directory / TEMPLATE_FILE),
        config_sha256=sha256_of(directory / CONFIG_FILE),
        quantisation=quantisation,
        gguf_path=str(gguf) if gguf is not None else "",
        gguf_sha256=sha256_of(gguf) if gguf is not None else "",
    )
    encoded = msgspec.json.format(msgspec.json.encode(digests), indent=2)
    (directory / DIGESTS_FILE).write_bytes(encoded + b"\n")
    return digests


def read_digests(directory: Path) -> Digests:
    """Read `digests.json` without checking the files. Raises ModelDamagedError when it is missing or malformed."""
    path = directory / DIGESTS_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Digests)
    except (OSError, msgspec.MsgspecError) as error:
        raise ModelDamagedError(f"{path} cannot be read: {error}") from error


def verified_digests(directory: Path) -> Digests:
    """Read `digests.json` and hold every file against it (about a second per GB).

    Raises ModelDamagedError naming the first file that is missing or differs.
    """
    digests = read_digests(directory)
    expected = {
        CONFIG_FILE: digests.config_sha256,
        TEMPLATE_FILE: digests.template_sha256,
        TOKENIZER_FILE: digests.tokenizer_sha256,
        WEIGHTS_FILE: digests.weights_sha256,
    }
    for name, digest in expected.items():
        try:
            actual = sha256_of(directory / name)
        except OSError as error:
            raise ModelDamagedError(f"{directory / name} cannot be read: {error}") from error
        if actual != digest:
            raise ModelDamagedError(f"{directory / name} is not the file that was prepared: its SHA-256 differs")
    return digests
