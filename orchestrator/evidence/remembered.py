"""What is made of values that come again and again, made once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Part = TypeVar("Part")
Form = TypeVar("Form")

REMEMBERED_MAX = 1024
"""Forms of one kind that are remembered; beyond it, all of a kind are forgotten at once."""


def remembered(make: Callable[[Part], Form]) -> Callable[[Part], Form]:
    """Return what gives the forms of values such as the facts of a tenant, by the identity of the value.

    The value must not change; nor may what is returned. Pure, apart from remembering, within a bound. It raises what
    making a form raises. A function: an object takes half as long again to call, and each decision calls it often.
    """
    held: dict[int, tuple[Part, Form]] = {}  # bounded: REMEMBERED_MAX

    def form_of(part: Part) -> Form:
        key = id(part)
        try:
            return held[key][1]
        except KeyError:
            form = make(part)
        if len(held) >= REMEMBERED_MAX:
            held.clear()
        # The value is held too, so that its identity is not given to another.
        held[key] = (part, form)
        return form

    return form_of
