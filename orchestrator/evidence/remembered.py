"""What is made of values that come again and again, made once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Part = TypeVar("Part")
Form = TypeVar("Form")

REMEMBERED_MAX = 1024
"""Forms of one kind that are remembered; beyond it, all of a kind are forgotten at once."""


class Remembered(Generic[Part, Form]):
    """The forms of values such as the facts of a tenant, by the identity of the value.

    The value must not change; nor may what is returned. Pure, apart from remembering, within a bound.
    """

    __slots__ = ("_held", "_make")

    def __init__(self, make: Callable[[Part], Form]) -> None:
        self._make = make
        self._held: dict[int, tuple[Part, Form]] = {}

    def __call__(self, part: Part) -> Form:
        """Return the form of a value. Raises what making it raises."""
        key = id(part)
        try:
            return self._held[key][1]
        except KeyError:
            form = self._make(part)
        if len(self._held) >= REMEMBERED_MAX:
            self._held.clear()
        # The value is held too, so that its identity is not given to another.
        self._held[key] = (part, form)
        return form
