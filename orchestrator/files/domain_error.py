"""The one error of a document that has the right shape and makes no sense, and how it gets its file and line."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from orchestrator.files.document import Document
from orchestrator.files.typed import FieldPath, spell

Shape = TypeVar("Shape")
Value = TypeVar("Value")


class DomainError(ValueError):
    """A field of a document holds what the domain refuses. Its text names the field and never repeats its value."""

    def __init__(self, path: FieldPath, expected: str) -> None:
        super().__init__(f"{spell(path)}: {expected}")
        self.path = path
        self.expected = expected
        """A phrase that says what was expected."""

    @property
    def field(self) -> str:
        """The path as people write it, such as `rules[3].effect`."""
        return spell(self.path)


def read_as(document: Document, shape: type[Shape], to_domain: Callable[[Shape], Value]) -> Value:
    """Return a document as a domain value. Raises FileError with file, line and field."""
    try:
        return to_domain(document.convert(shape))
    except DomainError as refusal:
        raise document.error(refusal.path, refusal.expected) from None
