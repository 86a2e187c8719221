"""Values with something changed, whichever way their kind is made."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import msgspec

Value = TypeVar("Value")


def replace(value: Value, /, **changes: Any) -> Value:
    """The same value with these fields changed. On the data path values are structs, elsewhere dataclasses."""
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.replace(value, **changes)
    made: Value = dataclasses.replace(value, **changes)  # type: ignore[type-var]
    return made
