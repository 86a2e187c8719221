"""What a model is: what must be equal for one engine to continue another's answer, and how it is declared. Pure.

An engine of ours knows its own. Of one behind a URL only its operator knows, and says so in the settings.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Literal

import msgspec

from orchestrator.engines.generation import Resume
from orchestrator.policy.ids import Digest, digest_of


@dataclass(frozen=True, slots=True)
class Identity:
    """What a model is, so that a stream is never continued on another."""

    weights_sha256: str
    tokenizer_sha256: str
    template_sha256: str
    engine_family: str
    quantisation: str

    def digest(self) -> Digest | None:
        """Return one value for all of it; None where a part is not known: then it equals no other."""
        parts = astuple(self)
        # As JSON: no two lists of texts are written alike.
        return digest_of(msgspec.json.encode(parts)) if all(parts) else None


class DeclaredIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an operator says of the model behind a URL. Two engines that say the same continue each other's answers."""

    weights_sha256: str
    tokenizer_sha256: str
    template_sha256: str
    engine_family: str
    """The program and whatever of its version changes what it computes, e.g. `vllm-0.11`."""
    quantisation: str

    def digest(self) -> Digest | None:
        """Return the digest of this identity."""
        return Identity(
            self.weights_sha256, self.tokenizer_sha256, self.template_sha256, self.engine_family, self.quantisation
        ).digest()


class Continuing(msgspec.Struct, frozen=True):
    """Whose answers an engine can continue, and by what."""

    identity: Digest | None = None
    by: Resume = Resume.NONE


NOT_CONTINUED = Continuing()
"""What nobody can go on with."""


def continuing(resume: Literal["none", "text"], declared: DeclaredIdentity | None) -> Continuing:
    """Return what the settings of an engine behind a URL declare. Raises ValueError."""
    if resume == "none":
        return NOT_CONTINUED
    identity = None if declared is None else declared.digest()
    if identity is None:
        raise ValueError("an engine that continues answers by text needs an identity, every part of it")
    return Continuing(identity, Resume.TEXT)
