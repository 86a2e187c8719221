"""How much of what is ready leaves as one message. Pure.

A message that is too large is not sent at all, and would be as large again over the next transport: so what is ready is
told in as many messages as it takes, and an attempt that no message holds is refused before it is opened.
"""

from __future__ import annotations

from typing import TypeVar

from orchestrator.engines.generation import Generation
from orchestrator.wire.convert_facts import facts_to_bytes
from orchestrator.wire.frames import MESSAGE_BYTES_MAX, EdgeFrame, IntakeFrame, Open, Tokens

PORTION_BYTES_MAX = MESSAGE_BYTES_MAX // 2
"""What one message holds, counted at the most that it can be; a larger frame leaves alone."""
_FRAME_BYTES_MOST = 2_048
"""What a frame takes beside its texts, its ids and its facts. A greeting leaves alone, before all else."""
_CHARACTER_BYTES = 4
_ID_BYTES = 5

Frame = TypeVar("Frame", EdgeFrame, IntakeFrame)


def portions(frames: list[Frame]) -> list[list[Frame]]:
    """Split what is ready, in order, into what leaves as one message each. Nearly always that is all of it."""
    if len(frames) == 1:
        return [frames]
    found: list[list[Frame]] = []
    begin, held_bytes = 0, 0
    for at, frame in enumerate(frames):
        size_bytes = _FRAME_BYTES_MOST
        if type(frame) is Tokens:
            size_bytes += _CHARACTER_BYTES * len(frame.text) + _ID_BYTES * len(frame.ids)
        elif type(frame) is Open:
            size_bytes += _open_bytes_most(frame)
        held_bytes += size_bytes
        if held_bytes > PORTION_BYTES_MAX and at > begin:
            found.append(frames[begin:at])
            begin, held_bytes = at, size_bytes
    found.append(frames[begin:] if begin else frames)
    return found


def generation_bytes_most(generation: Generation) -> int:
    """Return the most that the texts and ids of a generation take on the wire."""
    characters, ids = 0, 0
    for message in generation.messages:
        characters += len(message.text)
    for word in generation.sampling.stop:
        characters += len(word)
    if generation.said is not None:
        characters, ids = characters + len(generation.said.text), len(generation.said.ids)
    return _CHARACTER_BYTES * characters + _ID_BYTES * ids


def _open_bytes_most(frame: Open) -> int:
    """Return the most that the texts, ids and facts of an attempt take on the wire."""
    return generation_bytes_most(frame.generation) + len(facts_to_bytes(frame.facts))
